"""Behaviour of the Redis cache alone: timeouts, translated errors, secrets. test_cache_behaviour.py tests what all caches share."""

import asyncio
import contextlib
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import trustme
from redis import exceptions as redis_errors
from redis.asyncio import Redis

from service.caches.redis_cache import RedisCache
from service.caches.redis_connection import translate_redis_errors
from service.errors import CacheUnavailableError, ConfigurationError
from tests.redis_server import RedisServer
from tests.service.caches.harness import read_values
from tests.tools import REDIS, require
from tests.waiting import until

A, B = b"a" * 32, b"b" * 32
SECRET = "s3cr3t"
REDIS_EXCEPTIONS = [
    kind for kind in vars(redis_errors).values() if isinstance(kind, type) and issubclass(kind, Exception)
]


@pytest.mark.parametrize("kind", [*REDIS_EXCEPTIONS, OSError, ConnectionResetError, TimeoutError])
async def test_every_failure_of_redis_is_translated(kind: type[Exception]) -> None:
    error = kind.__new__(kind)  # some constructors parse their arguments
    with pytest.raises(CacheUnavailableError, match=kind.__name__) as caught:
        async with translate_redis_errors(CacheUnavailableError):
            raise error
    assert str(caught.value) == f"Redis did not answer: {kind.__name__}"


def test_the_list_of_redis_exceptions_is_not_empty() -> None:
    assert redis_errors.ReadOnlyError in REDIS_EXCEPTIONS


@pytest.mark.parametrize("kind", [asyncio.CancelledError, KeyError, AssertionError])
async def test_cancellation_and_bugs_are_not_translated(kind: type[BaseException]) -> None:
    with pytest.raises(kind):
        async with translate_redis_errors(CacheUnavailableError):
            raise kind


@pytest.mark.parametrize(
    "url",
    [
        f"http://:{SECRET}@localhost",
        f"redis://:{SECRET}#x@localhost",
        f"redis://user:p?{SECRET}@localhost",
        f"redis://user:p/{SECRET}@localhost:6379",
        f"redis://:x@localhost/?protocol={SECRET}",
        f"redis://:x@localhost/?socket_timeout={SECRET}",
        f"redis://:x@localhost/?{SECRET}=1",
        f"redis://:x@[{SECRET}",
        SECRET,
        "",
    ],
)
@pytest.mark.parametrize("cluster", [False, True])
def test_a_bad_url_is_refused_without_being_quoted(url: str, cluster: bool) -> None:
    with pytest.raises(ConfigurationError, match="redis://") as caught:
        RedisCache(url, ttl_s=60, timeout_s=1, cluster=cluster)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


async def test_a_password_that_the_server_quotes_back_stays_secret() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        command = await reader.readuntil(SECRET.encode())
        words = command.decode().replace("\r\n", " ")
        writer.write(f"-ERR unknown command, with args beginning with: {words}\r\n".encode())
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        cache = RedisCache(f"redis://:{SECRET}@{host}:{port}", ttl_s=60, timeout_s=5)
        with pytest.raises(CacheUnavailableError, match="ResponseError") as caught:
            await cache.ping()
        await cache.close()
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert SECRET not in repr(cache)


@pytest.fixture
async def cache(redis_server: RedisServer) -> AsyncIterator[RedisCache]:
    made = RedisCache(redis_server.url, ttl_s=60, timeout_s=5)
    yield made
    await made.close()


@pytest.fixture
async def narrow_cache(redis_server: RedisServer) -> AsyncIterator[RedisCache]:
    """Make a cache with one connection, so that the next call would find anything that a call leaves on it."""
    made = RedisCache(redis_server.url, ttl_s=60, timeout_s=5, max_connections=1)
    yield made
    await made.close()


@pytest.fixture
async def hasty_cache(redis_server: RedisServer) -> AsyncIterator[RedisCache]:
    """Make a cache with one connection, and a timeout that is short for a test but long enough for a busy machine."""
    made = RedisCache(redis_server.url, ttl_s=60, timeout_s=1, max_connections=1)
    yield made
    await made.close()


@pytest.fixture
async def admin(redis_server: RedisServer) -> AsyncIterator[Redis]:
    client = Redis.from_url(redis_server.url, decode_responses=True)
    yield client
    await client.aclose()


@pytest.fixture
def locked_server(redis_binary: str) -> Iterator[RedisServer]:
    server = RedisServer(redis_binary, password=SECRET)
    server.start()
    yield server
    server.kill()


