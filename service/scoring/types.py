"""What goes into the scorer and what comes out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from service.contract.judgement import Judgement

Outcome = Literal["scored", "deadline_exceeded", "shed", "failed"]
Source = Literal["engine", "redis", "local", "coalesced"]
Priority = Literal["online", "batch"]


@dataclass(frozen=True, slots=True)
class ScoringNote:
    """A note as the caller sent it; `id` is the caller's and distinct within a request."""

    id: str
    title: str | None
    body: str


@dataclass(frozen=True, slots=True)
class ScoringRequest:
    """One query and its notes. `deadline_ms` counts from the moment that the scorer takes the request.

    `caller` is whom the engine is shared with fairly: the id of a key.
    """

    request_id: str
    query: str
    notes: tuple[ScoringNote, ...]
    deadline_ms: int
    priority: Priority = "online"
    criteria: str | None = None
    caller: str = ""


@dataclass(frozen=True, slots=True)
class PairResult:
    """What became of one pair; judgement and source are there when the outcome is `scored`."""

    note_id: str
    outcome: Outcome
    judgement: Judgement | None = None
    source: Source | None = None
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time went, in milliseconds; the parts don't overlap.

    Attributes:
        total: from taking the request to its answer.
        cache: reading the pair cache.
        queue: until the engine scheduled the first of the pairs; 0 when none went there.
        engine: from then to the last answer of the engine, or to the deadline.
    """

    total: float
    cache: float
    queue: float
    engine: float


@dataclass(frozen=True, slots=True)
class ScoringAnswer:
    """Results in the order of the request's notes.

    `engine_tokens` counts the prompt tokens of the pairs that the engine scored for this very request; `outcomes` and `sources` count
    its pairs.
    """

    request_id: str
    criteria: str
    results: tuple[PairResult, ...]
    timing: Timing
    engine_tokens: int
    outcomes: Mapping[Outcome, int]
    sources: Mapping[Source, int]
