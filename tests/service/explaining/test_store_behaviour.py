"""The behaviour that every mode store and trace store must have, tested in memory, on a real Redis and on a real Redis Cluster."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any, cast

import pytest
import yaml  # type: ignore[import-untyped]  # it comes with vLLM, its stubs don't
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from service.caches.redis_connection import RedisConnection
from service.errors import ExplanationStoreError, ModeConflictError
from service.explaining.base import ModeStore, TraceStore
from service.explaining.memory_stores import MemoryModeStore, MemoryTraceStore
from service.explaining.mode import NEVER_FLIPPED, Flip
from service.explaining.redis_stores import RedisModeStore, RedisTraceStore
from service.explaining.switch import Switch
from service.observability.metrics import Metrics
from tests.places import Place
from tests.redis_server import RedisServer
from tests.service.explaining.replica import turn_on

ROOT = Path(__file__).parents[3]
TTL_S, MAX_REQUESTS, MAX_TRACES = 1000.0, 3, 4


@pytest.fixture
async def client(redis_server: RedisServer) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_server.url) as client:
        yield client


@pytest.fixture
async def connection(redis_server: RedisServer) -> AsyncIterator[RedisConnection]:
    made = RedisConnection(redis_server.url, 5, 8, ExplanationStoreError)
    yield made
    await made.close()


@pytest.fixture
async def modes(place: Place) -> AsyncIterator[ModeStore]:
    # A lambda, so that a test can replace time.time.
    made: ModeStore = MemoryModeStore(max_history=3, wall_clock=lambda: time.time())
    if place.url is not None:
        connection = RedisConnection(place.url, 5, 4, ExplanationStoreError, cluster=place.is_cluster)
        made = RedisModeStore(connection, max_history=3)
    yield made
    await made.close()


@pytest.fixture
async def traces(place: Place) -> AsyncIterator[TraceStore]:
    made: TraceStore = MemoryTraceStore(TTL_S, MAX_REQUESTS, place.clock, max_traces=MAX_TRACES)
    if place.url is not None:
        connection = RedisConnection(place.url, 5, 4, ExplanationStoreError, cluster=place.is_cluster)
        made = RedisTraceStore(connection, TTL_S, MAX_REQUESTS, max_traces=MAX_TRACES)
    yield made
    await made.close()


async def test_a_store_evicts_no_mode_by_default(modes: ModeStore) -> None:
    assert await modes.evicting_policy() == ""


@pytest.mark.redis
async def test_redis_evicts_the_mode_by_some_policies_once_its_memory_is_limited(
    connection: RedisConnection, client: Redis
) -> None:
    modes = RedisModeStore(connection)
    for policy, limit, evicting in (
        ("allkeys-lru", "0", ""),
        ("allkeys-lru", "100mb", "allkeys-lru"),
        ("allkeys-random", "100mb", "allkeys-random"),
        ("volatile-lru", "100mb", ""),
        ("noeviction", "100mb", ""),
    ):
        await client.config_set("maxmemory-policy", policy)
        await client.config_set("maxmemory", limit)
        assert await modes.evicting_policy() == evicting


@pytest.mark.redis
async def test_a_full_redis_with_the_shipped_policy_keeps_the_mode_and_its_history(
    connection: RedisConnection, client: Redis
) -> None:
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))
    command = compose["services"]["redis"]["command"]
    await client.config_set("maxmemory-policy", command[command.index("--maxmemory-policy") + 1])
    modes = RedisModeStore(connection)
    flipped = await modes.flip(turn_on(), 0)
    await client.config_set("maxmemory", (await client.info("memory"))["used_memory"] + 2**20)
    for number in range(400):  # cached pairs have a time to live
        await client.set(f"ng:{number}", "x" * 10_000, ex=3600)
    assert (await client.info("stats"))["evicted_keys"] > 0
    assert (await modes.read()).mode == flipped.mode
    assert await modes.history(10) == [flipped.mode]


async def test_a_new_store_holds_no_flip(modes: ModeStore) -> None:
    reading = await modes.read()
    assert (reading.mode, reading.left_s) == (NEVER_FLIPPED, None)
    assert reading.age_s > 1e9
    assert await modes.history(10) == []


async def test_a_flip_is_read_back_in_full(modes: ModeStore) -> None:
    flipped = await modes.flip(turn_on("sample", ttl_s=60, rate=0.25), 0)
    reading = await modes.read()
    assert reading.mode == flipped.mode
    mode = reading.mode
    assert (mode.revision, mode.mode, mode.owner, mode.rate) == (1, "sample", "ann", 0.25)
    assert mode.reason == "a note ranks absurdly high"
    assert mode.expires is not None
    assert mode.expires - mode.since == pytest.approx(60, abs=0.01)
    assert reading.left_s == pytest.approx(60, abs=2)
    assert reading.age_s == pytest.approx(0, abs=2)


async def test_a_flip_replaces_every_field_of_the_one_before(modes: ModeStore) -> None:
    await modes.flip(turn_on("sample", rate=0.25), 0)
    reading = await modes.flip(Flip("off", "bob", "seen enough: \u6771\u4eac \r\n*3"), 1)
    assert (reading.left_s, reading.mode.expires, reading.mode.rate) == (None, None, None)
    assert reading.mode.reason == "seen enough: \u6771\u4eac \r\n*3"


async def test_the_time_left_shrinks_and_becomes_negative(modes: ModeStore) -> None:
    first = await modes.flip(turn_on(ttl_s=0.05), 0)
    await asyncio.sleep(0.1)
    second = await modes.read()
    assert first.left_s is not None
    assert second.left_s is not None
    assert second.left_s < 0 < first.left_s
    assert second.mode == first.mode


@pytest.mark.parametrize("seconds", [86_400, -86_400], ids=["a day on", "a day back"])
async def test_a_leap_of_the_wall_clock_does_not_change_when_the_mode_expires(
    modes: ModeStore, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    real_time = time.time
    flipped = await modes.flip(turn_on(ttl_s=60), 0)
    monkeypatch.setattr(time, "time", lambda: real_time() + seconds)
    reading = await modes.read()
    assert reading.left_s == pytest.approx(60, abs=5)
    assert reading.age_s == pytest.approx(0, abs=5)
    assert reading.mode == flipped.mode


async def test_the_times_of_a_flip_are_wall_clock_times(modes: ModeStore) -> None:
    mode = (await modes.flip(turn_on(ttl_s=60), 0)).mode
    assert mode.since == pytest.approx(time.time(), abs=5)
    assert mode.expires == pytest.approx(time.time() + 60, abs=5)


async def test_history_is_newest_first_and_bounded(modes: ModeStore) -> None:
    for revision in range(5):
        await modes.flip(turn_on(owner=f"o{revision}"), revision)
    assert [mode.owner for mode in await modes.history(10)] == ["o4", "o3", "o2"]
    assert [mode.owner for mode in await modes.history(2)] == ["o4", "o3"]


async def test_only_one_of_several_flips_at_once_succeeds_and_the_others_name_it(modes: ModeStore) -> None:
    flips = [modes.flip(turn_on(owner=owner), 0) for owner in ("ann", "bob", "cat")]
    ended = await asyncio.gather(*flips, return_exceptions=True)
    refused = [error for error in ended if isinstance(error, ModeConflictError)]
    assert len(refused) == 2
    winner = (await modes.read()).mode.owner
    assert all(winner in str(error) for error in refused)
    assert len(await modes.history(10)) == 1


async def test_a_flip_is_announced(modes: ModeStore) -> None:
    async with contextlib.aclosing(modes.changes()) as changes:
        listening = asyncio.ensure_future(anext(changes))
        revision = 0
        while not listening.done():  # the first flips may come before it has subscribed
            await modes.flip(turn_on(), revision)
            revision += 1
            await asyncio.wait({listening}, timeout=0.1)
        assert listening.result() is None


async def test_traces_are_stored_by_request(traces: TraceStore) -> None:
    await traces.put("r1", {"n1": b"one"})
    await traces.put("r1", {"n2": b"two", "n1": b"new"})
    await traces.put("r2", {"n1": b"other"})
    assert await traces.get("r1") == {"n1": b"new", "n2": b"two"}
    assert await traces.get("r2") == {"n1": b"other"}
    assert await traces.get("r3") == {}


async def test_a_field_may_be_any_text_and_an_empty_put_changes_nothing(traces: TraceStore) -> None:
    fields = {"\u6771\u4eac \r\n$3": b"\x00\xff", "": b""}
    await traces.put("r {x}\u00fc", fields)
    await traces.put("r {x}\u00fc", {})
    assert await traces.get("r {x}\u00fc") == fields


async def test_the_oldest_requests_make_room(traces: TraceStore) -> None:
    for name in ("r1", "r2", "r3"):
        await traces.put(name, {"n": b"1"})
    await traces.put("r1", {"n": b"again"})
    await traces.put("r4", {"n": b"1"})
    kept = [name for name in ("r1", "r2", "r3", "r4") if await traces.get(name)]
    assert kept == ["r1", "r3", "r4"]


async def test_a_request_id_used_again_and_again_keeps_a_bounded_number_of_traces(traces: TraceStore) -> None:
    for number in range(10 * MAX_TRACES):
        await traces.put("r1", {f"n{number}": b"1"})
    assert set(await traces.get("r1")) == {"n36", "n37", "n38", "n39"}


async def test_the_oldest_traces_of_a_request_make_room(traces: TraceStore) -> None:
    for name in ("n1", "n2", "n3", "n4", "n1", "n5"):
        await traces.put("r1", {name: b"1"})
    await traces.put("r2", {"n1": b"other"})
    assert set(await traces.get("r1")) == {"n1", "n3", "n4", "n5"}
    await traces.put("r1", {f"m{number}": b"1" for number in range(MAX_TRACES + 3)})
    kept = await traces.get("r1")
    assert len(kept) == MAX_TRACES
    assert all(name.startswith("m") for name in kept)
    assert set(await traces.get("r2")) == {"n1"}


async def test_traces_expire(traces: TraceStore, place: Place) -> None:
    await traces.put("r1", {"n": b"1"})
    await place.age(TTL_S - 10)
    assert await traces.get("r1")
    await place.age(20)
    assert await traces.get("r1") == {}


async def test_closed_stores_raise(modes: ModeStore, traces: TraceStore) -> None:
    for store in (modes, traces):
        await store.close()
        await store.close()
    calls: list[Awaitable[object]] = [
        modes.read(),
        modes.flip(turn_on(), 0),
        anext(modes.changes()),
        traces.put("r1", {"n": b"1"}),
        traces.get("r1"),
    ]
    for call in calls:
        with pytest.raises(ExplanationStoreError):
            await call


@pytest.mark.redis
async def test_requests_that_made_room_leave_no_keys_in_redis(
    connection: RedisConnection, client: Redis
) -> None:
    store = RedisTraceStore(connection, TTL_S, max_requests=2, max_traces=MAX_TRACES)
    for number in range(20):
        await store.put(f"r{number % 7}", {f"n{number}": b"1"})
    left = {key.decode() for key in cast("list[bytes]", await client.keys("*"))}
    assert left == {"ng:{traces}", *(f"ng:{{traces}}{key}" for key in (":r4", ":r5", "order:r4", "order:r5"))}


@pytest.mark.redis
@pytest.mark.parametrize(
    "content",
    [
        {"mode": "all"},
        {"mode": "all", "revision": "one", "owner": "", "reason": "", "since_ms": "0"},
        {"mode": "loud", "revision": "1", "owner": "", "reason": "", "since_ms": "0"},
        {"mode": b"\xff", "revision": "1", "owner": "", "reason": "", "since_ms": "0"},
    ],
)
async def test_a_redis_value_that_is_not_a_mode_is_refused(
    connection: RedisConnection, client: Redis, content: dict[Any, Any]
) -> None:
    await client.hset("ng:{mode}", mapping=content)
    with pytest.raises(ExplanationStoreError, match="is not an explanation mode"):
        await RedisModeStore(connection).read()


@pytest.mark.redis
async def test_a_listener_raises_when_redis_dies(
    connection: RedisConnection, redis_server: RedisServer
) -> None:
    listening = asyncio.ensure_future(anext(RedisModeStore(connection).changes()))
    await asyncio.sleep(0.2)
    redis_server.kill()
    with pytest.raises(ExplanationStoreError):
        await asyncio.wait_for(listening, 30)


@pytest.mark.redis
async def test_a_restart_of_redis_and_of_every_replica_keeps_the_time_left(
    redis_binary: str, tmp_path: Path
) -> None:
    server = RedisServer(redis_binary, folder=tmp_path)
    server.start()
    before = RedisModeStore(RedisConnection(server.url, 5, 8, ExplanationStoreError))
    await before.flip(turn_on(ttl_s=60), 0)
    await before.close()
    server.restart()
    store = RedisModeStore(RedisConnection(server.url, 5, 8, ExplanationStoreError))
    restarted = Switch(store, Metrics(CollectorRegistry()))
    now = await restarted.look()
    assert (now.name, now.last.owner) == ("all", "ann")
    assert now.left_s is not None
    assert 30 < now.left_s < 60
    assert len(await store.history(10)) == 1
    await store.close()
    server.kill()


@pytest.mark.redis
async def test_a_flip_needs_one_answer_of_redis(connection: RedisConnection, client: Redis) -> None:
    """A second call to read the new state could fail after the flip took place."""
    store = RedisModeStore(connection)
    await store.flip(turn_on(), 0)
    before = await _scripts(client)
    assert (await store.flip(turn_on("on_request"), 1)).mode.revision == 2
    with pytest.raises(ModeConflictError):
        await store.flip(turn_on(), 1)
    assert await _scripts(client) == before + 2


async def _scripts(client: Redis) -> int:
    """Count the calls of the store, each of which is one script."""
    return int((await client.info("commandstats"))["cmdstat_eval"]["calls"])
