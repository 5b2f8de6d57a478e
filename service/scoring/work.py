"""One request under way: what has been read, what is in flight, what was shed."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from service.contract.labels import Reading
from service.contract.prompt import Note
from service.errors import EngineError, EngineLostError
from service.scoring.admission import Flow, ShedReason
from service.scoring.deadline import Deadline
from service.scoring.single_flight import Flight
from service.scoring.types import Priority, ScoringRequest, Source

PairKey = tuple[str, bytes]
"""Query key and note key, as in the cache."""

FlightKey = tuple[Priority, str, bytes]
"""Priority, query key and note key."""

CLOSING = "the service is shutting down: retry elsewhere"


@dataclass(frozen=True, slots=True)
class EngineReading:
    """A reading fresh from the engine, how long it waited there before its turn, and its prompt's tokens."""

    reading: Reading
    queued_s: float
    prompt_tokens: int
    computed_tokens: int


PairFlight = Flight[FlightKey, EngineReading | EngineError]


def landed(flight: PairFlight) -> EngineReading | EngineError:
    """What a flight that is done has brought."""
    if flight.task.cancelled():  # only closing the scorer cancels a call that somebody waits on
        return EngineLostError(CLOSING)
    return flight.task.result()


@dataclass(slots=True)
class Work:
    """The lists run over the request's notes, in its order; flights and shed hold positions in them."""

    request: ScoringRequest
    deadline: Deadline
    criteria: str
    query: str
    notes: list[Note]
    query_key: str
    note_keys: list[bytes]
    readings: list[Reading | None]
    sources: list[Source | None]
    flights: dict[int, PairFlight] = field(default_factory=dict)
    shed: dict[int, ShedReason] = field(default_factory=dict)

    def missing(self) -> list[int]:
        """Notes that are neither read, nor in flight, nor shed."""
        settled = self.flights.keys() | self.shed.keys()
        return [i for i, reading in enumerate(self.readings) if reading is None and i not in settled]

    @property
    def flow(self) -> Flow:
        """What it shares the engine as."""
        return Flow(self.request.priority, self.request.caller)

    def key(self, index: int) -> PairKey:
        """Of the pair, in the cache."""
        return (self.query_key, self.note_keys[index])

    def flight_key(self, index: int) -> FlightKey:
        """Of the pair, in flight for this request."""
        return (self.request.priority, *self.key(index))

    def flights_to_join(self, index: int) -> Iterator[FlightKey]:
        """Of the pair, in flight for anybody: `online` first, and nothing later than this request's own."""
        for priority in ("online", "batch"):
            yield (priority, *self.key(index))
            if priority == self.request.priority:
                return

    def board(self, index: int, flight: PairFlight, source: Source) -> None:
        """Have the note scored by a flight that was joined for it."""
        self.flights[index] = flight
        self.sources[index] = source

    def leave(self) -> None:
        """Leave every flight; whatever nobody else waits on is aborted."""
        for flight in self.flights.values():
            flight.leave()

    def engine_readings(self) -> Iterator[tuple[int, EngineReading]]:
        """The notes whose flights have brought a reading, with it."""
        for index, flight in self.flights.items():
            if flight.task.done() and isinstance(found := landed(flight), EngineReading):
                yield index, found
