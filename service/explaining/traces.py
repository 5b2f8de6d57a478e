"""The result of explaining a pair: a trace's text, and the steps parsed from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from service.contract.trace import STEPS_CUE, parse_steps

ExplanationOutcome = Literal["made", "off", "deferred", "dropped", "failed"]
# The text between the grade and the steps, as in the student's training data.
_BEFORE_STEPS = "\n" + STEPS_CUE


@dataclass(frozen=True, slots=True)
class TraceStep:
    """One step of a trace: the criterion, the finding, and the grade so far."""

    criterion: str
    finding: str
    grade: int


@dataclass(frozen=True, slots=True)
class ExplanationResult:
    """The outcome of explaining a pair, and its trace if it was made.

    `off`: explanation mode is off. `deferred`: GET /explanations/{request_id} returns it once it is finished. `dropped`:
    scoring takes precedence; `reason` says why. `failed`: the engine failed.
    """

    outcome: ExplanationOutcome
    reason: str | None = None
    text: Annotated[str | None, Field(description="The trace as it was generated")] = None
    parsed: Annotated[bool | None, Field(description="Whether the text could be parsed into steps")] = None
    agrees: Annotated[bool | None, Field(description="Whether the last step's grade is the served one")] = (
        None
    )
    steps: tuple[TraceStep, ...] | None = None


def read_trace(
    generated: str, criteria_steps: Sequence[str], top_grade: int, served_grade: int
) -> ExplanationResult:
    """Parse what the model generated after the served grade, and compare its last grade with that one.

    The text is parsed if it is exactly the steps of the criteria, in order.
    """
    text = generated.removeprefix(_BEFORE_STEPS).strip("\n")
    unparsed = ExplanationResult("made", text=text, parsed=False, steps=())
    if not generated.startswith(_BEFORE_STEPS) or not criteria_steps:
        return unparsed
    found, end = parse_steps(generated, top_grade, len(_BEFORE_STEPS))
    if end != len(generated) or [step.criterion for step in found] != list(criteria_steps):
        return unparsed
    steps = tuple(TraceStep(step.criterion, step.finding, step.grade) for step in found)
    agrees = steps[-1].grade == served_grade
    return ExplanationResult("made", text=text, parsed=True, agrees=agrees, steps=steps)
