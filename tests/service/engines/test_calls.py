"""Calls end together, and a silent engine counts as hung. tests/service/engines/test_engine_behaviour.py tests whole engines."""

import asyncio
from pathlib import Path

import pytest

from service.engines.calls import EngineCalls
from service.engines.fake_engine import FakeEngine
from service.errors import EngineLostError
from tests.checkpoints import fake_engine_for, load_tiny
from tests.waiting import until

PROMPT = (1, 2, 3)


async def wait_in(calls: EngineCalls) -> None:
    async with calls.until_lost():
        await asyncio.Event().wait()


async def test_present_and_future_calls_fail_with_the_first_reason() -> None:
    calls = EngineCalls(asyncio.Event().wait)
    waiting = [asyncio.create_task(wait_in(calls)) for _ in range(3)]
    await until(lambda: len(calls) == 3)
    calls.check()
    calls.lose("it hangs")
    calls.lose("it is closed")
    for call in (*waiting, wait_in(calls)):
        with pytest.raises(EngineLostError, match="it hangs"):
            await call
    with pytest.raises(EngineLostError, match="it hangs"):
        calls.check()
    assert len(calls) == 0


async def test_a_timeout_inside_a_call_stays_a_timeout() -> None:
    calls = EngineCalls(asyncio.Event().wait)
    with pytest.raises(TimeoutError):
        async with calls.until_lost(), asyncio.timeout(0):
            await asyncio.Event().wait()


async def test_a_cancelled_call_is_cancelled() -> None:
    calls = EngineCalls(asyncio.Event().wait)
    waiting = asyncio.create_task(wait_in(calls))
    await until(lambda: len(calls) == 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert len(calls) == 0


async def test_waiting_until_idle_has_a_timeout() -> None:
    calls, released = EngineCalls(asyncio.Event().wait), asyncio.Event()

    async def end_late() -> None:
        async with calls.until_lost():
            try:
                await asyncio.Event().wait()
            finally:
                await released.wait()

    await calls.wait_until_idle(timeout_s=60)  # there are no calls
    late = asyncio.create_task(end_late())
    await until(lambda: len(calls) == 1)
    calls.lose("it is closed")
    await calls.wait_until_idle(timeout_s=0.01)
    assert len(calls) == 1
    released.set()
    await calls.wait_until_idle(timeout_s=60)
    assert len(calls) == 0
    with pytest.raises(EngineLostError, match="it is closed"):
        await late


@pytest.fixture
async def engine(tmp_path: Path) -> FakeEngine:
    """Make an engine that counts as hung after three silent checks."""
    engine = fake_engine_for(load_tiny(tmp_path), max_silent_checks=3)
    engine.trace = (5, 6, 7)
    await engine.start()
    return engine


async def test_a_hung_engine_fails_every_call_and_stays_lost(engine: FakeEngine) -> None:
    engine.hold()
    scoring = [asyncio.create_task(engine.score(PROMPT, 0)) for _ in range(5)]
    writing = asyncio.ensure_future(anext(engine.write(PROMPT, 5, 0)))
    await until(lambda: engine.in_flight == 6)
    for _ in range(3):
        await engine.check()
    with pytest.raises(EngineLostError, match="not responded for 4 checks"):
        await engine.check()
    for each in (*scoring, writing):
        with pytest.raises(EngineLostError, match="not responded"):
            await each
    assert (engine.in_flight, engine.aborted) == (0, 6)
    engine.let_go()
    for call in (engine.check(), engine.score(PROMPT, 0), anext(engine.write(PROMPT, 5, 0))):
        with pytest.raises(EngineLostError, match="not responded"):
            await call


async def test_every_response_restarts_the_count_of_silent_checks(engine: FakeEngine) -> None:
    for _ in range(5):
        engine.hold()
        scoring = asyncio.create_task(engine.score(PROMPT, 0))
        await until(lambda: engine.in_flight == 1)
        for _ in range(3):
            await engine.check()
        engine.let_go()
        await scoring


async def test_a_slow_reader_of_a_trace_does_not_mean_that_the_engine_hangs(engine: FakeEngine) -> None:
    async for _ in engine.write(PROMPT, 5, 0):
        for _ in range(10):
            await engine.check()


async def test_an_engine_whose_calls_all_end_at_their_deadlines_is_not_hung(engine: FakeEngine) -> None:
    for _ in range(10):
        engine.hold()
        scoring = asyncio.create_task(engine.score(PROMPT, 0))
        await until(lambda: engine.in_flight == 1)
        await engine.check()
        await asyncio.sleep(0)  # it may be asked something
        scoring.cancel()
        with pytest.raises(asyncio.CancelledError):
            await scoring
        engine.let_go()
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def test_an_idle_engine_never_counts_as_hung(engine: FakeEngine) -> None:
    for _ in range(20):
        await engine.check()
    await engine.score(PROMPT, 0)


async def test_a_dead_engine_is_reported_as_dead_not_as_hung(engine: FakeEngine) -> None:
    engine.kill()
    with pytest.raises(EngineLostError, match="not running"):
        await engine.check()
