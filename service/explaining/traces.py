"""What a trace says, read off its text."""

from collections.abc import Sequence
from dataclasses import dataclass

from service.contract.trace import STEPS_CUE, Step, parse_steps

# Between the grade and the steps, as the student learned it.
_BEFORE_STEPS = "\n" + STEPS_CUE


@dataclass(frozen=True, slots=True)
class Explanation:
    """A trace as it was written, and what could be read off it.

    Attributes:
        steps: in the order written; empty unless `parsed`.
        agrees: whether the last step's grade is the grade that was served; None unless `parsed`.
    """

    text: str
    steps: tuple[Step, ...] = ()
    parsed: bool = False
    agrees: bool | None = None


def read_trace(written: str, criteria_steps: Sequence[str], top_grade: int, served_grade: int) -> Explanation:
    """Read what was written after the served grade. A trace that is anything but the steps, in order, isn't parsed."""
    text = written.removeprefix(_BEFORE_STEPS).rstrip("\n")
    if not written.startswith(_BEFORE_STEPS) or not criteria_steps:
        return Explanation(written.strip("\n"))
    steps, end = parse_steps(written, top_grade, len(_BEFORE_STEPS))
    if end != len(written) or [step.criterion for step in steps] != list(criteria_steps):
        return Explanation(text)
    return Explanation(text, steps, parsed=True, agrees=steps[-1].grade == served_grade)
