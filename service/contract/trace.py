"""Writes and parses reasoning traces. Each step is one line, with its finding and an intermediate grade.

    topic: both are about night trains => 3
    constraints: the note is about day trains => 1
    Grade: 1

The teacher writes the steps and then `Grade: `. The student, which has already graded, gets a cue and writes only the steps.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

STEPS_CUE = "Steps:\n"
EXPLANATION_CUE = f"\n{STEPS_CUE}"
"""Follows a student's grade, in training and in prompts for an explanation: what is always the same, it needn't write."""
ANSWER_CUE = "Grade: "
_ARROW = " => "
# The line's last arrow counts: a finding may contain one. [0-9] and not \d, which matches the digits of every script.
_STEP = re.compile(
    r"(?P<criterion>[^\s:][^\n:]*): (?P<finding>[^\n]*)" + re.escape(_ARROW) + r"(?P<grade>[0-9])\n"
)
_ANSWER = re.compile(re.escape(ANSWER_CUE) + r"(?P<grade>[0-9])")


@dataclass(frozen=True, slots=True)
class Step:
    """A step, and where its finding and its grade start and end in the trace, in characters."""

    criterion: str
    finding: str
    grade: int
    finding_span: tuple[int, int]
    grade_span: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Trace:
    """The steps in their order, the answer, and where the answer's line starts and ends in the trace, in characters."""

    steps: tuple[Step, ...]
    grade: int
    answer_span: tuple[int, int]

    @property
    def is_consistent(self) -> bool:
        """Whether the last step has the answer's grade; true without steps."""
        return all(step.grade == self.grade for step in self.steps[-1:])


def write_step(criterion: str, finding: str, grade: int) -> str:
    """Return a trace's line for the step, including the newline. The finding must be canonical text, without line breaks."""
    return f"{criterion}: {finding}{_ARROW}{grade}\n"


def parse_steps(text: str, top_grade: int) -> tuple[tuple[Step, ...], int]:
    """Return the consecutive steps at the start of the text, and where they end, in characters.

    They end before a line that is not a step or that has a grade above `top_grade`.
    """
    steps: list[Step] = []
    start = 0
    while (found := _STEP.match(text, start)) and int(found["grade"]) <= top_grade:
        spans = found.span("finding"), found.span("grade")
        steps.append(Step(found["criterion"], found["finding"], int(found["grade"]), *spans))
        start = found.end()
    return tuple(steps), start


def parse_explanation(text: str, criteria: Sequence[str], top_grade: int) -> tuple[Step, ...] | None:
    """Parse what a student writes after its grade and the cue: a step for each of the criteria, in order, then nothing.

    Returns None for any other text, and where there are no criteria.
    """
    steps, end = parse_steps(text, top_grade)
    is_whole = end == len(text) and [step.criterion for step in steps] == list(criteria)
    return steps if is_whole and steps else None


def parse_trace(text: str, criteria: Sequence[str], top_grade: int) -> Trace | None:
    """Parse a teacher's whole trace: a step for each of the criteria, in order, then the answer, then nothing.

    Returns None for any other text.
    """
    steps, end = parse_steps(text, top_grade)
    answer = _ANSWER.fullmatch(text, end)
    if answer is None or int(answer["grade"]) > top_grade:
        return None
    if tuple(step.criterion for step in steps) != tuple(criteria):
        return None
    return Trace(steps, int(answer["grade"]), answer.span())
