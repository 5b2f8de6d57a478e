"""The service's answers. Fields that a later version adds are ignored."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

Priority = Literal["online", "batch"]
Outcome = Literal["scored", "deadline_exceeded", "shed", "failed"]
Source = Literal["engine", "redis", "local", "coalesced"]


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Step(_Answer):
    """One step of a trace: the criterion, the finding, the grade so far, and whether the finding is true; None: can't be checked."""

    criterion: str
    finding: str
    grade: int
    is_true: bool | None = None


class Explanation(_Answer):
    """The outcome of explaining a pair, and its trace if it was made; `explanations` returns `deferred` ones."""

    outcome: str
    reason: str | None = None
    text: str | None = None
    parsed: bool | None = None
    agrees: bool | None = None
    steps: list[Step] | None = None


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
