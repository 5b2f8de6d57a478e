"""A tiered cache over two in-memory tiers; a test can break the second one."""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence

from prometheus_client import CollectorRegistry

from service.caches.base import Cache, CacheEntries
from service.caches.breaker import Breaker
from service.caches.memory_cache import MemoryCache
from service.caches.tiered_cache import TieredCache
from service.errors import CacheUnavailableError
from service.observability.metrics import Metrics

TTL_S = 60.0


async def read_values(cache: Cache, query_key: str, note_keys: Sequence[bytes]) -> list[bytes | None]:
    """Return only the values that the cache has for these notes."""
    return (await cache.get_many(query_key, note_keys)).values


class FaultyCache(MemoryCache):
    """A memory cache whose calls raise `error` while it is set, and wait while `gate` is closed."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(max_entries=1000, ttl_s=TTL_S, clock=clock)
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.calls = 0
        self.called = asyncio.Event()

    async def get_many(self, query_key: str, note_keys: Sequence[bytes]) -> CacheEntries:
        await self._pass()
        return await super().get_many(query_key, note_keys)

    async def put_many(
        self, query_key: str, entries: Mapping[bytes, bytes], max_ttl_s: float = math.inf
    ) -> None:
        await self._pass()
        await super().put_many(query_key, entries, max_ttl_s)

    async def ping(self) -> None:
        await self._pass()
        await super().ping()

    async def _pass(self) -> None:
        self.calls += 1
        self.called.set()
        await self.gate.wait()
        if self.error is not None:
            raise self.error


class Harness:
    """A tiered cache with its parts, clock and metrics. Advance `now` to let time pass in all of them."""

    def __init__(self, *, has_remote: bool = True, drain_s: float = 5) -> None:
        self.registry = CollectorRegistry()
        self.now = 0.0
        self.local = MemoryCache(max_entries=1000, ttl_s=TTL_S, clock=lambda: self.now)
        self.remote = FaultyCache(lambda: self.now)
        self.cache = TieredCache(
            self.local,
            self.remote if has_remote else None,
            Breaker(failures_to_open=2, open_for_s=10, clock=lambda: self.now),
            Metrics(self.registry),
            max_pending_writes=3,
            ping_every_s=0.001,
            drain_s=drain_s,
        )

    def counts(self, tier: str) -> dict[str, float]:
        """Return the counted pairs by result, without zeros."""
        results = ("hit", "miss", "error", "skipped", "written", "dropped")
        counted = {result: self.count(tier, result) for result in results}
        return {result: value for result, value in counted.items() if value}

    def count(self, tier: str, result: str) -> float | None:
        name = "notegrade_cache_operations_total"
        return self.registry.get_sample_value(name, {"tier": tier, "result": result})

    @property
    def breaker_gauge(self) -> float | None:
        return self.registry.get_sample_value("notegrade_cache_breaker_open")

    async def open_breaker(self) -> None:
        self.remote.error = CacheUnavailableError("down")
        for _ in range(2):
            await self.cache.get_many("other", [b"a"])
        assert self.breaker_gauge == 1
