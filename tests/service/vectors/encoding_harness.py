"""An encoding with twins for its store and its encoder, which a test can break."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry

from service.caches.breaker import Breaker
from service.contract.checkpoint import Checkpoint
from service.contract.prompt import Note
from service.observability.metrics import Metrics
from service.vectors.encoding import Encoding, EncodingOptions
from service.vectors.fake_encoder import FakeEncoder
from service.vectors.memory_store import MemoryVectorStore
from service.vectors.stored_vectors import StoredVectors
from tests.clock import Clock


class FaultyStore(MemoryVectorStore):
    """A memory store whose calls raise `read_error` and `put_error` while they are set."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(max_bytes=1_000_000, ttl_s=1e9, clock=clock)
        self.read_error: Exception | None = None
        self.put_error: Exception | None = None
        self.calls = 0

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        self.calls += 1
        if self.read_error:
            raise self.read_error
        return await super().get_many(keys)

    async def put_many(self, entries: Mapping[bytes, bytes]) -> None:
        if self.put_error:
            raise self.put_error
        await super().put_many(entries)


class Harness:
    """An encoding with its parts. It is idle while `idle` is set; `encoder` makes vectors, as does every other FakeEncoder."""

    def __init__(self, checkpoint: Checkpoint, encoder: FakeEncoder | None = None, **options: float) -> None:
        second = checkpoint.vectors
        assert second
        self.width, self.per_note = second.reading.width, second.reading.per_note
        self.renderer = second.renderer
        self.registry = CollectorRegistry()
        self.clock = Clock()
        self.idle = True
        self.store = FaultyStore(self.clock)
        self.encoder = encoder or FakeEncoder(self.per_note, self.width)
        self._fingerprint = checkpoint.manifest.encoder_fingerprint
        self._metrics = Metrics(self.registry)
        self.stored = self.stored_by()
        self.encoding = Encoding(
            second.renderer,
            self.stored,
            self.encoder,
            lambda: self.idle,
            EncodingOptions.model_validate({"encoding_share": 1.0, **options}),
            self._metrics,
            clock=self.clock,
            poll_s=0.001,
        )

    def stored_by(self, **changes: Any) -> StoredVectors:
        """Return the vectors of this encoder, or of one that differs in these facts, in the same store."""
        facts = {
            "encoder_fingerprint": self._fingerprint,
            "per_note": self.per_note,
            "width": self.width,
        }
        breaker = Breaker(failures_to_open=2, open_for_s=10, clock=self.clock)
        return StoredVectors(self.store, breaker, self._metrics, **{**facts, **changes})

    def tokens(self, note: Note) -> tuple[int, ...]:
        """Return what the encoder reads of the note."""
        return self.renderer.notes([note])[0].token_ids

    def count(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"notegrade_{name}", labels)

    def lookups(self) -> dict[str, float]:
        """Return the counted lookups by result, without zeros."""
        results = ("hit", "miss", "invalid", "unavailable")
        counted = {result: self.count("vector_lookups_total", result=result) or 0.0 for result in results}
        return {result: notes for result, notes in counted.items() if notes}

    async def turns(self) -> None:
        """Give the worker many turns, in which it must do nothing."""
        for _ in range(20):
            await asyncio.sleep(0.001)
