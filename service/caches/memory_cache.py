"""The cache in this process: the local tier, and the twin of Redis where there is none."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from cachetools import TLRUCache

from service.errors import CacheUnavailableError


@dataclass(slots=True)
class _Query:
    expires_at: float
    values: dict[bytes, bytes] = field(default_factory=dict)


class MemoryCache:
    """At most `max_entries` pairs; whole queries make room, the least recently used first.

    One query can fill it alone, its oldest pairs then make room. With `max_entries` 0 it stores nothing.
    Nothing in it awaits, so each call is atomic on its event loop.
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

    async def get_many(self, query_key: str, note_keys: Sequence[bytes]) -> list[bytes | None]:
        self._check_open()
        query = self._queries.get(query_key)
        values: Mapping[bytes, bytes] = query.values if query else {}
        return [values.get(key) for key in note_keys]

    async def put_many(self, query_key: str, entries: Mapping[bytes, bytes]) -> None:
        self._check_open()
        # Taken out and put back, since the store weighs an entry only when it is put.
        query = self._queries.pop(query_key, None) or _Query(self._clock() + self._ttl_s)
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
