"""The cache in this process's memory: the local tier, and the twin of Redis in tests."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from cachetools import TLRUCache

from service.caches.base import CacheEntries
from service.errors import CacheUnavailableError


@dataclass(slots=True)
class _Query:
    expires_at: float
    values: dict[bytes, bytes] = field(default_factory=dict)


class MemoryCache:
    """Holds at most `max_entries` pairs and evicts whole queries, the least recently used first.

    One query may fill it alone; then that query's oldest pairs are evicted. With `max_entries` 0 it stores nothing.
    No method awaits anything, so each call is atomic on its event loop.
    """

    def __init__(self, max_entries: int, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_entries = max_entries
        self._ttl_s = ttl_s
        self._clock = clock
        self._closed = False
        self._queries: TLRUCache[str, _Query] = TLRUCache(
            maxsize=max_entries,
            ttu=lambda _key, query, _now: query.expires_at,
            timer=clock,
            getsizeof=lambda query: len(query.values),
        )

    async def get_many(self, query_key: str, note_keys: Sequence[bytes]) -> CacheEntries:
        self._check_open()
        query = self._queries.get(query_key)
        if query is None:
            return CacheEntries([None] * len(note_keys), self._ttl_s)
        return CacheEntries([query.values.get(key) for key in note_keys], query.expires_at - self._clock())

    async def put_many(
        self, query_key: str, entries: Mapping[bytes, bytes], max_ttl_s: float = math.inf
    ) -> None:
        """Store the entries and replace older ones; the query's entries then expire after `max_ttl_s` at the latest."""
        self._check_open()
        now = self._clock()
        # Removed and put back: the store computes an entry's size only when it is put.
        query = self._queries.pop(query_key, None) or _Query(now + self._ttl_s)
        query.expires_at = min(query.expires_at, now + max_ttl_s)
        query.values.update(entries)
        self._drop_oldest(query.values)
        if query.values:
            self._queries[query_key] = query

    async def ping(self) -> None:
        self._check_open()

    async def close(self) -> None:
        self._closed = True
        self._queries.clear()

    def _check_open(self) -> None:
        if self._closed:
            raise CacheUnavailableError("the memory cache is closed")

    def _drop_oldest(self, values: dict[bytes, bytes]) -> None:
        for key in list(values)[: max(0, len(values) - self._max_entries)]:
            del values[key]
