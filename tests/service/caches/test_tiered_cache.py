import asyncio
import logging
from collections.abc import AsyncIterator

import pytest
from prometheus_client import CollectorRegistry

from service.caches.breaker import Breaker
from service.caches.memory_cache import MemoryCache
from service.caches.redis_cache import RedisCache
from service.caches.tiered_cache import TieredCache
from service.errors import CacheUnavailableError
from service.observability.metrics import Metrics
from tests.redis_server import RedisServer
from tests.service.caches.house import TTL_S, House, read_values
from tests.waiting import until

A, B, C = b"a" * 32, b"b" * 32, b"c" * 32


@pytest.fixture
async def house() -> AsyncIterator[House]:
    made = House()
    yield made
    await made.cache.close()


async def test_each_note_is_answered_by_the_nearest_tier_that_has_it(house: House) -> None:
    await house.local.put_many("q", {A: b"1"})
    await house.remote.put_many("q", {A: b"stale", B: b"2"})
    assert await house.cache.get_many("q", [C, B, A, B]) == [
        None,
        (b"2", "redis"),
        (b"1", "local"),
        (b"2", "redis"),
    ]
    assert house.counts("local") == {"hit": 1, "miss": 3, "written": 1}
    assert house.counts("redis") == {"hit": 1, "miss": 1}


async def test_what_redis_has_is_local_the_next_time(house: House) -> None:
    await house.remote.put_many("q", {A: b"1"})
    assert await house.cache.get_many("q", [A]) == [(b"1", "redis")]
    calls = house.remote.calls
    assert await house.cache.get_many("q", [A]) == [(b"1", "local")]
    assert house.remote.calls == calls, "all was local, Redis need not be asked"


async def test_a_copy_from_redis_expires_with_the_original(house: House) -> None:
    await house.remote.put_many("q", {A: b"1"})
    house.now = TTL_S - 10
    assert await house.cache.get_many("q", [A]) == [(b"1", "redis")]
    house.now = TTL_S - 1
    assert await house.cache.get_many("q", [A]) == [(b"1", "local")]
    house.now = TTL_S + 1
    assert await house.cache.get_many("q", [A]) == [None]


async def test_a_copy_from_redis_does_not_prolong_older_local_entries(house: House) -> None:
    await house.local.put_many("q", {A: b"1"})
    house.now = TTL_S - 10
    await house.remote.put_many("q", {B: b"2"})
    assert await house.cache.get_many("q", [A, B]) == [(b"1", "local"), (b"2", "redis")]
    house.now = TTL_S + 1
    assert await house.cache.get_many("q", [A]) == [None]


async def test_a_put_is_local_at_once_and_remote_behind(house: House) -> None:
    house.remote.gate.clear()
    await house.cache.put_many_behind("q", {A: b"1"})
    assert await house.cache.get_many("q", [A]) == [(b"1", "local")]
    assert house.counts("redis") == {}
    house.remote.gate.set()
    await until(lambda: house.counts("redis") == {"written": 1})
    assert await read_values(house.remote, "q", [A]) == [b"1"]


async def test_later_changes_to_a_callers_entries_do_not_reach_redis(house: House) -> None:
    entries = {A: b"1"}
    await house.cache.put_many_behind("q", entries)
    entries[A] = b"changed"
    await until(lambda: house.counts("redis") == {"written": 1})
    assert await read_values(house.remote, "q", [A]) == [b"1"]


async def test_writes_over_the_bound_are_dropped_and_counted(house: House) -> None:
    house.remote.gate.clear()
    for number in range(5):
        await house.cache.put_many_behind(f"q{number}", {A: b"1", B: b"2"})
    assert house.counts("redis") == {"dropped": 4}
    house.remote.gate.set()
    await until(lambda: house.counts("redis") == {"dropped": 4, "written": 6})
    await asyncio.sleep(0)  # a write's place is free one step after its end
    await house.cache.put_many_behind("q", {A: b"1"})
    await until(lambda: house.counts("redis") == {"dropped": 4, "written": 7})


async def test_a_failing_redis_is_a_miss_and_counted(house: House) -> None:
    house.remote.error = CacheUnavailableError("down")
    await house.local.put_many("q", {A: b"1"})
    assert await house.cache.get_many("q", [A, B, C]) == [(b"1", "local"), None, None]
    assert house.counts("redis") == {"error": 2}


async def test_a_failing_local_tier_leaves_redis(house: House) -> None:
    await house.remote.put_many("q", {A: b"1"})
    await house.local.close()
    assert await house.cache.get_many("q", [A]) == [(b"1", "redis")]
    assert house.counts("local") == {"error": 2}
    assert house.breaker_gauge == 0


async def test_failures_open_the_breaker_and_redis_is_left_alone(house: House) -> None:
    await house.open_breaker()
    calls = house.remote.calls
    assert await house.cache.get_many("q", [A, B]) == [None, None]
    await house.cache.put_many_behind("q", {A: b"1"})
    await until(lambda: house.counts("redis") == {"error": 2, "skipped": 3})
    assert house.remote.calls == calls


async def test_failed_writes_count_and_open_the_breaker_as_well(house: House) -> None:
    house.remote.error = CacheUnavailableError("read only")
    for _ in range(2):
        await house.cache.put_many_behind("q", {A: b"1", B: b"2"})
    await until(lambda: house.counts("redis") == {"error": 4})
    assert house.breaker_gauge == 1


