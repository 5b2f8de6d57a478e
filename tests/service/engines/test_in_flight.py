"""Calls that end together. What engines make of it is in test_engine_behaviour.py and test_watched_engine.py."""

import asyncio

import pytest

from service.engines.in_flight import CallsInFlight
from service.errors import EngineLostError
from tests.waiting import until


async def waits(calls: CallsInFlight) -> None:
    async with calls.until_lost():
        await asyncio.Event().wait()


async def test_all_fail_with_the_first_reason_and_so_does_what_comes_later() -> None:
    calls = CallsInFlight()
    waiting = [asyncio.create_task(waits(calls)) for _ in range(3)]
    await until(lambda: len(calls) == 3)
    calls.check()
    calls.lose("it hangs")
    calls.lose("it is closed")
    for call in (*waiting, waits(calls)):
        with pytest.raises(EngineLostError, match="it hangs"):
            await call
    with pytest.raises(EngineLostError, match="it hangs"):
        calls.check()
    assert len(calls) == 0


async def test_a_timeout_of_what_waits_stays_one() -> None:
    calls = CallsInFlight()
    with pytest.raises(TimeoutError):
        async with calls.until_lost(), asyncio.timeout(0):
            await asyncio.Event().wait()


async def test_one_that_is_cancelled_is_cancelled() -> None:
    calls = CallsInFlight()
    waiting = asyncio.create_task(waits(calls))
    await until(lambda: len(calls) == 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert len(calls) == 0


async def test_their_end_is_waited_for_but_not_for_ever() -> None:
    calls, let_go = CallsInFlight(), asyncio.Event()

    async def clings() -> None:
        async with calls.until_lost():
            try:
                await asyncio.Event().wait()
            finally:
                await let_go.wait()

    await calls.ended(within_s=60)  # there are none
    clinging = asyncio.create_task(clings())
    await until(lambda: len(calls) == 1)
    calls.lose("it is closed")
    await calls.ended(within_s=0.01)
    assert len(calls) == 1
    let_go.set()
    await calls.ended(within_s=60)
    assert len(calls) == 0
    with pytest.raises(EngineLostError, match="it is closed"):
        await clinging
