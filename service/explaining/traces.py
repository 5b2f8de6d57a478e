"""The result of explaining a pair: a trace's text, and the steps parsed from it with their citations."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Literal

from pydantic import Field

from service.contract.citations import Citation, CitedField, are_true, read_citations
from service.contract.manifest import ReadingKind
from service.contract.prompt import Note
from service.contract.text import canonicalize
from service.contract.trace import Step, parse_explanation

ExplanationOutcome = Literal["made", "off", "deferred", "dropped", "failed"]


@dataclass(frozen=True, slots=True)
class GradedPair:
    """A pair, the grade that was served for it, and how its note was read for that."""

    query: str
    title: str | None
    body: str
    criteria: str
    grade: int
    reading: ReadingKind = "text"


@dataclass(frozen=True, slots=True)
class TraceCitation:
    """A text that a finding quotes from the query or the note, or words of the query that it says the note lacks."""

    field: Annotated[CitedField, Field(description="The text that is quoted; `query` if `missing`")]
    text: Annotated[str, Field(description="The quoted text")]
    found: Annotated[
        bool,
        Field(
            description="Whether the citation is true: the text is in its field, in any case and in whole words or, "
            "if `missing`, its words are in the query and not in the note"
        ),
    ]
    missing: Annotated[
        bool, Field(description="Whether it claims that the note lacks these words of the query")
    ] = False


@dataclass(frozen=True, slots=True)
class TraceStep:
    """One step of a trace: the criterion, the finding, the grade so far, and what the finding cites, in its order."""

    criterion: str
    finding: str
    grade: int
    citations: tuple[TraceCitation, ...] = ()


@dataclass(frozen=True, slots=True)
class ExplanationResult:
    """The outcome of explaining a pair, and its trace if it was made.

    `off`: explanation mode is off. `deferred`: GET /explanations/{request_id} returns it once it is finished. `dropped`:
    scoring takes precedence; `reason` says why. `failed`: the engine failed.
    """

    outcome: ExplanationOutcome
    reason: str | None = None
    text: Annotated[str | None, Field(description="The trace as it was generated")] = None
    well_formed: Annotated[
        bool | None, Field(description="Whether the text is exactly the steps of the criteria, in order")
    ] = None
    agrees: Annotated[
        bool | None,
        Field(
            description="Whether the last step's grade is the served one; null if the text is not well-formed"
        ),
    ] = None
    grounded: Annotated[
        bool | None,
        Field(
            description="Whether all citations are true; null if there are none, or the text is not well-formed"
        ),
    ] = None
    steps: tuple[TraceStep, ...] | None = None
    text_grade: Annotated[
        int | None,
        Field(
            description="The grade of the note's text, where the served grade is that of its vectors; null if the served "
            "grade was read from the text"
        ),
    ] = None


def read_trace(
    generated: str, criteria_steps: Sequence[str], top_grade: int, pair: GradedPair
) -> ExplanationResult:
    """Parse what the model generated after the served grade and the cue, and compare it with that grade and with the pair's texts.

    The text is well-formed if it is exactly the steps of the criteria, in order.
    """
    text = generated.strip("\n")
    found = parse_explanation(generated, criteria_steps, top_grade)
    if found is None:
        return ExplanationResult("made", text=text, well_formed=False, steps=())
    query, note = canonicalize(pair.query), Note(canonicalize(pair.title), canonicalize(pair.body))
    citations = [read_citations(step.finding, query, note) for step in found]
    return ExplanationResult(
        "made",
        text=text,
        well_formed=True,
        agrees=found[-1].grade == pair.grade,
        grounded=are_true([citation.found for citation in chain.from_iterable(citations)]),
        steps=tuple(map(_to_wire, found, citations)),
    )


def _to_wire(step: Step, citations: Sequence[Citation]) -> TraceStep:
    shown = tuple(TraceCitation(each.field, each.text, each.found, each.missing) for each in citations)
    return TraceStep(step.criterion, step.finding, step.grade, shown)
