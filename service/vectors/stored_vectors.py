"""Looks up and stores note vectors behind a breaker: only sound ones go in, and only sound ones come out."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from service.caches.breaker import Breaker
from service.contract.prompt import Note
from service.contract.vector_prompt import NoteVectors
from service.errors import CacheUnavailableError
from service.observability.metrics import Metrics, VectorLookup
from service.vectors.base import VectorStore
from service.vectors.packing import is_sound, pack_vectors, unpack_vectors, vectors_key

_log = logging.getLogger(__name__)


class StoredVectors:
    """The vectors that one encoder made, in a store. Used from one event loop."""

    def __init__(
        self,
        store: VectorStore,
        breaker: Breaker,
        metrics: Metrics,
        *,
        encoder_fingerprint: str,
        per_note: int,
        width: int,
    ) -> None:
        """The last three are `Manifest.encoder_fingerprint`, and the `per_note` and `width` of its `vectors`."""
        self._store = store
        self._breaker = breaker
        self._lookups = metrics.vector_lookups
        self._encoder_fingerprint = encoder_fingerprint
        self._per_note = per_note
        self._width = width

    def key(self, note: Note) -> bytes:
        """Return the note's key in the store."""
        return vectors_key(note, self._encoder_fingerprint)

    async def lookup(self, notes: Sequence[Note]) -> list[NoteVectors | None]:
        """Return the vectors of each note in order, None where there are none. Never raises, and counts each note."""
        keys = [self.key(note) for note in notes]
        try:
            values = await self._read(keys)
        except CacheUnavailableError:
            self._count("unavailable", len(notes))
            return [None] * len(notes)
        found = [self._unpack(key, value) for key, value in zip(keys, values, strict=True)]
        hits, missing = sum(vectors is not None for vectors in found), values.count(None)
        self._count("hit", hits)
        self._count("miss", missing)
        self._count("invalid", len(notes) - hits - missing)
        return found

    async def missing(self, keys: Sequence[bytes]) -> list[bytes]:
        """Return the keys that have no vectors, without counting them. Raises CacheUnavailableError."""
        values = await self._read(keys)
        return [key for key, value in zip(keys, values, strict=True) if self._unpack(key, value) is None]

    async def put(self, vectors: Mapping[bytes, NoteVectors]) -> int:
        """Store the vectors that are sound, and return how many that are. Raises CacheUnavailableError."""
        entries = {
            key: pack_vectors(each, self._width, key)
            for key, each in vectors.items()
            if is_sound(each.rows, self._per_note, self._width)
        }
        with self._guard():
            await self._store.put_many(entries)
        return len(entries)

    async def close(self) -> None:
        """Close the store."""
        await self._store.close()

    async def _read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        with self._guard():
            return await self._store.get_many(keys)

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Run the block, which calls the store. Raises CacheUnavailableError when it fails, or at once while the breaker is open."""
        was_open = self._breaker.is_open
        try:
            with self._breaker.attempt() as admitted:
                if not admitted:
                    raise CacheUnavailableError("the vector store is skipped until it answers again")
                yield
        except CacheUnavailableError as error:
            if self._breaker.is_open and not was_open:
                _log.warning(
                    "the breaker opened, notes are read as text until their store answers again: %s", error
                )
            raise

    def _unpack(self, key: bytes, value: bytes | None) -> NoteVectors | None:
        return None if value is None else unpack_vectors(value, self._per_note, self._width, key)

    def _count(self, result: VectorLookup, notes: int) -> None:
        self._lookups.labels(result).inc(notes)
