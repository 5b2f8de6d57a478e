"""The result of explaining a pair: a trace's text, and the steps parsed from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from service.contract.findings import is_true
from service.contract.prompt import Note
from service.contract.text import canonicalize
from service.contract.trace import STEPS_CUE, parse_steps

ExplanationOutcome = Literal["made", "off", "deferred", "dropped", "failed"]
# The text between the grade and the steps, as in the student's training data.
_BEFORE_STEPS = "\n" + STEPS_CUE


@dataclass(frozen=True, slots=True)
class GradedPair:
    """A pair and the grade that was served for it."""

    query: str
    title: str | None
    body: str
    criteria: str
    grade: int


@dataclass(frozen=True, slots=True)
class TraceStep:
    """One step of a trace: the criterion, the finding, and the grade so far."""

    criterion: str
    finding: str
    grade: int
    is_true: Annotated[
        bool | None,
        Field(
            description="Whether the words that the finding names are where it says; null if its form can't be checked"
        ),
    ] = None


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
    generated: str, criteria_steps: Sequence[str], top_grade: int, pair: GradedPair
) -> ExplanationResult:
    """Parse what the model generated after the served grade, and compare it with that grade and with the pair's texts.

    The text is parsed if it is exactly the steps of the criteria, in order.
    """
    text = generated.removeprefix(_BEFORE_STEPS).strip("\n")
    unparsed = ExplanationResult("made", text=text, parsed=False, steps=())
    if not generated.startswith(_BEFORE_STEPS) or not criteria_steps:
        return unparsed
    found, end = parse_steps(generated, top_grade, len(_BEFORE_STEPS))
    if end != len(generated) or [step.criterion for step in found] != list(criteria_steps):
        return unparsed
    query, note = canonicalize(pair.query), Note(canonicalize(pair.title), canonicalize(pair.body))
    steps = tuple(
        TraceStep(step.criterion, step.finding, step.grade, is_true(step.finding, query, note))
        for step in found
    )
    agrees = steps[-1].grade == pair.grade
    return ExplanationResult("made", text=text, parsed=True, agrees=agrees, steps=steps)
