"""The cache in Redis: each query key is a hash, each note key is one of its fields, and the whole hash expires."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import cast

from service.caches.base import CacheEntries
from service.caches.redis_connection import RedisConnection, is_wrong_type
from service.errors import CacheUnavailableError


class RedisCache:
    """A cache that all replicas share. Each call has a timeout and is not retried: the breaker decides about that.

    Raises ConfigurationError for an invalid URL.
    """

    def __init__(self, url: str, ttl_s: float, timeout_s: float, max_connections: int = 64) -> None:
        self._ttl_ms = max(1, round(ttl_s * 1000))
        self._connection = RedisConnection(url, timeout_s, max_connections, CacheUnavailableError)

    async def get_many(self, query_key: str, note_keys: Sequence[bytes]) -> CacheEntries:
        nothing: list[bytes | None] = [None] * len(note_keys)
        try:
            async with self._connection.call() as redis:
                if not note_keys:
                    return CacheEntries(nothing, self._ttl_ms / 1000)
                # The time first: if the hash expires in between, there are no values.
                async with redis.pipeline(transaction=False) as pipeline:
                    pipeline.pttl(query_key)
                    pipeline.hmget(query_key, list(note_keys))
                    left_ms, values = await pipeline.execute()
        except CacheUnavailableError as failure:
            if not is_wrong_type(failure):
                raise
            # Not our value: every lookup of this query would fail, and enough of them would open the breaker.
            async with self._connection.call() as redis:
                await redis.unlink(query_key)
            return CacheEntries(nothing, self._ttl_ms / 1000)
        # Negative: there was no hash yet when the time was read.
        remaining_ms = left_ms if 0 <= left_ms < self._ttl_ms else self._ttl_ms
        return CacheEntries(cast("list[bytes | None]", values), remaining_ms / 1000)

    async def put_many(self, query_key: str, entries: Mapping[bytes, bytes]) -> None:
        async with self._connection.call() as redis:
            if not entries:
                return
            # A transaction: a connection lost between the two commands would leave a hash that never expires,
            # and a server too old for PEXPIRE ... NX refuses both.
            async with redis.pipeline(transaction=True) as pipeline:
                pipeline.hset(query_key, items=list(chain.from_iterable(entries.items())))
                pipeline.pexpire(query_key, self._ttl_ms, nx=True)
                await pipeline.execute()

    async def ping(self) -> None:
        async with self._connection.call() as redis:
            await redis.ping()

    async def close(self) -> None:
        await self._connection.close()
