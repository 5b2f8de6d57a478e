"""Limits of the memory store alone. test_store_behaviour.py tests what all stores share."""

import pytest

from service.vectors.memory_store import MemoryVectorStore

A, B, C = b"a" * 32, b"b" * 32, b"c" * 32


@pytest.fixture
def store() -> MemoryVectorStore:
    return MemoryVectorStore(max_bytes=10, ttl_s=60)


async def test_the_least_recently_used_entries_are_evicted_first(store: MemoryVectorStore) -> None:
    await store.put_many({A: b"12345", B: b"12345"})
    await store.get_many([A])
    await store.put_many({C: b"12345"})
    assert await store.get_many([A, B, C]) == [b"12345", None, b"12345"]


async def test_a_value_over_the_limit_is_dropped_with_its_older_one(store: MemoryVectorStore) -> None:
    await store.put_many({A: b"1", B: b"2"})
    await store.put_many({A: b"12345678901"})
    assert await store.get_many([A, B]) == [None, b"2"]


async def test_a_store_without_room_stores_nothing() -> None:
    store = MemoryVectorStore(max_bytes=0, ttl_s=60)
    await store.put_many({A: b"1"})
    assert await store.get_many([A]) == [None]
