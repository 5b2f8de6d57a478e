"""The requests and answers of the scorer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from service.contract.judgement import Judgement
from service.contract.manifest import ReadingKind

Outcome = Literal["scored", "deadline_exceeded", "shed", "failed"]
Source = Literal["engine", "redis", "local", "coalesced"]
Priority = Literal["online", "batch"]


@dataclass(frozen=True, slots=True)
class ScoringNote:
    """A note as the caller sent it. The caller chooses `id`, which is distinct within a request."""

    id: str
    title: str | None
    body: str


@dataclass(frozen=True, slots=True)
class ScoringRequest:
    """One query and its notes.

    Attributes:
        deadline_ms: the time that the caller allows for the answer.
        caller: the id of the caller's key; callers share the engine fairly.
        all_or_nothing: whether the request fails unless every pair is scored.
    """

    request_id: str
    query: str
    notes: tuple[ScoringNote, ...]
    deadline_ms: int
    priority: Priority = "online"
    criteria: str | None = None
    caller: str = ""
    all_or_nothing: bool = False


@dataclass(frozen=True, slots=True)
class PairResult:
    """The outcome of one pair. It has a judgement, a source and a reading if the outcome is `scored`."""

    note_id: str
    outcome: Outcome
    judgement: Judgement | None = None
    source: Source | None = None
    truncated: bool = False
    reading: ReadingKind | None = None


@dataclass(frozen=True, slots=True)
class Timing:
    """The latency of a request and of its stages, in milliseconds. The stages do not overlap.

    Attributes:
        total: from the start of the request to its last pair.
        cache: reading the pair cache.
        queue: until the engine scheduled the first of the pairs; 0 when no pair went to the engine.
        engine: from then to the engine's last answer, or to the deadline.
    """

    total: float
    cache: float
    queue: float
    engine: float


@dataclass(frozen=True, slots=True)
class ScoringAnswer:
    """The results in the order of the request's notes.

    Attributes:
        engine_tokens: the prompt tokens of the pairs that this request itself sent to the engine.
        outcomes, sources: how many pairs had each outcome, and each source.
    """

    request_id: str
    criteria: str
    results: tuple[PairResult, ...]
    timing: Timing
    engine_tokens: int
    outcomes: Mapping[Outcome, int]
    sources: Mapping[Source, int]
