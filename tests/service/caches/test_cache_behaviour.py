"""The behaviour of every cache, tested on the in-memory twin, a real Redis and a real Redis Cluster."""

import asyncio
from collections.abc import AsyncIterator, Awaitable

import pytest

from service.caches.base import Cache
from service.caches.memory_cache import MemoryCache
from service.caches.redis_cache import RedisCache
from service.errors import CacheUnavailableError
from tests.places import Place
from tests.service.caches.harness import read_values

TTL_S = 1000.0
A, B, C = b"a" * 32, b"b" * 32, b"c" * 32


@pytest.fixture
async def cache(place: Place) -> AsyncIterator[Cache]:
    if place.url is None:
        made: Cache = MemoryCache(max_entries=10_000, ttl_s=TTL_S, clock=place.clock)
    else:
        made = RedisCache(place.url, ttl_s=TTL_S, timeout_s=5, cluster=place.is_cluster)
    yield made
    await made.close()


async def test_values_are_in_the_order_of_the_requested_keys(cache: Cache) -> None:
    await cache.put_many("q", {A: b"1", B: b"2"})
    assert await read_values(cache, "q", [B, C, A, B]) == [b"2", None, b"1", b"2"]


async def test_queries_do_not_share_notes(cache: Cache) -> None:
    await cache.put_many("q1", {A: b"1"})
    assert await read_values(cache, "q2", [A]) == [None]


async def test_a_later_value_replaces_an_earlier_one(cache: Cache) -> None:
    await cache.put_many("q", {A: b"1", B: b"2"})
    await cache.put_many("q", {A: b"new"})
    assert await read_values(cache, "q", [A, B]) == [b"new", b"2"]


async def test_any_bytes_can_be_key_and_value(cache: Cache) -> None:
    entries = {bytes(range(256)): b"", b"\r\n$5\r\n": bytes(range(256)), b"\xff": b"\r\n-ERR no\r\n"}
    await cache.put_many("ng:{q}:\u00fc", entries)
    assert await read_values(cache, "ng:{q}:\u00fc", list(entries)) == list(entries.values())


async def test_a_query_can_have_more_notes_than_lua_can_unpack(cache: Cache) -> None:
    entries = {b"%032d" % number: b"%d" % number for number in range(9_000)}
    await cache.put_many("q", entries)
    assert await read_values(cache, "q", [C, *entries]) == [None, *entries.values()]


async def test_empty_lookups_and_puts_are_allowed(cache: Cache) -> None:
    await cache.put_many("q", {})
    assert await read_values(cache, "q", []) == []
    assert await read_values(cache, "q", [A]) == [None]


async def test_an_entry_expires_after_its_time_to_live(cache: Cache, place: Place) -> None:
    await cache.put_many("q", {A: b"1"})
    await place.age(TTL_S - 10)
    assert await read_values(cache, "q", [A]) == [b"1"]
    await place.age(20)
    assert await read_values(cache, "q", [A]) == [None]


async def test_later_puts_and_reads_do_not_prolong_a_query(cache: Cache, place: Place) -> None:
    await cache.put_many("q", {A: b"1"})
    await place.age(TTL_S - 10)
    await cache.put_many("q", {A: b"again", B: b"2"})
    assert await read_values(cache, "q", [A, B]) == [b"again", b"2"]
    await place.age(20)
    assert await read_values(cache, "q", [A, B]) == [None, None]


async def test_an_expired_query_gets_a_full_time_to_live_again(cache: Cache, place: Place) -> None:
    await cache.put_many("q", {A: b"old"})
    await place.age(TTL_S + 10)
    await cache.put_many("q", {B: b"new"})
    await place.age(TTL_S - 10)
    assert await read_values(cache, "q", [A, B]) == [None, b"new"]


async def test_an_empty_put_does_not_start_the_time_to_live(cache: Cache, place: Place) -> None:
    await cache.put_many("q", {})
    await place.age(TTL_S - 10)
    await cache.put_many("q", {A: b"1"})
    await place.age(20)
    assert await read_values(cache, "q", [A]) == [b"1"]


async def test_a_lookup_returns_the_query_s_remaining_time_to_live(cache: Cache, place: Place) -> None:
    assert (await cache.get_many("q", [A])).remaining_s == TTL_S
    await cache.put_many("q", {A: b"1"})
    assert TTL_S - 10 < (await cache.get_many("q", [A, B])).remaining_s <= TTL_S
    await place.age(TTL_S - 10)
    await cache.put_many("q", {B: b"2"})
    assert 0 < (await cache.get_many("q", [B])).remaining_s <= 10


async def test_queries_expire_independently(cache: Cache, place: Place) -> None:
    await cache.put_many("q1", {A: b"1"})
    await place.age(TTL_S / 2)
    await cache.put_many("q2", {A: b"2"})
    await place.age(TTL_S / 2 + 10)
    assert await read_values(cache, "q1", [A]) == [None]
    assert await read_values(cache, "q2", [A]) == [b"2"]


async def test_concurrent_callers_get_their_own_values(cache: Cache) -> None:
    keys = [f"q{number}" for number in range(100)]
    await asyncio.gather(*(cache.put_many(key, {A: key.encode()}) for key in keys))
    answers = await asyncio.gather(*(read_values(cache, key, [A]) for key in keys))
    assert answers == [[key.encode()] for key in keys]


async def test_a_closed_cache_is_unavailable(cache: Cache) -> None:
    await cache.ping()
    await cache.close()
    await cache.close()
    calls: list[Awaitable[object]] = [
        read_values(cache, "q", [A]),
        read_values(cache, "q", []),
        cache.put_many("q", {A: b"1"}),
        cache.put_many("q", {}),
        cache.ping(),
    ]
    for call in calls:
        with pytest.raises(CacheUnavailableError, match="closed"):
            await call
