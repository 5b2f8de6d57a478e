"""The vector store in this process's memory: for a single replica without Redis, and the twin of Redis in tests."""

import time
from collections.abc import Callable, Mapping, Sequence

from cachetools import TTLCache

from service.errors import CacheUnavailableError


class MemoryVectorStore:
    """Holds at most `max_bytes` of values and evicts the least recently used ones first. It drops a larger value.

    No method awaits anything, so each call is atomic on its event loop.
    """

    def __init__(self, max_bytes: int, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._closed = False
        self._values: TTLCache[bytes, bytes] = TTLCache(max_bytes, ttl_s, timer=clock, getsizeof=len)

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        self._check_open()
        return [self._values.get(key) for key in keys]

    async def put_many(self, entries: Mapping[bytes, bytes]) -> None:
        self._check_open()
        for key, value in entries.items():
            self._values.pop(key, None)
            if len(value) <= self._values.maxsize:
                self._values[key] = value

    async def ping(self) -> None:
        self._check_open()

    async def close(self) -> None:
        self._closed = True
        self._values.clear()

    def _check_open(self) -> None:
        if self._closed:
            raise CacheUnavailableError("the memory store is closed")
