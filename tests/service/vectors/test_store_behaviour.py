"""The behaviour of every vector store, tested on the in-memory twin and on a real Redis."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

import pytest
from redis.asyncio import Redis

from service.caches.redis_connection import RedisConnection
from service.errors import CacheUnavailableError
from service.vectors.base import VectorStore
from service.vectors.memory_store import MemoryVectorStore
from service.vectors.redis_store import RedisVectorStore
from tests.redis_cluster import RedisClusterServers
from tests.redis_server import RedisServer, age_keys

TTL_S = 1000.0
A, B, C = b"a" * 32, b"b" * 32, b"c" * 32


@dataclass
class Subject:
    store: VectorStore
    age: Callable[[float], Awaitable[None]]  # makes all entries that many seconds older


async def _memory_subject() -> AsyncIterator[Subject]:
    now = 0.0

    async def age(seconds: float) -> None:
        nonlocal now
        now += seconds

    yield Subject(MemoryVectorStore(max_bytes=10_000, ttl_s=TTL_S, clock=lambda: now), age)


async def _redis_subject(url: str, admins: Sequence[str], *, cluster: bool) -> AsyncIterator[Subject]:
    async def age(seconds: float) -> None:
        for client in clients:
            await age_keys(client, "*", seconds)

    clients = [Redis.from_url(admin) for admin in admins]
    connection = RedisConnection(url, 5, 4, CacheUnavailableError, cluster=cluster)
    store = RedisVectorStore(connection, ttl_s=TTL_S, cluster=cluster)
    yield Subject(store, age)
    await store.close()
    for client in clients:
        await client.aclose()


@pytest.fixture(
    params=["memory", *(pytest.param(kind, marks=pytest.mark.redis) for kind in ("redis", "cluster"))]
)
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    if request.param == "memory":
        subjects = _memory_subject()
    elif request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        subjects = _redis_subject(server.url, [server.url], cluster=False)
    else:
        servers: RedisClusterServers = request.getfixturevalue("redis_cluster")
        subjects = _redis_subject(servers.url, [node.url for node in servers.nodes], cluster=True)
    async for made in subjects:
        yield made


@pytest.fixture
def store(subject: Subject) -> VectorStore:
    return subject.store


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


async def test_an_entry_expires_after_its_time_to_live(subject: Subject) -> None:
    await subject.store.put_many({A: b"1"})
    await subject.age(TTL_S - 10)
    assert await subject.store.get_many([A]) == [b"1"]
    await subject.age(20)
    assert await subject.store.get_many([A]) == [None]


async def test_a_put_starts_the_time_to_live_anew_for_its_own_entries(subject: Subject) -> None:
    await subject.store.put_many({A: b"1", B: b"2"})
    await subject.age(TTL_S - 10)
    await subject.store.put_many({A: b"again"})
    await subject.age(20)
    assert await subject.store.get_many([A, B]) == [b"again", None]


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
