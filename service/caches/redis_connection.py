"""Connections to Redis 7 or newer, to Valkey, or to a cluster of either. This is the only file that imports redis-py."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from time import monotonic
from typing import Any, cast

from redis import exceptions as redis_errors
from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster, SSLConnection
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from service.errors import ConfigurationError, RemoteStoreError

_log = logging.getLogger(__name__)

# A cluster's slots are read in a task of their own: a call's timeout may be shorter than that takes.
_DISCOVERY_TIMEOUT_S = 2.0
_REFRESH_EVERY_S = 1.0

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


def _describe(error: BaseException) -> str:
    # redis-py raises one type for a refused connection, an unknown host and a bad certificate.
    root = error
    while isinstance(cause := root.__cause__ or root.__context__, (*_REDIS_ERRORS, OSError)):
        root = cause
    name = type(error).__name__
    return name if root is error else f"{name} ({type(root).__name__})"


class RedisConnection:
    """Connects on first use and reconnects after each loss; every error is raised as a `failure`.

    `timeout_s` limits each call as a whole, including connecting and waiting for one of the `max_connections`.
    It retries nothing: the caller decides about that. Raises ConfigurationError for an invalid URL.

    With `cluster` the URL names any node of a Redis Cluster, and `max_connections` is the limit for each node.
    All keys of a command must then be in one slot.
    """

    def __init__(
        self,
        url: str,
        timeout_s: float,
        max_connections: int,
        failure: type[RemoteStoreError],
        *,
        cluster: bool = False,
    ) -> None:
        self._failure = failure
        self._closed = False
        kind = _Cluster if cluster else _Server
        self._redis: _Server | _Cluster = kind(url, timeout_s, max_connections)

    @asynccontextmanager
    async def call(self) -> AsyncIterator[Redis]:
        """Yield the client for one call, or for several calls that share the timeout."""
        async with self._translated(), self._redis.call() as client:
            yield client

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[Redis]:
        """Yield the client without a timeout, for a caller that waits for messages."""
        async with self._translated():
            yield await self._redis.client()

    async def ping(self) -> None:
        """Return if Redis answers; in a cluster, if every primary does."""
        async with self._translated():
            await self._redis.ping()

    async def close(self) -> None:
        """Close all connections; closing twice is allowed. Where Redis does not take part, that is logged."""
        self._closed = True
        try:
            async with translate_redis_errors(self._failure):
                await self._redis.close()
        except RemoteStoreError as error:
            _log.warning("a connection to Redis did not close cleanly: %s", error)

    @asynccontextmanager
    async def _translated(self) -> AsyncIterator[None]:
        if self._closed:
            raise self._failure("the connection to Redis is closed")
        async with translate_redis_errors(self._failure):
            yield


class _Server:
    """A single Redis."""

    def __init__(self, url: str, timeout_s: float, max_connections: int) -> None:
        self._timeout_s = timeout_s
        self._client = Redis(connection_pool=_make_pool(url, timeout_s, max_connections))

    async def client(self) -> Redis:
        return self._client

    @asynccontextmanager
    async def call(self) -> AsyncIterator[Redis]:
        async with asyncio.timeout(self._timeout_s):
            yield self._client

    async def ping(self) -> None:
        async with self.call() as client:
            await client.ping()

    async def close(self) -> None:
        await self._client.connection_pool.aclose()


class _Cluster:
    """A Redis Cluster. redis-py follows slots that move, and reads which node has which slot after a lost connection."""

    def __init__(self, url: str, timeout_s: float, max_connections: int) -> None:
        self._timeout_s = timeout_s
        self._make_client = partial(_make_cluster_client, url, timeout_s, max_connections)
        self._client = self._make_client()
        # redis-py raises where all connections are in use, instead of waiting for one.
        self._connections = asyncio.Semaphore(max_connections)
        self._discovery: asyncio.Task[None] | None = None
        self._next_refresh_at = 0.0

    async def client(self) -> Redis:
        if self._client.get_default_node() is None:  # not connected yet, or no longer
            await asyncio.shield(self._start_discovery())
        return cast("Redis", self._client)  # it has the same commands on keys

    @asynccontextmanager
    async def call(self) -> AsyncIterator[Redis]:
        try:
            async with asyncio.timeout(self._timeout_s), self._connections:
                yield await self.client()
        except TimeoutError:
            # Another node may have taken over. redis-py does not find out, because this timeout is not its own.
            self._refresh()
            raise
        except (AttributeError, LookupError) as error:
            # redis-py 8.1 raises these for a node that it does not know yet (redis/redis-py#2432, #3835).
            self._refresh()
            raise redis_errors.RedisClusterException("unknown node") from error

    async def ping(self) -> None:
        async with self.call():
            await self._client.ping(target_nodes=RedisCluster.PRIMARIES)

    async def close(self) -> None:
        if self._discovery is not None:
            await asyncio.wait([self._discovery])  # not cancelled: a call may wait for it
        await self._disconnect()

    def _refresh(self) -> None:
        # Not at each failure: redis-py then opens all connections anew.
        if monotonic() >= self._next_refresh_at:
            self._next_refresh_at = monotonic() + _REFRESH_EVERY_S
            self._start_discovery()

    def _start_discovery(self) -> "asyncio.Task[None]":
        """Return the task that reads which node has which slot: the running one, or a new one."""
        if self._discovery is None or self._discovery.done():
            self._discovery = asyncio.create_task(self._discover())
            # Marks an error as seen that nobody waits for: the calls fail too.
            self._discovery.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._discovery

    async def _discover(self) -> None:
        try:
            async with asyncio.timeout(_DISCOVERY_TIMEOUT_S):
                if self._client.get_default_node() is None:
                    await self._client.initialize()
                else:
                    await self._client.nodes_manager.initialize()
        except redis_errors.RedisClusterException:
            # No node answers: all may have new addresses. The next discovery starts from the URL again.
            await self._disconnect()
            self._client = self._make_client()
            raise

    async def _disconnect(self) -> None:
        await self._client.aclose()
        # After a lost connection aclose does nothing.
        for nodes in ("nodes_cache", "startup_nodes"):
            await self._client.nodes_manager.aclose(nodes)


class _KeyIsFirst:
    """Finds the key of a command without the server's list of all commands, which takes 0.1 s of the event loop to read.

    Our commands have one key, as their first argument. redis-py itself finds the keys of scripts.
    """

    async def initialize(self, node: object = None) -> None:
        """Ask nothing."""

    async def get_keys(self, _command: str, *arguments: Any) -> Sequence[Any]:
        return arguments[:1]


def _make_pool(url: str, timeout_s: float, max_connections: int) -> BlockingConnectionPool:
    with _refuse_invalid_url("redis://[user:password@]host:port/db (or rediss://, unix://)"):
        options = _connection_options(url, timeout_s)
        pool = BlockingConnectionPool(**options, max_connections=max_connections, timeout=None)
        # Opens no connection, but raises for unknown options now and not on the first call.
        pool.make_connection()  # type: ignore[no-untyped-call]
    return pool


def _make_cluster_client(url: str, timeout_s: float, max_connections: int) -> RedisCluster:
    with _refuse_invalid_url("redis://[user:password@]host:port of a cluster's node (or rediss://)"):
        options = _connection_options(url, timeout_s)
        if options.pop("connection_class", None) is SSLConnection:
            options["ssl"] = True
        # Twice as many as calls: explanation mode listens on one, and redis-py closes used ones in the background.
        cluster = RedisCluster(**options, max_connections=2 * max_connections)
        cluster.commands_parser = cast("Any", _KeyIsFirst())
    return cluster


def _connection_options(url: str, timeout_s: float) -> dict[str, Any]:
    options: dict[str, Any] = {
        **parse_url(url),
        # After the URL's options, so that a URL can't change these.
        "decode_responses": False,
        "protocol": 2,  # with RESP3 the pool no longer checks connections for unread replies
        "retry": Retry(NoBackoff(), 0),
        "socket_connect_timeout": timeout_s,
        # None: `call` has a timeout of its own, and for sockets redis-py uses asyncio.wait_for, which
        # before Python 3.12 can swallow the caller's cancellation (python/cpython#86296).
        "socket_timeout": None,
    }
    for ours in ("max_connections", "timeout"):
        options.pop(ours, None)
    return options


@contextmanager
def _refuse_invalid_url(form: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, *_REDIS_ERRORS):
        # Neither quoted nor chained: a password with an unescaped "@", ":" or "?" may be in any part of the error.
        raise ConfigurationError(
            f"the Redis URL is invalid: write {form}, with the password percent-encoded"
        ) from None
