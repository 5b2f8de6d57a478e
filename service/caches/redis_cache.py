"""The cache on Redis: a query key is a hash, a note key a field of it, and the whole hash expires."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import cast

from service.caches.redis_connection import RedisConnection, is_of_another_type
from service.errors import CacheUnavailableError


class RedisCache:
    """A cache shared by all replicas. Each call is bounded and not retried: the breaker above decides that.

    Raises ConfigurationError for a URL that can't be used.
    """

    def __init__(self, url: str, ttl_s: float, timeout_s: float, max_connections: int = 64) -> None:
        self._ttl_ms = max(1, round(ttl_s * 1000))
        self._connection = RedisConnection(url, timeout_s, max_connections, CacheUnavailableError)

    async def get_many(self, query_key: str, note_keys: Sequence[bytes]) -> list[bytes | None]:
        values: list[bytes | None] = [None] * len(note_keys)
        try:
            async with self._connection.call() as redis:
                if note_keys:
                    values = cast("list[bytes | None]", await redis.hmget(query_key, list(note_keys)))
        except CacheUnavailableError as failure:
            if not is_of_another_type(failure):
                raise
            # Nothing of ours: it would make every lookup of this query fail, and with enough of them open the breaker.
            async with self._connection.call() as redis:
                await redis.unlink(query_key)
        return values

    async def put_many(self, query_key: str, entries: Mapping[bytes, bytes]) -> None:
        async with self._connection.call() as redis:
            if not entries:
                return
            # A transaction, since a connection lost between the two would leave a hash that never expires;
            # a server too old for PEXPIRE ... NX then refuses both.
            async with redis.pipeline(transaction=True) as pipeline:
                pipeline.hset(query_key, items=list(chain.from_iterable(entries.items())))
                pipeline.pexpire(query_key, self._ttl_ms, nx=True)
                await pipeline.execute()

    async def ping(self) -> None:
        async with self._connection.call() as redis:
            await redis.ping()

    async def close(self) -> None:
        await self._connection.close()
