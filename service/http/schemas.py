"""The wire contract of /score: the bodies of requests and answers.

Bodies are validated in one pass, with the limits and the criteria as pydantic's validation context, so that an answer of 422
lists every bad field, over-long texts and unknown criteria included.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo
from pydantic_core import PydanticCustomError

from service.contract.manifest import ReadingKind
from service.contract.text import canonicalize
from service.errors import BadField
from service.explaining.mode import ModeName
from service.explaining.traces import ExplanationResult
from service.scoring.types import Outcome, Priority, Source


class RequestLimits(BaseModel):
    """The settings that limit one request."""

    model_config = ConfigDict(frozen=True)

    max_notes: int = Field(256, ge=1, description="Most notes in a request")
    max_query_chars: int = Field(
        2_000, ge=1, description="Longest query, in characters (the checkpoint also limits its tokens)"
    )
    max_title_chars: int = Field(2_000, ge=1, description="Longest title, in characters")
    max_body_chars: int = Field(
        100_000, ge=1, description="Longest body, in characters; what the checkpoint can't read of it is cut"
    )
    max_request_bytes: int = Field(1_000_000, ge=1_000, description="Largest request body, in bytes")
    request_body_timeout_s: float = Field(
        10.0, gt=0, description="Longest wait for a request's body to arrive"
    )
    default_deadline_ms: int = Field(10_000, ge=1, description="Deadline of a request that states none")
    max_deadline_ms: int = Field(
        60_000, ge=1, description="Longest deadline; a longer one that is asked for is cut to it"
    )

    def deadline_ms(self, asked_ms: int | None) -> int:
        """Return the deadline to keep: the default if the request has none, and never more than the longest."""
        return min(asked_ms or self.default_deadline_ms, self.max_deadline_ms)


@dataclass(frozen=True, slots=True)
class BodyChecks:
    """The limits and the names of the checkpoint's criteria, which request bodies are validated against."""

    limits: RequestLimits
    criteria: Collection[str] = ()


def limit(name: str, unit: str) -> AfterValidator:
    """Refuse values that are longer than the RequestLimits field of that name; the validation context is a BodyChecks."""

    def check(value: Any, info: ValidationInfo) -> Any:
        most = getattr(cast(BodyChecks, info.context).limits, name)
        if len(value) > most:
            message = "has {found} {unit}, limit {limit}"
            found = {"found": f"{len(value):,}", "unit": unit, "limit": f"{most:,}"}
            raise PydanticCustomError("too_long", message, found)
        return value

    return AfterValidator(check)


def _known_criteria(value: str, info: ValidationInfo) -> str:
    known = cast(BodyChecks, info.context).criteria
    if value not in known:
        message = "this checkpoint has no such criteria; it has {known}"
        raise PydanticCustomError("unknown_criteria", message, {"known": ", ".join(known)})
    return value


def _not_blank(value: str) -> str:
    if not canonicalize(value):
        raise PydanticCustomError("blank", "must hold at least one visible character")
    return value


class Wire(BaseModel):
    """A body of a request: strictly typed, without unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


Id = Annotated[str, Field(min_length=1, max_length=256)]
# It is written into logs and an HTTP header: one line of printable ASCII.
RequestId = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[\x20-\x7e]+$")]
Query = Annotated[str, limit("max_query_chars", "characters"), AfterValidator(_not_blank)]
Title = Annotated[str, limit("max_title_chars", "characters")]
Body = Annotated[str, limit("max_body_chars", "characters")]
Criteria = Annotated[
    Annotated[str, AfterValidator(_known_criteria)] | None,
    Field(description="Name of one of the checkpoint's criteria; the first is the default"),
]
DeadlineMs = Annotated[
    Annotated[int, Field(ge=1, strict=True)] | None,
    Field(description="The answer comes by then; a setting limits it"),
]
PRIORITY = "`online` requests are scored before `batch` requests"


EXAMPLE: dict[str, Any] = {
    "request_id": "r-1",
    "query": "quiet cafes to work in lisbon",
    "notes": [
        {"id": "n1", "title": "Cafes for laptops", "body": "Three quiet places with sockets and good light."}
    ],
    "deadline_ms": 5000,
}


class NoteBody(Wire):
    """One note to grade. Title and body may both be empty."""

    id: Id
    title: Title | None = None
    body: Body


def _distinct_ids(notes: list[NoteBody]) -> list[NoteBody]:
    counts = Counter(note.id for note in notes)
    if len(counts) < len(notes):
        repeated = [i for i, note in enumerate(notes) if counts[note.id] > 1]
        raise PydanticCustomError(
            "duplicate_id", "ids must be distinct; notes {which} share theirs", {"which": repeated}
        )
    return notes


Notes = Annotated[
    list[NoteBody], Field(min_length=1), limit("max_notes", "notes"), AfterValidator(_distinct_ids)
]


class ScoreBody(Wire):
    """A query and the notes to grade against it."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    request_id: RequestId | None = Field(None, description="Returned in the answer; generated if missing")
    query: Query
    notes: Notes
    deadline_ms: DeadlineMs = None
    priority: Priority = Field("online", description=PRIORITY)
    explain: bool = Field(False, description="Ask for a reasoning trace; explanation mode must allow it")
    criteria: Criteria = None


class Problem(BaseModel):
    """A problem (RFC 9457). `type` is stable; `retryable` says whether the same request may succeed later."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    retryable: bool = False
    errors: list[BadField] | None = None


class ModelIdentity(BaseModel):
    """Identifies the model and what chooses the grade. Processors and readings of a note still move a score a little."""

    name: str
    fingerprint: str = Field(
        description="Hash of all that changes a raw probability: weights, prompt, limits"
    )
    criteria: str
    calibration: str = Field(description="Name of the calibration; a refit may keep it")
    grading_version: str = Field(
        description="Hash of the calibration and the decision rules, which the fingerprint does not cover"
    )


class ResultBody(BaseModel):
    """One note's result. All fields but id, outcome and truncated are null unless it was scored."""

    id: str
    outcome: Outcome = Field(
        description="`scored`, `shed` (the service is overloaded, or reads only notes whose vectors are stored), `deadline_exceeded`, or `failed` (the engine failed)"
    )
    score: float | None = Field(None, ge=0, le=1, description="Expected gain divided by the highest gain")
    grade: int | None = Field(
        None,
        description="Most probable grade, or the grade that the checkpoint's decision rule chooses for these criteria",
    )
    distribution: list[float] | None = Field(
        None, description="Calibrated probability of each grade, lowest first"
    )
    margin: float | None = Field(None, description="First minus second probability")
    label_mass: float | None = Field(
        None, description="Probability of all labels together before renormalising"
    )
    truncated: bool = Field(False, description="Whether the note's end was cut to the checkpoint's limit")
    source: Source | None = Field(
        None,
        description="Where the score came from: the `engine`, a cache (`local`, `redis`), or a request for the same pair at the same time (`coalesced`)",
    )
    reading: ReadingKind | None = Field(
        None, description="Whether the note was read as `text`, or as `vectors` that were made of it before"
    )
    explanation: ExplanationResult | None = None


class TimingBody(BaseModel):
    """Milliseconds; `cache`, `queue` and `engine` do not overlap and are parts of `total`."""

    total: float
    cache: float
    queue: float
    engine: float


class ScoreResponse(BaseModel):
    """Results in the order of the request's notes."""

    request_id: str
    model: ModelIdentity
    explanation_mode: ModeName = Field(description="The mode that applied")
    results: list[ResultBody]
    timing_ms: TimingBody