@pytest.mark.redis
async def test_the_password_of_the_url_is_used(locked_server: RedisServer) -> None:
    cache = RedisCache(locked_server.url, ttl_s=60, timeout_s=5)
    await cache.ping()
    await cache.close()
    stranger = RedisCache(locked_server.url.replace(SECRET, "wr0ng"), ttl_s=60, timeout_s=5)
    with pytest.raises(CacheUnavailableError, match="AuthenticationError") as caught:
        await stranger.ping()
    await stranger.close()
    assert "wr0ng" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.redis
async def test_many_notes_take_one_command_of_each_kind(cache: RedisCache, admin: Redis) -> None:
    keys = [b"%032d" % number for number in range(500)]
    await cache.put_many("q", dict.fromkeys(keys, b"x"))
    assert await read_values(cache, "q", keys) == [b"x"] * 500
    stats = await admin.info("commandstats")
    calls = {name: stats[f"cmdstat_{name}"]["calls"] for name in ("eval", "hmget", "hset", "pexpire")}
    assert calls == {"eval": 2, "hmget": 1, "hset": 1, "pexpire": 1}


@pytest.mark.redis
async def test_connections_are_bounded(redis_server: RedisServer, admin: Redis) -> None:
    cache = RedisCache(redis_server.url, ttl_s=60, timeout_s=5, max_connections=4)
    await asyncio.gather(*(read_values(cache, "q", [A]) for _ in range(100)))
    assert len(await admin.client_list()) == 4 + 1
    await cache.close()


@pytest.mark.redis
@pytest.mark.parametrize("setting", ["decode_responses=true", "socket_timeout=1000", "max_connections=1000"])
async def test_the_url_can_not_override_required_options(redis_server: RedisServer, setting: str) -> None:
    cache = RedisCache(f"{redis_server.url}?{setting}", ttl_s=60, timeout_s=5)
    await cache.put_many("q", {A: b"\xff"})
    assert await read_values(cache, "q", [A]) == [b"\xff"]
    await cache.close()


@pytest.mark.redis
async def test_an_entry_of_another_type_is_deleted_and_a_miss(cache: RedisCache, admin: Redis) -> None:
    await admin.set("q", "not a hash")
    with pytest.raises(CacheUnavailableError, match="ResponseError"):
        await cache.put_many("q", {A: b"1"})
    assert await read_values(cache, "q", [A, B]) == [None, None]
    assert not await admin.exists("q")
    await cache.put_many("q", {A: b"1"})
    assert await read_values(cache, "q", [A, B]) == [b"1", None]


