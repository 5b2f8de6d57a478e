"""The cache that scoring uses: it asks this process's memory first, then Redis, and never raises."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Literal, get_args

from service.caches.base import Cache, CacheEntries
from service.caches.breaker import Breaker
from service.caches.memory_cache import MemoryCache
from service.errors import CacheUnavailableError
from service.observability.background import cancel_and_wait, run_forever
from service.observability.metrics import Metrics, initialize_series
from service.observability.redaction import log_redacted

Source = Literal["local", "redis"]
Result = Literal["hit", "miss", "error", "skipped", "written", "dropped"]
Put = Callable[[str, Mapping[bytes, bytes]], Awaitable[None]]

_log = logging.getLogger(__name__)


class TieredCache:
    """Reads and writes without raising: a failure of a tier is counted, reported to the breaker, and handled as a miss.

    After `start`, it pings Redis every `ping_every_s`. When every lookup hits the local tier, or without traffic,
    nothing else would notice that Redis went away or came back, and the breaker's gauge and alert would be stale.

    Args:
        max_pending_writes: most writes to Redis at once; further ones are dropped and counted. Keep it below the
            number of connections to Redis, or a burst of writes delays reads.
        drain_s: how long `close` waits for pending writes.
    """

    def __init__(
        self,
        local: MemoryCache,
        remote: Cache | None,
        breaker: Breaker,
        metrics: Metrics,
        *,
        max_pending_writes: int = 32,
        ping_every_s: float = 2.0,
        drain_s: float = 2.0,
    ) -> None:
        self._local = local
        self._remote = remote
        self._breaker = breaker
        self._operations = metrics.cache_operations
        self._max_pending_writes = max_pending_writes
        self._ping_every_s = ping_every_s
        self._drain_s = drain_s
        self._pending: dict[asyncio.Task[None], int] = {}  # each pending write and its number of pairs
        self._pinger: asyncio.Task[None] | None = None
        self._closed = False
        self._was_open = breaker.is_open
        metrics.cache_breaker_open.set_function(lambda: float(breaker.is_open))
        tiers = get_args(Source) if remote is not None else ("local",)
        initialize_series(metrics.cache_operations, tiers, get_args(Result))

    def start(self) -> None:
        """Ping Redis now and then every `ping_every_s`, until `close`."""
        if self._remote is not None and self._pinger is None:
            pinging = run_forever("the ping of the cache", self._ping, every_s=self._ping_every_s)
            self._pinger = asyncio.create_task(pinging)

    async def get_many(self, query_key: str, note_keys: Sequence[bytes]) -> list[tuple[bytes, Source] | None]:
        """Return the value of each note key in order and the tier that had it; None where no tier had it.

        Values from Redis are copied to the local tier, for as long as Redis would still keep them.
        """
        local, _ = await self._read("local", self._local, query_key, note_keys)
        missing = list(dict.fromkeys(key for key in note_keys if key not in local))
        remote: dict[bytes, bytes] = {}
        if self._remote is not None and missing:
            remote, remaining_s = await self._read("redis", self._remote, query_key, missing)
            put = partial(self._local.put_many, max_ttl_s=remaining_s)
            await self._write("local", put, query_key, remote)
        found: dict[bytes, tuple[bytes, Source]] = {key: (value, "local") for key, value in local.items()}
        found.update((key, (value, "redis")) for key, value in remote.items())
        return [found.get(key) for key in note_keys]

    async def put_many_behind(self, query_key: str, entries: Mapping[bytes, bytes]) -> None:
        """Store the entries in the local tier, and start to write them to Redis without waiting for it."""
        if not entries:
            return
        await self._write("local", self._local.put_many, query_key, entries)
        if self._remote is None:
            return
        if self._closed or len(self._pending) >= self._max_pending_writes:
            self._count("redis", "dropped", len(entries))
            return
        task = asyncio.create_task(self._write("redis", self._remote.put_many, query_key, dict(entries)))
        self._pending[task] = len(entries)
        task.add_done_callback(self._forget)

    async def close(self) -> None:
        """Stop the pings, wait up to `drain_s` for pending writes, drop the rest, and close both tiers."""
        self._closed = True
        if self._pinger is not None:
            await cancel_and_wait(self._pinger)
        if self._pending:
            await asyncio.wait(self._pending, timeout=self._drain_s)
        if late := dict(self._pending):
            self._count("redis", "dropped", sum(late.values()))
            await cancel_and_wait(*late)
        for cache in (self._local, self._remote):
            if cache is not None:
                await cache.close()

    async def _read(
        self, tier: Source, cache: Cache, query_key: str, note_keys: Sequence[bytes]
    ) -> tuple[dict[bytes, bytes], float]:
        found, remaining_s = CacheEntries([None] * len(note_keys), 0.0)
        with self._guard(tier, len(note_keys)) as admitted:
            if admitted:
                found, remaining_s = await cache.get_many(query_key, note_keys)
                hits = sum(value is not None for value in found)
                self._count(tier, "hit", hits)
                self._count(tier, "miss", len(found) - hits)
        values = zip(note_keys, found, strict=True)
        return {key: value for key, value in values if value is not None}, remaining_s

    async def _write(self, tier: Source, put: Put, query_key: str, entries: Mapping[bytes, bytes]) -> None:
        if not entries:
            return
        with self._guard(tier, len(entries)) as admitted:
            if admitted:
                await put(query_key, entries)
                self._count(tier, "written", len(entries))

    @contextmanager
    def _guard(self, tier: Source, pairs: int) -> Iterator[bool]:
        """Yield whether the block may call the tier, and handle the block's CacheUnavailableError."""
        attempt = self._breaker.attempt() if tier == "redis" else nullcontext(True)
        try:
            with attempt as admitted:
                if not admitted:
                    self._count(tier, "skipped", pairs)
                yield admitted
        except CacheUnavailableError as error:
            self._count(tier, "error", pairs)
            self._log_change(error)
        else:
            self._log_change(None)

    def _log_change(self, error: CacheUnavailableError | None) -> None:
        # Log once per change, not once per call: many calls fail together.
        if self._breaker.is_open == self._was_open:
            return
        self._was_open = self._breaker.is_open
        if self._was_open:
            _log.warning("the breaker opened, Redis is skipped until it answers again: %s", error)
        else:
            _log.info("the breaker closed, Redis is used again")

    async def _ping(self) -> None:
        with self._guard("redis", pairs=0) as admitted:
            if admitted and self._remote is not None:
                await self._remote.ping()

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._pending.pop(task, None)
        if not task.cancelled() and (error := task.exception()):
            log_redacted(_log, "writing to the cache failed", error)

    def _count(self, tier: Source, result: Result, pairs: int) -> None:
        self._operations.labels(tier, result).inc(pairs)
