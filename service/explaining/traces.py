"""Explanations: a trace's text, the steps parsed from it, and the result that callers get."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from service.contract.trace import STEPS_CUE, Step, parse_steps

ExplanationOutcome = Literal["made", "off", "deferred", "dropped", "failed"]
# The text between the grade and the steps, as in the student's training data.
_BEFORE_STEPS = "\n" + STEPS_CUE


@dataclass(frozen=True, slots=True)
class Explanation:
    """A trace as the model generated it, and its steps.

    Attributes:
        text: the trace without the cue before its steps.
        steps: in the order generated; empty unless `parsed`.
        parsed: whether the text is well-formed: exactly the steps of the criteria, in order.
        agrees: whether the last step's grade equals the served grade; None unless `parsed`.
    """

    text: str
    steps: tuple[Step, ...] = ()
    parsed: bool = False
    agrees: bool | None = None


@dataclass(frozen=True, slots=True)
class ExplanationResult:
    """The outcome of explaining one pair. `reason` says why an explanation was dropped or failed."""

    outcome: ExplanationOutcome
    explanation: Explanation | None = None
    reason: str | None = None


def read_trace(
    generated: str, criteria_steps: Sequence[str], top_grade: int, served_grade: int
) -> Explanation:
    """Parse what the model generated after the served grade, and compare its last grade with that one."""
    text = generated.removeprefix(_BEFORE_STEPS).rstrip("\n")
    if not generated.startswith(_BEFORE_STEPS) or not criteria_steps:
        return Explanation(generated.strip("\n"))
    steps, end = parse_steps(generated, top_grade, len(_BEFORE_STEPS))
    if end != len(generated) or [step.criterion for step in steps] != list(criteria_steps):
        return Explanation(text)
    return Explanation(text, steps, parsed=True, agrees=steps[-1].grade == served_grade)


def to_wire(result: ExplanationResult) -> dict[str, Any]:
    """Convert a result to JSON-like data, for HTTP answers and for the trace store."""
    fields: dict[str, Any] = {"outcome": result.outcome, "reason": result.reason}
    if explanation := result.explanation:
        steps = [
            {"criterion": step.criterion, "finding": step.finding, "grade": step.grade}
            for step in explanation.steps
        ]
        fields |= {**asdict(explanation), "steps": steps}
    return fields