@pytest.fixture
def tls_server(tmp_path: Path) -> Iterator[RedisServer]:
    """Start a Redis that requires TLS and a password. Its authority's certificate is `ca.pem` in `tmp_path`."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(
        str(tmp_path / "server.pem")
    )
    server = RedisServer(require(REDIS), password=SECRET, tls=(tmp_path / "server.pem", tmp_path / "ca.pem"))
    server.start()
    yield server
    server.kill()


def open_sockets() -> set[str]:
    """Return the sockets that this process has open."""
    opened = set()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the folder itself, read and closed
            opened.add(str(link.readlink()))
    return {name for name in opened if name.startswith("socket:")}


async def close(cache: RedisCache, before: set[str]) -> None:
    """Close the cache, and wait until its sockets are closed: asyncio ends TLS after redis-py's `close` has returned.

    A loop that ends earlier leaves a socket open, which fails a later test.
    """
    await cache.close()
    await until(lambda: open_sockets() <= before)


@pytest.mark.redis
async def test_tls_and_a_password_are_used(tls_server: RedisServer, tmp_path: Path) -> None:
    before = open_sockets()
    cache = RedisCache(f"{tls_server.url}?ssl_ca_certs={tmp_path / 'ca.pem'}", ttl_s=60, timeout_s=5)
    await cache.put_many("q", {A: b"1"})
    assert await read_values(cache, "q", [A]) == [b"1"]
    await close(cache, before)


@pytest.mark.redis
@pytest.mark.parametrize(
    ("made_wrong", "why"),
    [
        (lambda url, ca: url, "SSLCertVerificationError"),
        (
            lambda url, ca: f"{url.replace('127.0.0.1', 'localhost')}?ssl_ca_certs={ca}",
            "SSLCertVerificationError",
        ),
        (lambda url, ca: f"{url.replace('rediss', 'redis')}", "Connection"),
        (lambda url, ca: f"{url.replace(SECRET, 'wrong')}?ssl_ca_certs={ca}", "AuthenticationError"),
    ],
    ids=["unknown-authority", "other-host", "no-tls", "wrong-password"],
)
async def test_a_server_with_a_wrong_certificate_or_password_is_refused(
    tls_server: RedisServer, tmp_path: Path, made_wrong: Callable[[str, Path], str], why: str
) -> None:
    before = open_sockets()
    cache = RedisCache(made_wrong(tls_server.url, tmp_path / "ca.pem"), ttl_s=60, timeout_s=5)
    with pytest.raises(CacheUnavailableError, match=why) as caught:
        await cache.ping()
    assert SECRET not in str(caught.value)
    await close(cache, before)


@pytest.mark.redis
async def test_a_missing_server_is_an_error_at_once(redis_server: RedisServer, cache: RedisCache) -> None:
    redis_server.stop()
    for call in (cache.ping(), read_values(cache, "q", [A]), cache.put_many("q", {A: b"1"})):
        with pytest.raises(CacheUnavailableError):
            await call


@pytest.mark.redis
async def test_a_killed_server_is_an_error_and_its_successor_is_used_at_once(
    redis_server: RedisServer, cache: RedisCache
) -> None:
    await asyncio.gather(*(cache.put_many("q", {A: b"1"}) for _ in range(10)))
    redis_server.pause()
    calls = [asyncio.ensure_future(read_values(cache, "q", [A])) for _ in range(20)]
    await asyncio.wait(calls, timeout=0.05)
    redis_server.kill()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {CacheUnavailableError}
    redis_server.start()
    assert await asyncio.gather(*(read_values(cache, "q", [A]) for _ in range(20))) == [[None]] * 20


@pytest.mark.redis
async def test_a_hung_server_is_an_error_within_the_timeout(
    redis_server: RedisServer, hasty_cache: RedisCache
) -> None:
    await hasty_cache.put_many("q", {A: b"1"})
    redis_server.pause()
    async with asyncio.timeout(5):
        for call in (
            hasty_cache.ping(),
            read_values(hasty_cache, "q", [A]),
            hasty_cache.put_many("q", {A: b"2"}),
        ):
            with pytest.raises(CacheUnavailableError, match="TimeoutError"):
                await call
    redis_server.resume()
    assert await read_values(hasty_cache, "q", [A]) in ([b"1"], [b"2"])


@pytest.mark.redis
async def test_waiting_for_a_connection_has_the_same_timeout(
    redis_server: RedisServer, hasty_cache: RedisCache
) -> None:
    await hasty_cache.ping()
    redis_server.pause()
    async with asyncio.timeout(15):
        calls = (read_values(hasty_cache, "q", [A]) for _ in range(50))
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {CacheUnavailableError}
    redis_server.resume()
    await hasty_cache.ping()


@pytest.mark.redis
async def test_a_cancelled_call_leaves_no_reply_for_the_next_call(
    redis_server: RedisServer, narrow_cache: RedisCache
) -> None:
    await narrow_cache.put_many("q1", {A: b"1"})
    await narrow_cache.put_many("q2", {A: b"2"})
    redis_server.pause()
    for call in (read_values(narrow_cache, "q1", [A]), narrow_cache.put_many("q1", {A: b"3"})):
        task = asyncio.ensure_future(call)
        await asyncio.wait([task], timeout=0.02)  # the command is sent, and the paused server can't reply
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    redis_server.resume()
    assert await read_values(narrow_cache, "q2", [A]) == [b"2"]


@pytest.mark.redis
@pytest.mark.parametrize("operation", ["get", "put"])
async def test_a_call_can_be_cancelled_at_every_step(narrow_cache: RedisCache, operation: str) -> None:
    await cancel_at_every_step(narrow_cache, operation)


async def cancel_at_every_step(narrow_cache: RedisCache, operation: str) -> None:
    """Check that a call cancelled at any step ends cancelled, and that the next call on its connection gets its own reply."""
    await narrow_cache.put_many("{q}2", {A: b"2"})
    cancelled = 0
    for steps in range(40):
        call = (
            read_values(narrow_cache, "{q}1", [A])
            if operation == "get"
            else narrow_cache.put_many("{q}1", {A: b"1"})
        )
        task: asyncio.Future[object] = asyncio.ensure_future(call)
        for _ in range(steps):
            await asyncio.sleep(0)
        if task.cancel():
            cancelled += 1
            with pytest.raises(asyncio.CancelledError):
                await task
        assert await read_values(narrow_cache, "{q}2", [A]) == [b"2"]
    assert cancelled > 3
