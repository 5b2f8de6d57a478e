"""Behaviour of the Redis store alone: timeouts and foreign values. test_store_behaviour.py tests what all stores share."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from service.caches.redis_connection import RedisConnection
from service.errors import CacheUnavailableError
from service.vectors.redis_store import RedisVectorStore
from tests.link import Link
from tests.redis_server import RedisServer

pytestmark = pytest.mark.redis

A, B = b"a" * 32, b"b" * 32


def connect(url: str, timeout_s: float = 5) -> RedisVectorStore:
    return RedisVectorStore(
        RedisConnection(url, timeout_s, max_connections=1, failure=CacheUnavailableError), 60
    )


@pytest.fixture
async def store(redis_server: RedisServer) -> AsyncIterator[RedisVectorStore]:
    made = connect(redis_server.url)
    yield made
    await made.close()


@pytest.fixture
async def admin(redis_server: RedisServer) -> AsyncIterator[Redis]:
    client = Redis.from_url(redis_server.url)
    yield client
    await client.aclose()


async def test_a_lookup_takes_one_command_however_many_notes(store: RedisVectorStore, admin: Redis) -> None:
    keys = [b"%032d" % number for number in range(500)]
    await store.put_many(dict.fromkeys(keys, b"x"))
    assert await store.get_many(keys) == [b"x"] * 500
    stats = await admin.info("commandstats")
    assert stats["cmdstat_mget"]["calls"] == 1
    assert not {"cmdstat_get", "cmdstat_pexpire"} & set(stats)


async def test_a_value_of_another_type_is_missing_and_replaced(store: RedisVectorStore, admin: Redis) -> None:
    await store.put_many({A: b"1", B: b"2"})
    [key, *_] = [key for key in await admin.keys("*") if A in key]
    await admin.delete(key)
    await admin.sadd(key, "not a string")
    assert await store.get_many([A, B]) == [None, b"2"]
    await store.put_many({A: b"1"})
    assert await store.get_many([A, B]) == [b"1", b"2"]


async def test_a_hung_server_costs_one_timeout_and_mixes_up_no_reply(redis_server: RedisServer) -> None:
    store = connect(redis_server.url, timeout_s=1)
    await store.put_many({A: b"1", B: b"2"})
    redis_server.pause()
    calls = (store.get_many([A]), store.put_many({A: b"new"}), store.ping())
    found = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(error) for error in found] == [CacheUnavailableError] * 3
    redis_server.resume()
    assert await store.get_many([B]) == [b"2"]
    await store.close()


async def test_a_slow_server_costs_its_time_and_one_slower_than_the_timeout_one_timeout(
    redis_server: RedisServer,
) -> None:
    link = Link(redis_server.port)
    store = connect(f"redis://127.0.0.1:{link.port}", timeout_s=1)
    await store.put_many({A: b"1"})
    link.delay_s = 0.05
    started = time.monotonic()
    assert await store.get_many([A]) == [b"1"]
    assert time.monotonic() - started >= link.delay_s
    link.delay_s = 10
    with pytest.raises(CacheUnavailableError):
        await store.get_many([A])
    link.delay_s = 0
    link.cut()
    assert await store.get_many([A]) == [b"1"]
    await store.close()
    link.close()


async def test_a_server_that_went_away_is_unavailable_until_it_is_back(
    store: RedisVectorStore, redis_server: RedisServer
) -> None:
    await store.put_many({A: b"1"})
    redis_server.kill()
    for call in (store.get_many([A]), store.put_many({A: b"1"}), store.ping()):
        with pytest.raises(CacheUnavailableError):
            await call
    redis_server.start()
    assert await store.get_many([A]) == [None]


async def test_a_full_server_refuses_puts_and_answers_lookups(store: RedisVectorStore, admin: Redis) -> None:
    await store.put_many({A: b"1"})
    await admin.config_set("maxmemory", "1")
    with pytest.raises(CacheUnavailableError, match="OutOfMemoryError"):
        await store.put_many({B: b"2"})
    assert await store.get_many([A, B]) == [b"1", None]
