"""The wire contract of /score: what is taken and what is answered.

Bodies are validated in one pass with the limits as pydantic's validation context, so that an answer of 422
lists everything that is wrong with a request, over-long texts included.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo
from pydantic_core import PydanticCustomError

from service.contract.text import canonicalize
from service.contract.validation import bad_fields
from service.errors import InvalidRequestError
from service.explaining.mode import ModeName
from service.explaining.traces import ExplanationOutcome
from service.scoring.types import Outcome, Priority, Source

BodyT = TypeVar("BodyT", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Most and longest that one request may hold; see Settings."""

    max_notes: int
    max_query_chars: int
    max_title_chars: int
    max_body_chars: int
    default_deadline_ms: int
    max_deadline_ms: int

    def deadline_ms(self, asked_ms: int | None) -> int:
        """The deadline to keep: the default when none is asked for, never over the longest."""
        return min(asked_ms or self.default_deadline_ms, self.max_deadline_ms)


def limit(name: str, unit: str) -> AfterValidator:
    """At most as long as the RequestLimits of that name."""

    def check(value: Any, info: ValidationInfo) -> Any:
        most = getattr(info.context, name)
        if len(value) > most:
            message = "has {found} {unit}, limit {limit}"
            found = {"found": f"{len(value):,}", "unit": unit, "limit": f"{most:,}"}
            raise PydanticCustomError("too_long", message, found)
        return value

    return AfterValidator(check)


def _not_blank(value: str) -> str:
    if not canonicalize(value):
        raise PydanticCustomError("blank", "must hold at least one visible character")
    return value


class Wire(BaseModel):
    """What is taken over the wire: strictly typed, and nothing unknown."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


Id = Annotated[str, Field(min_length=1, max_length=256)]
# Shows up in logs and in an HTTP header: one line of printable ASCII.
RequestId = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[\x20-\x7e]+$")]
Query = Annotated[str, limit("max_query_chars", "characters"), AfterValidator(_not_blank)]
Body = Annotated[str, limit("max_body_chars", "characters")]


EXAMPLE: dict[str, Any] = {
    "request_id": "r-1",
    "query": "quiet cafes to work in lisbon",
    "notes": [
        {"id": "n1", "title": "Cafes for laptops", "body": "Three quiet places with sockets and good light."}
    ],
    "deadline_ms": 5000,
}


class NoteBody(Wire):
    """One note to judge. Title and body may both be empty."""

    id: Id
    title: Annotated[str, limit("max_title_chars", "characters")] | None = None
    body: Body


def _distinct_ids(notes: list[NoteBody]) -> list[NoteBody]:
    counts = Counter(note.id for note in notes)
    if len(counts) < len(notes):
        repeated = [i for i, note in enumerate(notes) if counts[note.id] > 1]
        raise PydanticCustomError(
            "duplicate_id", "ids must be distinct; notes {which} share theirs", {"which": repeated}
        )
    return notes


class ScoreBody(Wire):
    """A query and the notes to grade against it."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    request_id: RequestId | None = Field(None, description="Echoed; made up when missing")
    query: Query
    notes: Annotated[
        list[NoteBody], Field(min_length=1), limit("max_notes", "notes"), AfterValidator(_distinct_ids)
    ]
    deadline_ms: int | None = Field(
        None, ge=1, description="Answer by then with what is scored; capped by a setting"
    )
    priority: Priority = Field("online", description="`batch` lets `online` go first")
    explain: bool = Field(
        False, description="Ask for a reasoning trace; served while explanation mode allows it"
    )
    criteria: str | None = Field(
        None, description="One of the checkpoint's criteria by name; the first is the default"
    )


class BadFieldBody(BaseModel):
    """One thing wrong with the request; `field` is a path like `notes.3.body`."""

    field: str
    message: str


class Problem(BaseModel):
    """RFC 9457. `type` is stable; `retryable` says whether the same request may succeed later."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    retryable: bool = False
    errors: list[BadFieldBody] | None = None


class ModelIdentity(BaseModel):
    """What scored: enough to tell any two answers apart that could differ."""

    name: str
    fingerprint: str
    criteria: str
    calibration: str


class StepBody(BaseModel):
    """One step of a trace: what was looked at, what was found, and the grade so far."""

    criterion: str
    finding: str
    grade: int


class ExplanationBody(BaseModel):
    """What became of a pair's trace.

    `off`: explanation mode is off. `deferred`: GET /explanations/{request_id} has it when it is written. `dropped`:
    explanations give way to scores; `reason` says how. `failed`: the engine did.
    """

    outcome: ExplanationOutcome
    reason: str | None = None
    text: str | None = Field(None, description="The trace as it was written")
    parsed: bool | None = Field(None, description="Whether steps could be read off the text")
    agrees: bool | None = Field(None, description="Whether the last step's grade is the served one")
    steps: list[StepBody] | None = None


class ResultBody(BaseModel):
    """One note's result. All but id, outcome and truncated are null unless it was scored."""

    id: str
    outcome: Outcome = Field(
        description="`scored`; or too much to do (`shed`), too late (`deadline_exceeded`), the engine's fault (`failed`)"
    )
    score: float | None = Field(None, ge=0, le=1, description="Expected gain / top gain")
    grade: int | None = Field(
        None,
        description="Most probable grade, or the one that the checkpoint's decision chooses for this criteria",
    )
    distribution: list[float] | None = Field(
        None, description="Calibrated probability of each grade, lowest first"
    )
    margin: float | None = Field(None, description="First minus second probability")
    label_mass: float | None = Field(
        None, description="Probability of all labels together before renormalising"
    )
    truncated: bool = Field(False, description="The note's tail was cut to the checkpoint's limit")
    source: Source | None = Field(
        None,
        description="Who read the pair: the engine now; before (`local`, `redis`: caches); or for another request at the same time (`coalesced`)",
    )
    explanation: ExplanationBody | None = None


class TimingBody(BaseModel):
    """Milliseconds; `cache`, `queue` and `engine` don't overlap and are within `total`."""

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


def parse_body(model: type[BodyT], body: bytes, limits: RequestLimits) -> BodyT:
    """The body as `model`. Raises InvalidRequestError listing every bad field, never quoting a value."""
    try:
        return model.model_validate_json(body, context=limits)
    except ValidationError as error:
        raise InvalidRequestError.listing(bad_fields(error, "body")) from None
