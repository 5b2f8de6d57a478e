"""The vector store in Redis: each note's vectors are a string that expires."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from service.caches.redis_connection import RedisConnection

PREFIX = b"ng:vectors:"


class RedisVectorStore:
    """A store that all replicas share. No call is retried: the breaker decides about that.

    A key with a value of another type counts as missing, and the next put replaces it.
    """

    def __init__(self, connection: RedisConnection, ttl_s: float, *, cluster: bool = False) -> None:
        """The connection must raise CacheUnavailableError; `cluster` says whether it is to a Redis Cluster."""
        self._connection = connection
        self._cluster = cluster
        self._ttl_ms = max(1, round(ttl_s * 1000))

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        async with self._connection.call() as redis:
            if not keys:
                return []
            names = [PREFIX + key for key in keys]
            # MGET returns nil for a value of another type, where GET would fail. In a cluster its keys must be in one slot.
            client = cast("Any", redis)  # a cluster's client has one method more
            found = await (client.mget_nonatomic(names) if self._cluster else client.mget(names))
        return cast("list[bytes | None]", found)

    async def put_many(self, entries: Mapping[bytes, bytes]) -> None:
        async with self._connection.call() as redis:
            if not entries:
                return
            async with redis.pipeline(transaction=False) as pipeline:
                for key, value in entries.items():
                    pipeline.set(PREFIX + key, value, px=self._ttl_ms)
                await pipeline.execute()

    async def ping(self) -> None:
        await self._connection.ping()

    async def close(self) -> None:
        await self._connection.close()
