"""The behaviour of every vector store, tested on the in-memory twin, a real Redis and a real Redis Cluster."""

import asyncio
from collections.abc import AsyncIterator, Awaitable

import pytest

from service.caches.redis_connection import RedisConnection
from service.errors import CacheUnavailableError
from service.vectors.base import VectorStore
from service.vectors.memory_store import MemoryVectorStore
from service.vectors.redis_store import RedisVectorStore
from tests.places import Place

TTL_S = 1000.0
A, B, C = b"a" * 32, b"b" * 32, b"c" * 32


@pytest.fixture
async def store(place: Place) -> AsyncIterator[VectorStore]:
    made: VectorStore = MemoryVectorStore(max_bytes=10_000, ttl_s=TTL_S, clock=place.clock)
    if place.url is not None:
        connection = RedisConnection(place.url, 5, 4, CacheUnavailableError, cluster=place.is_cluster)
        made = RedisVectorStore(connection, ttl_s=TTL_S, cluster=place.is_cluster)
    yield made
    await made.close()


async def test_values_are_in_the_order_of_the_requested_keys(store: VectorStore) -> None:
    await store.put_many({A: b"1", B: b"2"})
    assert await store.get_many([B, C, A, B]) == [b"2", None, b"1", b"2"]


async def test_a_later_value_replaces_an_earlier_one(store: VectorStore) -> None:
    await store.put_many({A: b"1", B: b"2"})
    await store.put_many({A: b"new"})
    assert await store.get_many([A, B]) == [b"new", b"2"]


async def test_any_bytes_can_be_key_and_value(store: VectorStore) -> None:
    entries = {bytes(range(256)): b"", b"\r\n$5\r\n": bytes(range(256)), b"\xff": b"\r\n-ERR no\r\n"}
    await store.put_many(entries)
    assert await store.get_many(list(entries)) == list(entries.values())


async def test_empty_lookups_and_puts_are_allowed(store: VectorStore) -> None:
    await store.put_many({})
    assert await store.get_many([]) == []
    assert await store.get_many([A]) == [None]


async def test_an_entry_expires_after_its_time_to_live(store: VectorStore, place: Place) -> None:
    await store.put_many({A: b"1"})
    await place.age(TTL_S - 10)
    assert await store.get_many([A]) == [b"1"]
    await place.age(20)
    assert await store.get_many([A]) == [None]


async def test_a_put_starts_the_time_to_live_anew_for_its_own_entries(
    store: VectorStore, place: Place
) -> None:
    await store.put_many({A: b"1", B: b"2"})
    await place.age(TTL_S - 10)
    await store.put_many({A: b"again"})
    await place.age(20)
    assert await store.get_many([A, B]) == [b"again", None]


async def test_concurrent_callers_get_their_own_values(store: VectorStore) -> None:
    keys = [b"%d" % number for number in range(100)]
    await asyncio.gather(*(store.put_many({key: key}) for key in keys))
    assert await asyncio.gather(*(store.get_many([key]) for key in keys)) == [[key] for key in keys]


async def test_a_closed_store_is_unavailable(store: VectorStore) -> None:
    await store.ping()
    await store.close()
    await store.close()
    calls: list[Awaitable[object]] = [
        store.get_many([A]),
        store.get_many([]),
        store.put_many({A: b"1"}),
        store.put_many({}),
        store.ping(),
    ]
    for call in calls:
        with pytest.raises(CacheUnavailableError, match="closed"):
            await call
