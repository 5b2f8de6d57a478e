"""The service's answers. Fields that a later version adds are ignored."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

Priority = Literal["online", "batch"]
Outcome = Literal["scored", "deadline_exceeded", "shed", "failed"]
Source = Literal["engine", "redis", "local", "coalesced"]
CitedField = Literal["query", "title", "body"]


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Citation(_Answer):
    """A text that a finding quotes from the query or the note; if `missing`, words of the query that it says the note lacks.

    `found` says whether that is true.
    """

    field: CitedField
    text: str
    found: bool
    missing: bool = False


class Step(_Answer):
    """One step of a trace: the criterion, the finding, the grade so far, and the finding's citations in their order."""

    criterion: str
    finding: str
    grade: int
    citations: list[Citation] = []


class Explanation(_Answer):
    """The outcome of explaining a pair, and its trace if it was made; `explanations` returns `deferred` ones.

    `agrees`: the last step's grade is the served one. `grounded`: all citations are true; None if there are none. Both are
    None unless the trace is well-formed. `text_grade`: the grade of the note's text, where the served one is of its vectors.
    """

    outcome: str
    reason: str | None = None
    text: str | None = None
    well_formed: bool | None = None
    agrees: bool | None = None
    grounded: bool | None = None
    steps: list[Step] | None = None
    text_grade: int | None = None


class DeferredExplanation(Explanation):
    """A finished explanation, and the id of its note."""

    note_id: str


class Explanations(_Answer):
    """The finished ones of a request's deferred explanations."""

    explanations: list[DeferredExplanation]


class Result(_Answer):
    """One note's result. All fields but id, outcome and truncated are None unless it was scored.

    `score` is the expected gain divided by the highest gain, in [0, 1]; `distribution` the probability of each grade, lowest first.
    """

    id: str
    outcome: Outcome
    score: float | None = None
    grade: int | None = None
    distribution: list[float] | None = None
    margin: float | None = None
    label_mass: float | None = None
    truncated: bool = False
    source: Source | None = None
    reading: Literal["text", "vectors"] | None = None
    explanation: Explanation | None = None


class Model(_Answer):
    """Identifies the model: answers with equal identities have equal scores and grades.

    `fingerprint` covers all that changes a raw probability; `grading_version` covers the calibration and the decision rules.
    It is None from a service that is older than it.
    """

    name: str
    fingerprint: str
    criteria: str
    calibration: str
    grading_version: str | None = None


class Timing(_Answer):
    """The service's times in milliseconds."""

    total: float
    cache: float
    queue: float
    engine: float


class ScoreAnswer(_Answer):
    """The results, in the order of the notes."""

    request_id: str
    model: Model
    explanation_mode: str
    results: list[Result]
    timing_ms: Timing
