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
from tests.service.caches.harness import TTL_S, Harness, read_values
from tests.waiting import until

A, B, C = b"a" * 32, b"b" * 32, b"c" * 32


@pytest.fixture
async def harness() -> AsyncIterator[Harness]:
    made = Harness()
    yield made
    await made.cache.close()


async def test_a_value_comes_from_the_first_tier_that_has_it(harness: Harness) -> None:
    await harness.local.put_many("q", {A: b"1"})
    await harness.remote.put_many("q", {A: b"stale", B: b"2"})
    assert await harness.cache.get_many("q", [C, B, A, B]) == [
        None,
        (b"2", "redis"),
        (b"1", "local"),
        (b"2", "redis"),
    ]
    assert harness.counts("local") == {"hit": 1, "miss": 3, "written": 1}
    assert harness.counts("redis") == {"hit": 1, "miss": 1}


async def test_a_value_from_redis_is_local_the_next_time(harness: Harness) -> None:
    await harness.remote.put_many("q", {A: b"1"})
    assert await harness.cache.get_many("q", [A]) == [(b"1", "redis")]
    calls = harness.remote.calls
    assert await harness.cache.get_many("q", [A]) == [(b"1", "local")]
    assert harness.remote.calls == calls, "every value was local, so Redis is not called"


async def test_a_copy_from_redis_expires_with_the_original(harness: Harness) -> None:
    await harness.remote.put_many("q", {A: b"1"})
    harness.now = TTL_S - 10
    assert await harness.cache.get_many("q", [A]) == [(b"1", "redis")]
    harness.now = TTL_S - 1
    assert await harness.cache.get_many("q", [A]) == [(b"1", "local")]
    harness.now = TTL_S + 1
    assert await harness.cache.get_many("q", [A]) == [None]


async def test_a_copy_from_redis_does_not_prolong_older_local_entries(harness: Harness) -> None:
    await harness.local.put_many("q", {A: b"1"})
    harness.now = TTL_S - 10
    await harness.remote.put_many("q", {B: b"2"})
    assert await harness.cache.get_many("q", [A, B]) == [(b"1", "local"), (b"2", "redis")]
    harness.now = TTL_S + 1
    assert await harness.cache.get_many("q", [A]) == [None]


async def test_a_put_is_local_at_once_and_in_redis_later(harness: Harness) -> None:
    harness.remote.gate.clear()
    await harness.cache.put_many_behind("q", {A: b"1"})
    assert await harness.cache.get_many("q", [A]) == [(b"1", "local")]
    assert harness.counts("redis") == {}
    harness.remote.gate.set()
    await until(lambda: harness.counts("redis") == {"written": 1})
    assert await read_values(harness.remote, "q", [A]) == [b"1"]


async def test_later_changes_to_a_callers_entries_do_not_reach_redis(harness: Harness) -> None:
    entries = {A: b"1"}
    await harness.cache.put_many_behind("q", entries)
    entries[A] = b"changed"
    await until(lambda: harness.counts("redis") == {"written": 1})
    assert await read_values(harness.remote, "q", [A]) == [b"1"]


async def test_writes_over_the_limit_are_dropped_and_counted(harness: Harness) -> None:
    harness.remote.gate.clear()
    for number in range(5):
        await harness.cache.put_many_behind(f"q{number}", {A: b"1", B: b"2"})
    assert harness.counts("redis") == {"dropped": 4}
    harness.remote.gate.set()
    await until(lambda: harness.counts("redis") == {"dropped": 4, "written": 6})
    await asyncio.sleep(0)  # a write makes room one iteration of the loop after its end
    await harness.cache.put_many_behind("q", {A: b"1"})
    await until(lambda: harness.counts("redis") == {"dropped": 4, "written": 7})


async def test_a_failing_redis_is_a_miss_and_counted(harness: Harness) -> None:
    harness.remote.error = CacheUnavailableError("down")
    await harness.local.put_many("q", {A: b"1"})
    assert await harness.cache.get_many("q", [A, B, C]) == [(b"1", "local"), None, None]
    assert harness.counts("redis") == {"error": 2}


async def test_redis_is_used_when_the_local_tier_fails(harness: Harness) -> None:
    await harness.remote.put_many("q", {A: b"1"})
    await harness.local.close()
    assert await harness.cache.get_many("q", [A]) == [(b"1", "redis")]
    assert harness.counts("local") == {"error": 2}
    assert harness.breaker_gauge == 0


async def test_redis_is_not_called_while_the_breaker_is_open(harness: Harness) -> None:
    await harness.open_breaker()
    calls = harness.remote.calls
    assert await harness.cache.get_many("q", [A, B]) == [None, None]
    await harness.cache.put_many_behind("q", {A: b"1"})
    await until(lambda: harness.counts("redis") == {"error": 2, "skipped": 3})
    assert harness.remote.calls == calls