async def test_a_request_finds_redis_again_when_it_is_back(house: House) -> None:
    await house.remote.put_many("q", {A: b"1"})
    await house.open_breaker()
    house.remote.error = None
    assert await house.cache.get_many("q", [A]) == [None]
    house.now = 10
    assert await house.cache.get_many("q", [A]) == [(b"1", "redis")]
    assert house.breaker_gauge == 0


async def test_pings_close_the_breaker_without_any_request(house: House) -> None:
    await house.open_breaker()
    house.cache.start()
    house.remote.error = None
    house.now = 10
    await until(lambda: house.breaker_gauge == 0)


async def test_pings_open_the_breaker_without_any_request(house: House) -> None:
    house.cache.start()
    house.remote.error = CacheUnavailableError("down")
    await until(lambda: house.breaker_gauge == 1)
    assert house.counts("redis") == {}, "a ping is no pair"


async def test_pings_outlive_a_bug(house: House, caplog: pytest.LogCaptureFixture) -> None:
    house.remote.error = KeyError("bug")
    house.cache.start()
    await until(lambda: "pinging the cache failed" in caplog.text)
    house.remote.error = CacheUnavailableError("down")
    await until(lambda: house.breaker_gauge == 1)


async def test_opening_and_closing_are_logged_once_each(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    house.remote.gate.clear()
    house.remote.error = CacheUnavailableError("down")
    calls = [asyncio.ensure_future(house.cache.get_many("q", [A])) for _ in range(10)]
    await house.remote.called.wait()
    house.remote.gate.set()
    await asyncio.gather(*calls)
    house.remote.error = None
    house.now = 10
    for _ in range(3):
        await house.cache.get_many("q", [A])
    assert [record.getMessage() for record in caplog.records] == [
        "the breaker opened, Redis is skipped until it answers again: down",
        "the breaker closed, Redis is used again",
    ]


async def test_a_cancelled_lookup_is_cancelled_and_no_failure(house: House) -> None:
    house.remote.gate.clear()
    for _ in range(5):
        house.remote.called.clear()
        task = asyncio.ensure_future(house.cache.get_many("q", [A]))
        await house.remote.called.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert house.breaker_gauge == 0
    assert house.counts("redis") == {}


async def test_a_bug_in_a_write_behind_is_logged(house: House, caplog: pytest.LogCaptureFixture) -> None:
    house.remote.error = KeyError("bug")
    await house.cache.put_many_behind("q", {A: b"1"})
    await until(lambda: "writing to the cache failed" in caplog.text)


async def test_closing_waits_for_writes(house: House) -> None:
    house.remote.gate.clear()
    await house.cache.put_many_behind("q", {A: b"1"})
    await house.remote.called.wait()
    closing = asyncio.ensure_future(house.cache.close())
    for _ in range(20):
        await asyncio.sleep(0)
    assert not closing.done()
    house.remote.gate.set()
    await closing
    assert house.counts("redis") == {"written": 1}


async def test_closing_drops_writes_that_take_too_long() -> None:
    house = House(drain_s=0.01)
    house.remote.gate.clear()
    await house.cache.put_many_behind("q", {A: b"1", B: b"2"})
    async with asyncio.timeout(5):
        await house.cache.close()
    assert house.counts("redis") == {"dropped": 2}


async def test_after_closing_nothing_is_found_written_or_raised(house: House) -> None:
    house.cache.start()
    await house.cache.close()
    assert await house.cache.get_many("q", [A]) == [None]
    await house.cache.put_many_behind("q", {A: b"1"})
    assert house.count("redis", "dropped") == 1
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_tier_that_fails_to_close_does_not_keep_the_other_open(house: House) -> None:
    async def fail() -> None:
        raise CacheUnavailableError("down")

    house.local.close = fail  # type: ignore[method-assign]
    await house.cache.close()
    with pytest.raises(CacheUnavailableError, match="closed"):
        await house.remote.ping()


async def test_without_redis_the_local_tier_serves_alone() -> None:
    house = House(has_remote=False)
    house.cache.start()
    await house.cache.put_many_behind("q", {A: b"1"})
    await house.cache.put_many_behind("q", {})
    assert await house.cache.get_many("q", [A, B]) == [(b"1", "local"), None]
    assert await house.cache.get_many("q", []) == []
    await house.cache.close()
    assert house.counts("local") == {"hit": 1, "miss": 1, "written": 1}
    assert house.count("redis", "miss") is None
    assert house.breaker_gauge == 0


async def test_every_series_is_there_before_its_first_event(house: House) -> None:
    results = ("hit", "miss", "error", "skipped", "written", "dropped")
    assert [house.count(tier, result) for tier in ("local", "redis") for result in results] == [0.0] * 12


@pytest.mark.redis
async def test_a_real_redis_killed_and_restarted_loses_no_lookup(redis_server: RedisServer) -> None:
    registry = CollectorRegistry()
    cache = TieredCache(
        MemoryCache(max_entries=0, ttl_s=60),
        RedisCache(redis_server.url, ttl_s=60, timeout_s=1),
        Breaker(failures_to_open=2, open_for_s=0),
        Metrics(registry),
        ping_every_s=0.001,
    )

    def is_open() -> bool:
        return registry.get_sample_value("notegrade_cache_breaker_open") == 1

    cache.start()
    await cache.put_many_behind("q", {A: b"1"})
    async with asyncio.timeout(5):
        while await cache.get_many("q", [A]) != [(b"1", "redis")]:
            pass
    redis_server.kill()
    await until(is_open)
    assert await cache.get_many("q", [A]) == [None]
    redis_server.start()
    await until(lambda: not is_open())
    await cache.close()
