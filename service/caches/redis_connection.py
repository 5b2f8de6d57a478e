"""One pool of connections to Redis 7 or newer (Valkey too); the only file that imports redis-py."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from redis import exceptions as redis_errors
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from service.errors import ConfigurationError, RemoteStoreError

# redis-py has no common root: the last three stand beside RedisError.
_REDIS_ERRORS = (
    redis_errors.RedisError,
    redis_errors.RedisClusterException,
    redis_errors.ChildDeadlockedError,
    redis_errors.IncorrectPolicyType,
)


@asynccontextmanager
async def translate_redis_errors(failure: type[RemoteStoreError]) -> AsyncIterator[None]:
    """Turn whatever redis-py, the socket or a timeout raises into a `failure` that tells its kind alone.

    Its text holds host and port, and the password where a server quotes the AUTH command that it refuses.
    """
    try:
        yield
    except (*_REDIS_ERRORS, OSError, TimeoutError) as error:
        # Not chained: a traceback would print that text.
        raise failure(f"Redis did not answer: {_kind(error)}") from None


def _kind(error: Exception) -> str:
    beneath = error.__cause__ or error.__context__
    name = type(error).__name__
    # For redis-py a refused connection, an unknown host and a bad certificate are all of one type.
    return f"{name} ({type(beneath).__name__})" if isinstance(beneath, OSError) else name


def is_of_another_type(failure: RemoteStoreError) -> bool:
    """Whether Redis refused since the key holds something else than what the command is for."""
    return str(failure.__context__).startswith("WRONGTYPE")


class RedisConnection:
    """Connects on first use and again after every loss; whatever goes wrong is a `failure`.

    `timeout_s` bounds each call as a whole, connecting and waiting for one of the `max_connections` included.
    Nothing is retried: whoever calls decides that. Raises ConfigurationError for a URL that can't be used.
    """

    def __init__(
        self, url: str, timeout_s: float, max_connections: int, failure: type[RemoteStoreError]
    ) -> None:
        self._timeout_s = timeout_s
        self._failure = failure
        self._closed = False
        self._redis = Redis(connection_pool=_make_pool(url, timeout_s, max_connections))

    @asynccontextmanager
    async def call(self) -> AsyncIterator[Redis]:
        """The client for one call, or for several that share the timeout."""
        async with self.listen() as redis, asyncio.timeout(self._timeout_s):
            yield redis

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[Redis]:
        """The client without a timeout, for what waits for messages."""
        if self._closed:
            raise self._failure("the connection to Redis is closed")
        async with translate_redis_errors(self._failure):
            yield self._redis

    async def close(self) -> None:
        """Give up all connections; closing twice is fine."""
        self._closed = True
        async with translate_redis_errors(self._failure):
            await self._redis.connection_pool.aclose()


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
