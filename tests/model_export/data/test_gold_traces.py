from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_export.data.gold_traces import gold_steps, is_honest, read_grade
from model_export.data.pairs import DataError, Finding, Pair
from service.contract.prompt import Note
from service.contract.text import canonicalize
from service.contract.trace import ANSWER_CUE, parse_trace, write_step

STEPS = ("asked", "for", "against")

# Pieces of which texts are made that a trace could mistake for its own.
hostile = st.sampled_from(
    [" => 3", ": ", "Grade: 2", "topic: x => 1", "\n", "\r", "\u2028", "\u0085", "\u6771\u4eac", "3"]
)
texts = st.lists(hostile | st.text(max_size=8), max_size=8).map("".join).map(canonicalize)


def pair(label: int = 2, **findings: Finding) -> Pair:
    return Pair("1", "quiet cafes", Note("Lisbon", "Bars and cafes"), label, "made", "made-1", findings)


@given(
    st.dictionaries(st.sampled_from(STEPS), st.builds(Finding, texts.filter(bool), st.integers(0, 3))),
    st.integers(0, 3),
    st.lists(st.sampled_from(("asked", "for", "against", "other")), unique=True),
)
def test_written_traces_parse_for_any_text(
    findings: dict[str, Finding], label: int, steps: list[str]
) -> None:
    if steps and (last := findings.get(steps[-1])):
        findings = findings | {steps[-1]: replace(last, grade=label)}
    made = pair(label, **findings)
    trace = parse_trace(f"{gold_steps(made, steps)}{ANSWER_CUE}{label}", steps, top_grade=3)
    assert trace is not None
    assert [step.criterion for step in trace.steps] == steps
    assert all(step.grade == label for step in trace.steps[-1:])
    for step in trace.steps[:-1]:
        if step.criterion in made.findings:
            assert Finding(step.finding, step.grade) == made.findings[step.criterion]


def test_a_last_finding_of_another_grade_than_the_pair_is_refused() -> None:
    with pytest.raises(
        DataError, match="has the label 1, but the finding of its last step, for, has the grade 2"
    ):
        gold_steps(pair(1, **{"for": Finding("near", 2)}), ("asked", "for"))


def test_step_without_a_finding_leaves_what_is_possible_as_it_was() -> None:
    made = pair(1, **{"for": Finding("near", 2)})
    assert gold_steps(made, ("asked", "for", "also", "against")).splitlines() == [
        "asked: nothing => 3",
        "for: near => 2",
        "also: nothing => 2",
        "against: nothing => 1",
    ]
    assert gold_steps(made, ()) == ""


@pytest.mark.parametrize(
    ("finding", "last", "expected"),
    [
        ('query "quiet"', 2, True),
        ('missing "quiet"', 2, True),
        ("free text", 2, True),
        ('missing "cafes"', 2, False),
        ('title "cafes"', 2, False),
        ('query "quiet"', 1, False),
    ],
)
def test_honest_trace_cites_what_is_there_and_ends_on_its_grade(
    finding: str, last: int, expected: bool
) -> None:
    steps = write_step("asked", finding, 3) + write_step("for", "nothing", last)
    assert is_honest(steps, 2, pair()) is expected
    assert read_grade(steps) == last


def test_text_without_steps_has_no_grade() -> None:
    assert read_grade("") is None
    assert not is_honest("", 2, pair())
