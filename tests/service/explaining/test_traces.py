from dataclasses import replace

import pytest

from service.explaining.traces import GradedPair, TraceStep, read_trace

STEPS = ("topic", "constraints")
PAIR = GradedPair("quiet cafes", "Cafes", "A quiet cafe\n in Lisbon.", "made-1", 1)
WHOLE = "\nSteps:\ntopic: both are about cafes => 3\nconstraints: not in lisbon => 1\n"


def test_steps_are_parsed_and_the_last_grade_is_compared_with_the_served_one() -> None:
    found = read_trace(WHOLE, STEPS, top_grade=3, pair=PAIR)
    assert (found.parsed, found.agrees) == (True, True)
    assert found.steps == (
        TraceStep("topic", "both are about cafes", 3),
        TraceStep("constraints", "not in lisbon", 1),
    )
    assert found.text == "topic: both are about cafes => 3\nconstraints: not in lisbon => 1"


def test_a_last_step_with_another_grade_does_not_agree() -> None:
    found = read_trace(WHOLE, STEPS, top_grade=3, pair=replace(PAIR, grade=2))
    assert (found.parsed, found.agrees) == (True, False)


def test_findings_that_name_words_are_compared_with_the_pair() -> None:
    generated = "\nSteps:\ntopic: title has quiet => 3\nconstraints: missing nothing => 1\n"
    found = read_trace(generated, STEPS, top_grade=3, pair=PAIR)
    assert found.steps == (
        TraceStep("topic", "title has quiet", 3, is_true=False),
        TraceStep("constraints", "missing nothing", 1, is_true=True),
    )


@pytest.mark.parametrize(
    "generated",
    [
        "",
        "the note is about cafes",
        "\nSteps:\n",
        WHOLE.removesuffix("\n"),
        WHOLE.replace("topic", "quality"),
        WHOLE + "more",
        WHOLE + "topic: again => 3\n",
        WHOLE.replace("=> 3", "=> 9"),
        WHOLE[len("\nSteps:\n") :],
        "\nSteps:\ntopic: cut off by the limit",
    ],
)
def test_a_trace_that_is_not_well_formed_is_text_only(generated: str) -> None:
    found = read_trace(generated, STEPS, top_grade=3, pair=PAIR)
    assert (found.parsed, found.agrees, found.steps) == (False, None, ())
    assert found.text == generated.removeprefix("\nSteps:\n").strip("\n")


def test_with_criteria_without_steps_a_trace_is_text_only() -> None:
    assert not read_trace(WHOLE, (), top_grade=3, pair=PAIR).parsed
