"""The cache on Redis 7 or newer (Valkey too); the only file that knows redis-py.

A query key is a hash, a note key a field of it, and the whole hash expires.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import chain
from typing import Any, cast

from redis import exceptions as redis_errors
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from service.errors import CacheUnavailableError, ConfigurationError

# redis-py has no common root: the last three stand beside RedisError.
_REDIS_ERRORS = (
    redis_errors.RedisError,
    redis_errors.RedisClusterException,
    redis_errors.ChildDeadlockedError,
    redis_errors.IncorrectPolicyType,
)


@asynccontextmanager
async def translate_redis_errors(secret: str | None = None) -> AsyncIterator[None]:
    """Turn whatever redis-py, the socket or a timeout raises into CacheUnavailableError.

    `secret` never shows in the error: some servers and proxies quote the AUTH command when they refuse it.
    """
    try:
        yield
    except (*_REDIS_ERRORS, OSError, TimeoutError) as error:
        message = f"Redis did not answer: {type(error).__name__}: {error}".rstrip(": ")
        if secret and secret in message:
            # Not chained: a traceback would print the original message.
            raise CacheUnavailableError(message.replace(secret, "***")) from None
        raise CacheUnavailableError(message) from error


class RedisCache:
    """A cache shared by all replicas; connects on first use and again after every loss.

    `timeout_s` bounds each call as a whole, connecting and waiting for one of the `max_connections` included.
    Nothing is retried: the breaker above decides that. Raises ConfigurationError for a URL that can't be used.
    """

    def __init__(self, url: str, ttl_s: float, timeout_s: float, max_connections: int = 64) -> None:
        self._ttl_ms = max(1, round(ttl_s * 1000))
        self._timeout_s = timeout_s
        self._closed = False
        pool = _make_pool(url, timeout_s, max_connections)
        self._password = cast("str | None", pool.connection_kwargs.get("password"))
        self._redis = Redis(connection_pool=pool)

    async def get_many(self, query_key: str, note_keys: Sequence[bytes]) -> list[bytes | None]:
        async with self._bounded():
            values = await self._redis.hmget(query_key, list(note_keys)) if note_keys else []
        return cast("list[bytes | None]", values)

    async def put_many(self, query_key: str, entries: Mapping[bytes, bytes]) -> None:
        async with self._bounded():
            if not entries:
                return
            # A transaction, since a connection lost between the two would leave a hash that never expires;
            # a server too old for PEXPIRE ... NX then refuses both.
            async with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.hset(query_key, items=list(chain.from_iterable(entries.items())))
                pipeline.pexpire(query_key, self._ttl_ms, nx=True)
                await pipeline.execute()

    async def ping(self) -> None:
        async with self._bounded():
            await self._redis.ping()

    async def close(self) -> None:
        self._closed = True
        async with translate_redis_errors(self._password):
            await self._redis.connection_pool.aclose()

    @asynccontextmanager
    async def _bounded(self) -> AsyncIterator[None]:
        if self._closed:
            raise CacheUnavailableError("the Redis cache is closed")
        async with translate_redis_errors(self._password), asyncio.timeout(self._timeout_s):
            yield


def _make_pool(url: str, timeout_s: float, max_connections: int) -> BlockingConnectionPool:
    try:
        options: dict[str, Any] = {
            **parse_url(url),
            # After the URL's own, so that none of these can be changed there.
            "decode_responses": False,
            "max_connections": max_connections,
            "protocol": 2,  # with RESP3 the pool no longer checks connections for unread replies
            "retry": Retry(NoBackoff(), 0),
            "socket_connect_timeout": timeout_s,
            # None for both: each call has its own timeout around it, and for sockets redis-py uses asyncio.wait_for,
            # which before Python 3.12 can swallow the caller's cancellation (python/cpython#86296).
            "socket_timeout": None,
            "timeout": None,
        }
        pool = BlockingConnectionPool(**options)
        # Connects nothing, but refuses unknown options now rather than on the first call.
        pool.make_connection()  # type: ignore[no-untyped-call]
    except (TypeError, ValueError, *_REDIS_ERRORS):
        # Neither quoted nor chained: a password with an unescaped "@", ":" or "?" shows up in any part of it.
        raise ConfigurationError(
            "the Redis URL can't be used: write redis://[user:password@]host:port/db (or rediss://, unix://), "
            "with the password percent-encoded"
        ) from None
    return pool
