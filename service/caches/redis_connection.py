"""A pool of connections to Redis 7 or newer, or to Valkey. This is the only file that imports redis-py."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from redis import exceptions as redis_errors
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from service.errors import ConfigurationError, RemoteStoreError

# redis-py has no common base class: the last three do not derive from RedisError.
_REDIS_ERRORS = (
    redis_errors.RedisError,
    redis_errors.RedisClusterException,
    redis_errors.ChildDeadlockedError,
    redis_errors.IncorrectPolicyType,
)


@asynccontextmanager
async def translate_redis_errors(failure: type[RemoteStoreError]) -> AsyncIterator[None]:
    """Translate every error of redis-py, of the socket and of a timeout into a `failure` that names only its type.

    The error's own text may contain host and port, and the password where a server quotes a refused AUTH command.
    """
    try:
        yield
    except (*_REDIS_ERRORS, OSError, TimeoutError) as error:
        # Not chained: a traceback would print the error's text.
        raise failure(f"Redis did not answer: {_describe(error)}") from None


def _describe(error: Exception) -> str:
    cause = error.__cause__ or error.__context__
    name = type(error).__name__
    # redis-py raises one type for a refused connection, an unknown host and a bad certificate.
    return f"{name} ({type(cause).__name__})" if isinstance(cause, OSError) else name


def is_wrong_type(failure: RemoteStoreError) -> bool:
    """Return whether Redis refused the command because the key holds a value of another type."""
    # In a pipeline, redis-py puts the command before the server's message.
    return re.search(r"(^|caused error: \(')WRONGTYPE ", str(failure.__context__)) is not None


class RedisConnection:
    """Connects on first use and reconnects after each loss; every error is raised as a `failure`.

    `timeout_s` limits each call as a whole, including connecting and waiting for one of the `max_connections`.
    It retries nothing: the caller decides about that. Raises ConfigurationError for an invalid URL.
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
        """Yield the client for one call, or for several calls that share the timeout."""
        async with self.listen() as redis, asyncio.timeout(self._timeout_s):
            yield redis

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[Redis]:
        """Yield the client without a timeout, for a caller that waits for messages."""
        if self._closed:
            raise self._failure("the connection to Redis is closed")
        async with translate_redis_errors(self._failure):
            yield self._redis

    async def close(self) -> None:
        """Close all connections; closing twice is allowed."""
        self._closed = True
        async with translate_redis_errors(self._failure):
            await self._redis.connection_pool.aclose()


def _make_pool(url: str, timeout_s: float, max_connections: int) -> BlockingConnectionPool:
    try:
        options: dict[str, Any] = {
            **parse_url(url),
            # After the URL's options, so that a URL can't change these.
            "decode_responses": False,
            "max_connections": max_connections,
            "protocol": 2,  # with RESP3 the pool no longer checks connections for unread replies
            "retry": Retry(NoBackoff(), 0),
            "socket_connect_timeout": timeout_s,
            # Both are None: `call` has a timeout of its own, and for sockets redis-py uses asyncio.wait_for, which
            # before Python 3.12 can swallow the caller's cancellation (python/cpython#86296).
            "socket_timeout": None,
            "timeout": None,
        }
        pool = BlockingConnectionPool(**options)
        # Opens no connection, but raises for unknown options now and not on the first call.
        pool.make_connection()  # type: ignore[no-untyped-call]
    except (TypeError, ValueError, *_REDIS_ERRORS):
        # Neither quoted nor chained: a password with an unescaped "@", ":" or "?" may be in any part of the error.
        raise ConfigurationError(
            "the Redis URL is invalid: write redis://[user:password@]host:port/db (or rediss://, unix://), "
            "with the password percent-encoded"
        ) from None
    return pool
