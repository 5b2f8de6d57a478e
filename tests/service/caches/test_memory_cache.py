"""Behaviour of the in-memory cache alone; test_cache_behaviour.py tests what all caches share."""

from service.caches.memory_cache import MemoryCache
from tests.service.caches.harness import read_values


def make_cache(max_entries: int) -> MemoryCache:
    return MemoryCache(max_entries, ttl_s=60, clock=lambda: 0.0)


def notes(*numbers: int) -> dict[bytes, bytes]:
    return {b"n%d" % number: b"v%d" % number for number in numbers}


async def count(cache: MemoryCache, query_key: str) -> int:
    return sum(value is not None for value in await read_values(cache, query_key, list(notes(*range(100)))))


async def test_the_least_recently_used_query_is_evicted() -> None:
    cache = make_cache(max_entries=6)
    for query in ("q1", "q2", "q3"):
        await cache.put_many(query, notes(1, 2))
    await read_values(cache, "q1", [b"n1"])
    await cache.put_many("q4", notes(1))
    assert [await count(cache, query) for query in ("q1", "q2", "q3", "q4")] == [2, 0, 2, 1]


async def test_the_bound_counts_pairs_not_queries() -> None:
    cache = make_cache(max_entries=50)
    for query in range(40):
        await cache.put_many(f"q{query}", notes(*range(query % 7)))
        assert sum([await count(cache, f"q{other}") for other in range(40)]) <= 50


async def test_growing_a_query_evicts_others_not_itself() -> None:
    cache = make_cache(max_entries=4)
    await cache.put_many("q1", notes(1, 2))
    await cache.put_many("q2", notes(1, 2))
    await cache.put_many("q1", notes(3))
    assert await count(cache, "q1") == 3
    assert await count(cache, "q2") == 0


async def test_putting_the_same_notes_again_evicts_nothing() -> None:
    cache = make_cache(max_entries=4)
    await cache.put_many("q1", notes(1, 2))
    for _ in range(5):
        await cache.put_many("q2", notes(1, 2))
    assert await count(cache, "q1") == 2


async def test_a_query_larger_than_the_cache_keeps_its_newest_notes() -> None:
    cache = make_cache(max_entries=3)
    await cache.put_many("q", notes(1, 2))
    await cache.put_many("q", notes(3, 4, 5))
    assert await read_values(cache, "q", list(notes(1, 2, 3, 4, 5))) == [None, None, b"v3", b"v4", b"v5"]


async def test_a_cache_without_room_stores_nothing() -> None:
    cache = make_cache(max_entries=0)
    await cache.put_many("q", notes(1))
    assert await read_values(cache, "q", [b"n1"]) == [None]
