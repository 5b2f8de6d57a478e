"""Encodes notes when the service is idle, a small batch at a time, so that later queries find their vectors."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, Field

from service.contract.prompt import Note
from service.contract.vector_prompt import NoteVectors, VectorRenderer
from service.errors import CacheUnavailableError, EncoderError
from service.observability.background import cancel_and_wait, run_forever
from service.observability.metrics import EncodingOutcome, Metrics
from service.vectors.base import NoteEncoder
from service.vectors.stored_vectors import StoredVectors

# How often it asks whether the service is idle, or the store is back, while notes wait.
POLL_S = 0.1
# A note may have many times this many characters, of which the encoder reads the first; a backlog of such notes holds fewer.
CHARACTERS_A_NOTE = 4_000
# After a failure, so that an encoder or a store that always fails does not use up the backlog.
PAUSE_S = 1.0

logger = logging.getLogger(__name__)


class EncodingOptions(BaseModel):
    """The settings of encoding."""

    model_config = ConfigDict(frozen=True)

    encoding_backlog: int = Field(
        1_000,
        ge=1,
        description="Most notes that wait to be encoded as vectors, with at most 4,000 characters each on average; further ones are refused",
    )
    encoding_batch: int = Field(
        4,
        ge=1,
        description="Notes that are encoded before it is asked again whether the service is idle",
    )
    encoding_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Largest share of the time in which notes are encoded, on an idle service",
    )


class Offered(NamedTuple):
    """What became of notes that were offered: they wait now, are stored or waited already, or found the backlog full."""

    accepted: int
    known: int
    refused: int


@dataclass(frozen=True, slots=True)
class EncodingStatus:
    """Notes that wait, and notes that were stored and failed since the start of this process."""

    backlog: int
    stored: int
    failed: int


class _Waiting(NamedTuple):
    note: Note
    since: float


class Encoding:
    """Keeps a bounded backlog of notes and works it off in the background. Start it once, close it once.

    It encodes only while `is_idle()`, and rests after each batch so that it is at work for at most `encoding_share` of the
    time. A batch that the encoder fails on, or dies of, is tried once more; a note that fails is dropped, and may be offered
    again. Used from one event loop.
    """

    def __init__(
        self,
        renderer: VectorRenderer,
        stored: StoredVectors,
        encoder: NoteEncoder,
        is_idle: Callable[[], bool],
        options: EncodingOptions,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
        poll_s: float = POLL_S,
    ) -> None:
        self._renderer = renderer
        self._stored = stored
        self._encoder = encoder
        self._is_idle = is_idle
        self._options = options
        self._metrics = metrics
        self._clock = clock
        self._poll_s = poll_s
        # By key in the store, in order of arrival; the batch at work is among them.
        self._waiting: dict[bytes, _Waiting] = {}
        self._characters = 0  # of those that wait
        self._failed_once: set[bytes] = set()  # of those that wait
        self._arrival = asyncio.Event()
        self._rests_until = clock()
        self._counts: dict[EncodingOutcome, int] = dict.fromkeys(get_args(EncodingOutcome), 0)
        self._is_failing = False
        self._worker: asyncio.Task[None] | None = None
        self._closed = False
        metrics.encoding_backlog.set_function(lambda: len(self._waiting))
        metrics.encoding_oldest_seconds.set_function(self._longest_wait_s)

    def start(self) -> None:
        """Start to work the backlog off. The encoder starts with the first batch."""
        if self._worker is None:
            self._worker = asyncio.create_task(run_forever("the encoding of notes", self._encode_next))

    async def close(self) -> None:
        """Stop at once, and close the encoder and the store. Notes that wait are dropped."""
        self._closed = True
        if self._worker is not None:
            await cancel_and_wait(self._worker)
        self._waiting.clear()
        self._characters = 0
        self._failed_once.clear()
        await self._encoder.close()
        await self._stored.close()

    async def lookup(self, notes: Sequence[Note]) -> list[NoteVectors | None]:
        """Return the vectors of each note in order, None where there are none. The texts must be canonical. Never raises."""
        return await self._stored.lookup(notes)

    async def offer(self, notes: Sequence[Note]) -> Offered:
        """Queue the notes whose vectors are not stored. While the store is down, all of them count as not stored."""
        by_key = {self._stored.key(note): note for note in notes}
        try:
            missing = await self._stored.missing(list(by_key))
        except CacheUnavailableError:
            missing = list(by_key)
        offered = self.queue([by_key[key] for key in missing])
        return offered._replace(known=offered.known + len(notes) - len(missing))

    def queue(self, notes: Sequence[Note]) -> Offered:
        """Queue notes that `lookup` has just not found. The texts must be canonical."""
        accepted = refused = 0
        for note in notes:
            key = self._stored.key(note)
            if key in self._waiting:
                continue
            if self._closed or not self._has_room(note):
                refused += 1
                continue
            self._waiting[key] = _Waiting(note, self._clock())
            self._characters += _length(note)
            accepted += 1
        if accepted:
            self._arrival.set()
        self._count("refused", refused)
        return Offered(accepted, len(notes) - accepted - refused, refused)

    def status(self) -> EncodingStatus:
        """Return how far encoding is."""
        return EncodingStatus(len(self._waiting), self._counts["encoded"], self._counts["failed"])

    def _has_room(self, note: Note) -> bool:
        most = self._options.encoding_backlog
        characters = self._characters + _length(note)
        return len(self._waiting) < most and (not self._waiting or characters <= most * CHARACTERS_A_NOTE)

    async def _encode_next(self) -> None:
        if not self._waiting:
            self._arrival.clear()
            await self._arrival.wait()
        rest_s = self._rests_until - self._clock()
        if rest_s > 0 or not self._is_idle():
            await asyncio.sleep(min(rest_s, self._poll_s) if rest_s > 0 else self._poll_s)
            return
        batch = self._next_batch()
        try:
            # Another replica may have stored some meanwhile.
            missing = await self._stored.missing(list(batch))
        except CacheUnavailableError:
            await asyncio.sleep(self._poll_s)  # what is encoded now could not be stored: the batch waits
            return
        started, stored, again = self._clock(), 0, set[bytes]()
        try:
            if missing:
                stored = await self._encode({key: batch[key].note for key in missing})
        except EncoderError as error:
            self._log_failure(str(error))
            again = set(missing) - self._failed_once
        except CacheUnavailableError as error:
            self._log_failure(str(error))
        else:
            if stored < len(missing):
                self._log_failure("the encoder made vectors of another shape, not finite or all zeros")
            else:
                self._is_failing = False
        finally:
            self._dequeue(batch, again)
            self._finish(stored, len(missing) - stored, len(again), self._clock() - started)

    def _longest_wait_s(self) -> float:
        now = self._clock()
        return max((now - each.since for each in self._waiting.values()), default=0.0)

    def _next_batch(self) -> dict[bytes, _Waiting]:
        """Return the next notes, and one that was in a batch that failed alone: another may have been to blame."""
        fresh = (each for each in self._waiting.items() if each[0] not in self._failed_once)
        size = self._options.encoding_batch
        return dict(islice(fresh, size)) or dict(islice(self._waiting.items(), 1))

    def _dequeue(self, batch: Mapping[bytes, _Waiting], again: set[bytes]) -> None:
        for key, waiting in batch.items():
            del self._waiting[key]
            self._failed_once.discard(key)
            if key in again:
                self._waiting[key] = waiting  # behind all others: one bad note must not hold them up
                self._failed_once.add(key)
            else:
                self._characters -= _length(waiting.note)

    async def _encode(self, notes: Mapping[bytes, Note]) -> int:
        """Return how many of the notes have sound vectors, which are stored."""
        inputs = await asyncio.to_thread(self._renderer.notes, list(notes.values()))
        await self._encoder.start()
        rows = await self._encoder.encode([each.token_ids for each in inputs])
        made = zip(notes, rows, inputs, strict=True)
        return await self._stored.put({key: NoteVectors(each, of.truncated) for key, each, of in made})

    def _finish(self, stored: int, not_stored: int, again: int, seconds: float) -> None:
        self._count("encoded", stored)
        self._count("failed", not_stored - again)
        rest_s = seconds / self._options.encoding_share - seconds
        self._rests_until = self._clock() + (max(rest_s, PAUSE_S) if not_stored else rest_s)
        if stored or not_stored:
            self._metrics.encoding_seconds.observe(seconds)

    def _count(self, outcome: EncodingOutcome, notes: int) -> None:
        self._counts[outcome] += notes
        self._metrics.encoded_notes.labels(outcome).inc(notes)

    def _log_failure(self, why: str) -> None:
        if not self._is_failing:  # once per outage: the metric counts every note
            logger.warning("encoding notes fails", extra={"detail": why})
        self._is_failing = True


def _length(note: Note) -> int:
    return len(note.title) + len(note.body)
