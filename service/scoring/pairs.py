"""The pairs of one request: their texts, their keys, and the calls in flight that score them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from service.contract.labels import Reading
from service.contract.prompt import Note
from service.errors import EngineError, EngineLostError
from service.scoring.admission import Flow, ShedReason
from service.scoring.single_flight import Flight
from service.scoring.types import Priority, Source

PairKey = tuple[str, bytes]
"""The query key and the note key, as in the cache."""

FlightKey = tuple[Priority, str, bytes]
"""The priority, the query key and the note key."""

CLOSING = "the service is shutting down: retry elsewhere"


@dataclass(frozen=True, slots=True)
class EngineReading:
    """A reading from the engine, the time it was queued there, and the tokens of its prompt."""

    reading: Reading
    queued_s: float
    prompt_tokens: int
    computed_tokens: int


PairFlight = Flight[FlightKey, EngineReading | EngineError]


class CachedReading(NamedTuple):
    """A reading from the cache, and the tier that had it."""

    reading: Reading
    source: Source


class Attachment(NamedTuple):
    """A flight that a request is attached to, and whether the request started it or joined it."""

    flight: PairFlight
    source: Source


Cached = Mapping[int, CachedReading]
Attached = Mapping[int, Attachment]
Shed = Mapping[int, ShedReason]
Answers = Mapping[int, EngineReading | EngineError]
"""These four are keyed by the note's position in the request."""


def result_of_flight(flight: PairFlight) -> EngineReading | EngineError:
    """Return the result of a flight that is done."""
    if flight.task.cancelled():  # only `Scorer.close` cancels a call that a request is attached to
        return EngineLostError(CLOSING)
    return flight.task.result()


@dataclass(frozen=True, slots=True)
class Pairs:
    """The pairs of one request. `notes` and `note_keys` are in the order of the request's notes; texts are canonical."""

    flow: Flow
    criteria: str
    query: str
    notes: tuple[Note, ...]
    query_key: str
    note_keys: tuple[bytes, ...]

    def missing(self, *found: Mapping[int, object]) -> list[int]:
        """Return the positions that none of the mappings has."""
        return [index for index in range(len(self.notes)) if not any(index in each for each in found)]

    def key(self, index: int) -> PairKey:
        """Return the pair's key in the cache."""
        return (self.query_key, self.note_keys[index])

    def flight_key(self, index: int) -> FlightKey:
        """Return the key of a flight that this request starts for the pair."""
        return (self.flow.priority, *self.key(index))

    def joinable_keys(self, index: int) -> Iterator[FlightKey]:
        """Yield the keys of flights that this request may join for the pair: `online` first, no lower priority than its own."""
        for priority in ("online", "batch"):
            yield (priority, *self.key(index))
            if priority == self.flow.priority:
                return
