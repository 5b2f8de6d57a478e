"""The grammar of a reasoning trace: one line a step, each with its finding and an intermediate grade.

    topic: both are about night trains => 3
    constraints: the note is about day trains => 1
    Grade: 1

The teacher writes the steps and then `Grade: `; the student has answered already and writes the steps alone.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

STEPS_CUE = "Steps:\n"
ANSWER_CUE = "Grade: "
_ARROW = " => "
# The arrow that counts is the line's last: a finding may quote one. Not \d, which takes every script's digits.
_STEP = re.compile(
    r"(?P<criterion>[^\s:][^\n:]*): (?P<finding>[^\n]*)" + re.escape(_ARROW) + r"(?P<grade>[0-9])\n"
)
_ANSWER = re.compile(re.escape(ANSWER_CUE) + r"(?P<grade>[0-9])")


@dataclass(frozen=True, slots=True)
class Step:
    """One step, and where its line starts and ends in the trace (in characters, the line's end included)."""

    criterion: str
    finding: str
    grade: int
    span: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Trace:
    """Steps in the order written, the answer, and where its line starts and ends (in characters)."""

    steps: tuple[Step, ...]
    grade: int
    answer_span: tuple[int, int]


def write_step(criterion: str, finding: str, grade: int) -> str:
    """One line of a trace, its end included. The finding must be canonical text: a line break in it would end it."""
    return f"{criterion}: {finding}{_ARROW}{grade}\n"


def parse_steps(text: str, top_grade: int, start: int = 0) -> tuple[tuple[Step, ...], int]:
    """The steps that the text holds from `start` on, without a gap, and where they end (in characters).

    A line that is no step, or whose grade is above `top_grade`, ends them.
    """
    steps: list[Step] = []
    while (found := _STEP.match(text, start)) and int(found["grade"]) <= top_grade:
        steps.append(Step(found["criterion"], found["finding"], int(found["grade"]), found.span()))
        start = found.end()
    return tuple(steps), start


def parse_trace(text: str, criteria: Sequence[str], top_grade: int) -> Trace | None:
    """A teacher's whole trace: a step for each of the criteria, in order, then the answer, then nothing.

    None where the text is anything else.
    """
    steps, end = parse_steps(text, top_grade)
    answer = _ANSWER.fullmatch(text, end)
    if answer is None or int(answer["grade"]) > top_grade:
        return None
    if tuple(step.criterion for step in steps) != tuple(criteria):
        return None
    return Trace(steps, int(answer["grade"]), answer.span())
