from dataclasses import replace

import pytest

from service.explaining.traces import GradedPair, TraceCitation, TraceStep, read_trace

STEPS = ("topic", "constraints")
PAIR = GradedPair("quiet cafes", "Cafes", "A quiet cafe\n in Lisbon.", "made-1", 1)
WHOLE = "topic: both are about cafes => 3\nconstraints: not in lisbon => 1\n"


def test_steps_are_parsed_and_the_last_grade_is_compared_with_the_served_one() -> None:
    found = read_trace(WHOLE, STEPS, top_grade=3, pair=PAIR)
    assert (found.well_formed, found.agrees) == (True, True)
    assert found.steps == (
        TraceStep("topic", "both are about cafes", 3),
        TraceStep("constraints", "not in lisbon", 1),
    )
    assert found.text == "topic: both are about cafes => 3\nconstraints: not in lisbon => 1"


def test_a_last_step_with_another_grade_does_not_agree() -> None:
    found = read_trace(WHOLE, STEPS, top_grade=3, pair=replace(PAIR, grade=2))
    assert (found.well_formed, found.agrees) == (True, False)


def test_citations_are_compared_with_the_canonical_texts() -> None:
    generated = 'topic: query "CAFES", body "cafe in Lisbon" => 3\nconstraints: missing "quiet cafes" => 1\n'
    found = read_trace(generated, STEPS, top_grade=3, pair=PAIR)
    asked = TraceCitation("query", "CAFES", found=True)
    across_lines = TraceCitation("body", "cafe in Lisbon", found=True)
    false = TraceCitation("query", "quiet cafes", found=False, missing=True)
    assert found.steps is not None
    assert [step.citations for step in found.steps] == [(asked, across_lines), (false,)]


@pytest.mark.parametrize(
    ("topic", "constraints", "grounded"),
    [
        ('title "cafes"', 'body "lisbon"', True),
        ('title "cafes"', "nothing", True),
        ('title "quiet"', 'body "lisbon"', False),
        ("title has quiet", "nothing", None),
    ],
)
def test_a_trace_is_grounded_if_all_its_citations_are_true(
    topic: str, constraints: str, grounded: bool | None
) -> None:
    generated = f"topic: {topic} => 3\nconstraints: {constraints} => 1\n"
    found = read_trace(generated, STEPS, top_grade=3, pair=PAIR)
    assert (found.well_formed, found.agrees, found.grounded) == (True, True, grounded)


@pytest.mark.parametrize(
    "generated",
    [
        "",
        "the note is about cafes",
        WHOLE.removesuffix("\n"),
        WHOLE.replace("topic", "quality"),
        WHOLE + "more",
        WHOLE + "topic: again => 3\n",
        WHOLE.replace("=> 3", "=> 9"),
        "\n" + WHOLE,
        "Steps:\n" + WHOLE,
        "topic: cut off by the limit",
    ],
)
def test_a_trace_that_is_not_well_formed_is_text_only(generated: str) -> None:
    found = read_trace(generated, STEPS, top_grade=3, pair=PAIR)
    assert (found.well_formed, found.agrees, found.grounded, found.steps) == (False, None, None, ())
    assert found.text == generated.strip("\n")


def test_with_criteria_without_steps_a_trace_is_text_only() -> None:
    assert not read_trace(WHOLE, (), top_grade=3, pair=PAIR).well_formed
