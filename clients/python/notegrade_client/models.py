"""What the service answers. Fields that a later service adds are passed over."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

Priority = Literal["online", "batch"]
Outcome = Literal["scored", "deadline_exceeded", "shed", "failed"]
Source = Literal["engine", "redis", "local", "coalesced"]


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Step(_Answer):
    """One step of a trace: what was looked at, what was found, and the grade so far."""

    criterion: str
    finding: str
    grade: int


class Explanation(_Answer):
    """What became of a pair's trace; `deferred` ones are asked for with `explanations`."""

    outcome: str
    reason: str | None = None
    text: str | None = None
    parsed: bool | None = None
    agrees: bool | None = None
    steps: list[Step] | None = None


class Result(_Answer):
    """One note's result. All but id, outcome and truncated are None unless it was scored.

    `score` is the expected gain over the top gain, in [0, 1]; `distribution` the probability of each grade, lowest first.
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
    """What scored: enough to tell any two answers apart that could differ."""

    name: str
    fingerprint: str
    criteria: str
    calibration: str


class Timing(_Answer):
    """The service's milliseconds."""

    total: float
    cache: float
    queue: float
    engine: float


class ScoreAnswer(_Answer):
    """Results in the order of the notes that were asked about."""

    request_id: str
    model: Model
    explanation_mode: str
    results: list[Result]
    timing_ms: Timing
