import pytest

from service.explaining.traces import read_trace

STEPS = ("topic", "constraints")
WHOLE = "\nSteps:\ntopic: both are about cafes => 3\nconstraints: not in lisbon => 1\n"


def test_steps_are_read_off_and_held_against_the_served_grade() -> None:
    found = read_trace(WHOLE, STEPS, top_grade=3, served_grade=1)
    assert (found.parsed, found.agrees) == (True, True)
    assert [(s.criterion, s.finding, s.grade) for s in found.steps] == [
        ("topic", "both are about cafes", 3),
        ("constraints", "not in lisbon", 1),
    ]
    assert found.text == "topic: both are about cafes => 3\nconstraints: not in lisbon => 1"


def test_a_last_step_of_another_grade_does_not_agree() -> None:
    found = read_trace(WHOLE, STEPS, top_grade=3, served_grade=2)
    assert (found.parsed, found.agrees) == (True, False)


@pytest.mark.parametrize(
    "written",
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
def test_anything_else_is_text(written: str) -> None:
    found = read_trace(written, STEPS, top_grade=3, served_grade=1)
    assert (found.parsed, found.agrees, found.steps) == (False, None, ())
    assert found.text == written.removeprefix("\nSteps:\n").strip("\n")


def test_criteria_without_steps_have_text_alone() -> None:
    assert not read_trace(WHOLE, (), top_grade=3, served_grade=1).parsed
