"""Behaviour of the cache on a Redis Cluster alone: slots that move, nodes that fail. test_cache_behaviour.py tests what all caches share."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from service.caches.redis_cache import RedisCache
from service.errors import CacheUnavailableError, ConfigurationError
from tests.redis_cluster import RedisClusterServers
from tests.redis_server import RedisServer
from tests.service.caches.harness import read_values
from tests.service.caches.test_redis_cache import cancel_at_every_step, open_sockets
from tests.waiting import until

pytestmark = pytest.mark.redis

A, B = b"a" * 32, b"b" * 32
TIMEOUT_S = 0.5  # short for a test, long enough for a busy machine


def make_cache(servers: RedisClusterServers, timeout_s: float = 5, max_connections: int = 64) -> RedisCache:
    return RedisCache(servers.url, 60, timeout_s, max_connections, cluster=True)


@pytest.fixture
async def cache(redis_cluster: RedisClusterServers) -> AsyncIterator[RedisCache]:
    made = make_cache(redis_cluster, TIMEOUT_S)
    yield made
    await made.close()


@pytest.fixture
def partial_cluster(redis_cluster: RedisClusterServers) -> Iterator[RedisClusterServers]:
    """A cluster that goes on without some of its slots, as Redis recommends for caches."""
    for admin in redis_cluster.admins:
        admin.config_set("cluster-require-full-coverage", "no")
    yield redis_cluster
    redis_cluster.heal()
    for admin in redis_cluster.admins:
        admin.config_set("cluster-require-full-coverage", "yes")


def keys_by_owner(servers: RedisClusterServers) -> list[str]:
    """Return one key on each node."""
    keys: dict[int, str] = {}
    for number in range(100):
        keys.setdefault(servers.owner(f"q{number}"), f"q{number}")
    return [keys[number] for number in range(3)]


async def fails(cache: RedisCache, key: str) -> str:
    """Check that a lookup fails at its timeout, with some time to spare for a busy machine, and return why."""
    started = time.monotonic()
    with pytest.raises(CacheUnavailableError) as caught:
        await read_values(cache, key, [A])
    assert time.monotonic() - started < 10 * TIMEOUT_S
    return str(caught.value)


async def wait_until_read(cache: RedisCache, key: str, values: list[bytes | None]) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                assert await read_values(cache, key, [A]) == values
                return
            except CacheUnavailableError:
                await asyncio.sleep(0.05)


async def test_entries_are_spread_over_the_nodes_and_those_of_a_query_are_together(
    cache: RedisCache, redis_cluster: RedisClusterServers
) -> None:
    for number in range(30):
        await cache.put_many(f"ng:{{{number}}}:x", {A: b"1", B: b"2"})
        await cache.put_many(f"ng:{{{number}}}:y", {A: b"1"})
    keys = [{str(key) for key in admin.keys("*")} for admin in redis_cluster.admins]
    assert all(keys)
    assert all(key.translate({ord("x"): "y", ord("y"): "x"}) in node for node in keys for key in node)


async def test_a_slot_that_moves_is_followed(cache: RedisCache, redis_cluster: RedisClusterServers) -> None:
    await cache.put_many("q", {A: b"1"})
    with redis_cluster.moving("q"):
        assert await read_values(cache, "q", [A]) == [b"1"]
        await cache.put_many("q", {B: b"2"})
    assert await read_values(cache, "q", [A, B]) == [b"1", b"2"]


async def test_a_redirection_to_an_unknown_node_is_an_error(
    cache: RedisCache, redis_cluster: RedisClusterServers
) -> None:
    await cache.put_many("q", {A: b"1"})
    owner = redis_cluster.admins[redis_cluster.owner("q")]
    with redis_cluster.moving("q"):
        # It then names no host. A node that was just added is unknown, too.
        owner.config_set("cluster-preferred-endpoint-type", "unknown-endpoint")
        await fails(cache, "q")
        owner.config_set("cluster-preferred-endpoint-type", "ip")
    await wait_until_read(cache, "q", [b"1"])


async def test_only_the_entries_of_a_dead_node_fail_and_its_successor_is_used(
    cache: RedisCache, partial_cluster: RedisClusterServers
) -> None:
    keys = keys_by_owner(partial_cluster)
    for key in keys:
        await cache.put_many(key, {A: b"1"})
    partial_cluster.nodes[1].kill()
    assert "ConnectionError" in await fails(cache, keys[1])
    assert await read_values(cache, keys[0], [A]) == [b"1"]
    assert await read_values(cache, keys[2], [A]) == [b"1"]
    with pytest.raises(CacheUnavailableError):
        await cache.ping()
    partial_cluster.nodes[1].start()
    await wait_until_read(cache, keys[1], [None])
    await cache.ping()


async def test_a_hung_node_is_an_error_within_the_timeout_until_another_has_its_slot(
    cache: RedisCache, partial_cluster: RedisClusterServers
) -> None:
    key = keys_by_owner(partial_cluster)[1]
    await cache.put_many(key, {A: b"1"})
    partial_cluster.nodes[1].pause()
    assert "TimeoutError" in await fails(cache, key)
    partial_cluster.take_over(key, by=2)
    await wait_until_read(cache, key, [None])


async def test_a_cluster_that_is_down_is_an_error_and_used_again_once_it_is_whole(
    cache: RedisCache, redis_cluster: RedisClusterServers
) -> None:
    key = keys_by_owner(redis_cluster)[0]
    await cache.put_many(key, {A: b"1"})
    redis_cluster.nodes[2].kill()
    redis_cluster.wait_until_down(0)
    assert "ClusterDownError" in await fails(cache, key)
    for node in redis_cluster.nodes[:2]:
        node.kill()
    for _ in range(3):
        assert "Connection" in await fails(cache, key)
    for node in redis_cluster.nodes:
        node.start()
    await wait_until_read(cache, key, [None])


async def test_connections_to_a_node_are_bounded(redis_cluster: RedisClusterServers) -> None:
    cache = make_cache(redis_cluster, max_connections=4)
    key = keys_by_owner(redis_cluster)[0]
    before = len(redis_cluster.admins[0].client_list())
    assert await asyncio.gather(*(read_values(cache, key, [A]) for _ in range(100))) == [[None]] * 100
    assert before < len(redis_cluster.admins[0].client_list()) <= before + 4 + 1  # one read the slots
    await cache.close()


@pytest.mark.parametrize("operation", ["get", "put"])
async def test_a_call_can_be_cancelled_at_every_step(
    redis_cluster: RedisClusterServers, operation: str
) -> None:
    cache = make_cache(redis_cluster, max_connections=1)
    await cancel_at_every_step(cache, operation)
    await cache.close()


async def test_reading_the_slots_may_take_longer_than_a_call(redis_cluster: RedisClusterServers) -> None:
    cache = make_cache(redis_cluster, timeout_s=0.02)
    redis_cluster.nodes[0].pause()
    with pytest.raises(CacheUnavailableError):
        await cache.ping()
    redis_cluster.nodes[0].resume()
    await wait_until_read(cache, "q", [None])
    await cache.close()


async def test_a_closed_cache_leaves_no_connection_open(redis_cluster: RedisClusterServers) -> None:
    before = open_sockets()
    cache = make_cache(redis_cluster)
    keys = keys_by_owner(redis_cluster)
    for key in keys:
        await cache.put_many(key, {A: b"1"})
    redis_cluster.admins[1].client_kill_filter(_type="normal")
    with pytest.raises(CacheUnavailableError, match="ConnectionError"):
        await read_values(cache, keys[1], [A])
    await cache.close()
    await until(lambda: open_sockets() <= before)


async def test_the_server_is_not_asked_for_all_its_commands(
    cache: RedisCache, redis_cluster: RedisClusterServers
) -> None:
    """Reading them takes the event loop 0.1 s, on each loss of a connection."""
    for admin in redis_cluster.admins:
        admin.config_resetstat()
    await cache.put_many("q", {A: b"1"})
    await cache.ping()
    stats = [admin.info("commandstats") for admin in redis_cluster.admins]
    assert all("cmdstat_ping" in each for each in stats)
    assert not any("cmdstat_command" in each for each in stats)


async def test_a_single_redis_is_no_cluster(redis_server: RedisServer) -> None:
    cache = RedisCache(redis_server.url, 60, 5, cluster=True)
    with pytest.raises(CacheUnavailableError, match=r"RedisClusterException \(ResponseError\)"):
        await cache.ping()
    await cache.close()


async def test_a_cluster_is_no_single_redis(redis_cluster: RedisClusterServers) -> None:
    cache = RedisCache(redis_cluster.url, 60, 5)
    with pytest.raises(CacheUnavailableError, match="MovedError"):
        await read_values(cache, keys_by_owner(redis_cluster)[1], [A])
    await cache.close()


@pytest.mark.parametrize("url", ["redis://localhost:6379/1", "unix:///run/redis.sock", "redis://"])
def test_a_url_that_no_cluster_has_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="cluster"):
        RedisCache(url, 60, 1, cluster=True)
