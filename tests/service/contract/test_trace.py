import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contract.text import canonicalize
from service.contract.trace import Step, Trace, parse_explanation, parse_steps, parse_trace, write_step

CRITERIA = ("topic", "constraints")
TOP_GRADE = 3
TEXT = "topic: both are about night trains => 3\nconstraints: the note is about day trains => 1\nGrade: 1"


def test_a_trace_is_parsed_into_steps_and_answer() -> None:
    answer = TEXT.index("Grade")
    assert parse_trace(TEXT, CRITERIA, TOP_GRADE) == Trace(
        steps=(
            Step("topic", "both are about night trains", 3, (7, 34), (38, 39)),
            Step("constraints", "the note is about day trains", 1, (53, 81), (85, 86)),
        ),
        grade=1,
        answer_span=(answer, len(TEXT)),
    )


def test_a_trace_without_criteria_has_only_the_answer() -> None:
    assert parse_trace("Grade: 2", (), TOP_GRADE) == Trace((), 2, (0, 8))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Grade: 1",
        TEXT.removesuffix("\nGrade: 1"),
        TEXT.removesuffix("1"),
        TEXT + "\n",
        TEXT + "2",
        " " + TEXT,
        "\n" + TEXT,
        TEXT.replace("\n", "\n\n", 1),
        TEXT.replace("\n", "\r\n"),
        TEXT.replace("Grade: 1", "Grade: 4"),
        TEXT.replace("=> 3", "=> 4"),
        TEXT.replace("=> 3", "=> -1"),
        TEXT.replace("=> 3", "=> 3."),
        TEXT.replace("=> 3", "=> 11"),
        TEXT.replace("=> 3", "=> "),
        TEXT.replace(" => 3", ""),
        TEXT.replace(" => ", "=>"),
        TEXT.replace("topic", "Topic"),
        TEXT.replace("topic", "intent"),
        TEXT.replace("topic: ", ""),
        TEXT.replace("topic: ", "topic:"),
        TEXT.replace("constraints", "topic"),
        TEXT.replace("=> 3", "=> ٣"),
        TEXT.replace("Grade: 1", "Grade: １"),
    ],
)
def test_any_other_text_is_not_a_trace(text: str) -> None:
    assert parse_trace(text, CRITERIA, TOP_GRADE) is None


def test_a_trace_needs_one_step_per_criterion_in_order() -> None:
    assert parse_trace(TEXT, CRITERIA[::-1], TOP_GRADE) is None
    assert parse_trace(TEXT, CRITERIA[:1], TOP_GRADE) is None
    assert parse_trace(TEXT, (*CRITERIA, "quality"), TOP_GRADE) is None


@pytest.mark.parametrize(
    "finding", ["a => 2", "Grade: 0", "topic: x => 1", "=> 3", "", "a: b: c", "=> 1 => 2"]
)
def test_a_finding_may_contain_a_trace(finding: str) -> None:
    text = write_step("topic", finding, 0)
    [step], end = parse_steps(text, TOP_GRADE)
    assert (step.criterion, step.finding, step.grade) == ("topic", finding, 0)
    assert end == len(text)
    assert [text[slice(*span)] for span in (step.finding_span, step.grade_span)] == [finding, "0"]


def test_steps_end_before_a_line_that_is_not_a_step() -> None:
    good = write_step("topic", "near", 2)
    assert parse_steps(good + "and so on\n" + good, TOP_GRADE)[1] == len(good)
    assert parse_steps(good + write_step("quality", "great", 9), TOP_GRADE)[1] == len(good)
    assert parse_steps("and so on\n" + good, TOP_GRADE) == ((), 0)


@given(
    st.lists(st.tuples(st.text(max_size=30).map(canonicalize), st.integers(0, 3)), max_size=5),
    st.integers(0, 3),
)
def test_written_steps_parse_to_the_same_steps(steps: list[tuple[str, int]], grade: int) -> None:
    criteria = [f"step-{number}" for number in range(len(steps))]
    lines = [write_step(name, finding, grade) for name, (finding, grade) in zip(criteria, steps, strict=True)]
    text = "".join(lines) + f"Grade: {grade}"
    trace = parse_trace(text, criteria, TOP_GRADE)
    assert trace is not None
    assert [(step.finding, step.grade) for step in trace.steps] == steps
    found = [(text[slice(*step.finding_span)], int(text[slice(*step.grade_span)])) for step in trace.steps]
    assert found == steps
    assert (trace.grade, text[slice(*trace.answer_span)]) == (grade, f"Grade: {grade}")


EXPLANATION = TEXT.removesuffix("Grade: 1")


def test_an_explanation_is_exactly_its_steps() -> None:
    steps = parse_explanation(EXPLANATION, CRITERIA, TOP_GRADE)
    assert steps is not None
    assert [step.grade for step in steps] == [3, 1]
    assert [EXPLANATION[slice(*step.finding_span)] for step in steps] == [step.finding for step in steps]


@pytest.mark.parametrize(
    ("text", "criteria"),
    [
        ("\n" + EXPLANATION, CRITERIA),
        (EXPLANATION.removesuffix("\n"), CRITERIA),
        (EXPLANATION + "and", CRITERIA),
        (EXPLANATION, CRITERIA[:1]),
        (EXPLANATION, CRITERIA[::-1]),
        ("", ()),
        ("", CRITERIA),
    ],
)
def test_any_other_text_is_not_an_explanation(text: str, criteria: tuple[str, ...]) -> None:
    assert parse_explanation(text, criteria, TOP_GRADE) is None