async def test_failed_writes_are_counted_and_open_the_breaker(harness: Harness) -> None:
    harness.remote.error = CacheUnavailableError("read only")
    for _ in range(2):
        await harness.cache.put_many_behind("q", {A: b"1", B: b"2"})
    await until(lambda: harness.counts("redis") == {"error": 4})
    assert harness.breaker_gauge == 1


async def test_a_lookup_closes_the_breaker_when_redis_is_back(harness: Harness) -> None:
    await harness.remote.put_many("q", {A: b"1"})
    await harness.open_breaker()
    harness.remote.error = None
    assert await harness.cache.get_many("q", [A]) == [None]
    harness.now = 10
    assert await harness.cache.get_many("q", [A]) == [(b"1", "redis")]
    assert harness.breaker_gauge == 0


async def test_pings_close_the_breaker_without_any_request(harness: Harness) -> None:
    await harness.open_breaker()
    harness.cache.start()
    harness.remote.error = None
    harness.now = 10
    await until(lambda: harness.breaker_gauge == 0)


async def test_pings_open_the_breaker_without_any_request(harness: Harness) -> None:
    harness.cache.start()
    harness.remote.error = CacheUnavailableError("down")
    await until(lambda: harness.breaker_gauge == 1)
    assert harness.counts("redis") == {}, "a ping counts no pair"


async def test_pings_continue_after_an_unexpected_error(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    harness.remote.error = KeyError("bug")
    harness.cache.start()
    await until(lambda: "the ping of the cache failed" in caplog.text)
    harness.remote.error = CacheUnavailableError("down")
    await until(lambda: harness.breaker_gauge == 1)


async def test_opening_and_closing_are_logged_once_each(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    harness.remote.gate.clear()
    harness.remote.error = CacheUnavailableError("down")
    calls = [asyncio.ensure_future(harness.cache.get_many("q", [A])) for _ in range(10)]
    await harness.remote.called.wait()
    harness.remote.gate.set()
    await asyncio.gather(*calls)
    harness.remote.error = None
    harness.now = 10
    for _ in range(3):
        await harness.cache.get_many("q", [A])
    assert [record.getMessage() for record in caplog.records] == [
        "the breaker opened, Redis is skipped until it answers again: down",
        "the breaker closed, Redis is used again",
    ]


async def test_a_cancelled_lookup_does_not_count_as_a_failure(harness: Harness) -> None:
    harness.remote.gate.clear()
    for _ in range(5):
        harness.remote.called.clear()
        task = asyncio.ensure_future(harness.cache.get_many("q", [A]))
        await harness.remote.called.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert harness.breaker_gauge == 0
    assert harness.counts("redis") == {}


async def test_an_unexpected_error_of_a_write_is_logged(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    harness.remote.error = KeyError("bug")
    await harness.cache.put_many_behind("q", {A: b"1"})
    await until(lambda: "writing to the cache failed" in caplog.text)


async def test_closing_waits_for_writes(harness: Harness) -> None:
    harness.remote.gate.clear()
    await harness.cache.put_many_behind("q", {A: b"1"})
    await harness.remote.called.wait()
    closing = asyncio.ensure_future(harness.cache.close())
    for _ in range(20):
        await asyncio.sleep(0)
    assert not closing.done()
    harness.remote.gate.set()
    await closing
    assert harness.counts("redis") == {"written": 1}


async def test_closing_drops_writes_that_take_too_long() -> None:
    harness = Harness(drain_s=0.01)
    harness.remote.gate.clear()
    await harness.cache.put_many_behind("q", {A: b"1", B: b"2"})
    async with asyncio.timeout(5):
        await harness.cache.close()
    assert harness.counts("redis") == {"dropped": 2}


async def test_after_closing_lookups_miss_and_writes_are_dropped(harness: Harness) -> None:
    harness.cache.start()
    await harness.cache.close()
    assert await harness.cache.get_many("q", [A]) == [None]
    await harness.cache.put_many_behind("q", {A: b"1"})
    assert harness.count("redis", "dropped") == 1
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_without_redis_only_the_local_tier_is_used() -> None:
    harness = Harness(has_remote=False)
    harness.cache.start()
    await harness.cache.put_many_behind("q", {A: b"1"})
    await harness.cache.put_many_behind("q", {})
    assert await harness.cache.get_many("q", [A, B]) == [(b"1", "local"), None]
    assert await harness.cache.get_many("q", []) == []
    await harness.cache.close()
    assert harness.counts("local") == {"hit": 1, "miss": 1, "written": 1}
    assert harness.count("redis", "miss") is None
    assert harness.breaker_gauge == 0


async def test_every_series_exists_before_its_first_event(harness: Harness) -> None:
    results = ("hit", "miss", "error", "skipped", "written", "dropped")
    assert [harness.count(tier, result) for tier in ("local", "redis") for result in results] == [0.0] * 12


@pytest.mark.redis
async def test_lookups_work_again_after_redis_is_killed_and_restarted(redis_server: RedisServer) -> None:
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
