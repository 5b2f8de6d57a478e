"""What is the watch's own: when it gives an engine up. That it is an engine otherwise is in test_engine_behaviour.py."""

import asyncio
from pathlib import Path

import pytest

from service.engines.fake_engine import FakeEngine
from service.engines.watched_engine import WatchedEngine
from service.errors import EngineLostError
from tests.checkpoints import fake_engine_for, load_tiny
from tests.waiting import until

PROMPT = (1, 2, 3)


@pytest.fixture
async def fake(tmp_path: Path) -> FakeEngine:
    fake = fake_engine_for(load_tiny(tmp_path))
    fake.trace = (5, 6, 7)
    await fake.start()
    return fake


@pytest.fixture
def watched(fake: FakeEngine) -> WatchedEngine:
    return WatchedEngine(fake, max_silent_checks=3)


async def test_silent_with_work_it_is_given_up_and_fails_all_of_it(
    fake: FakeEngine, watched: WatchedEngine
) -> None:
    fake.hold()
    scoring = [asyncio.create_task(watched.score(PROMPT, 0)) for _ in range(5)]
    writing = asyncio.ensure_future(anext(watched.write(PROMPT, 5, 0)))
    await until(lambda: fake.in_flight == 6)
    for _ in range(3):
        await watched.check()
    with pytest.raises(EngineLostError, match="told nothing for 4 checks"):
        await watched.check()
    for each in (*scoring, writing):
        with pytest.raises(EngineLostError, match="told nothing"):
            await each
    assert (fake.in_flight, fake.aborted) == (0, 6)


async def test_given_up_it_stays_so(fake: FakeEngine, watched: WatchedEngine) -> None:
    fake.hold()
    scoring = asyncio.create_task(watched.score(PROMPT, 0))
    await until(lambda: fake.in_flight == 1)
    for _ in range(3):
        await watched.check()
    with pytest.raises(EngineLostError):
        await watched.check()
    with pytest.raises(EngineLostError):
        await scoring
    fake.let_go()
    for call in (watched.check(), watched.score(PROMPT, 0), anext(watched.write(PROMPT, 5, 0))):
        with pytest.raises(EngineLostError, match="told nothing"):
            await call


async def test_whatever_it_tells_begins_the_count_anew(fake: FakeEngine, watched: WatchedEngine) -> None:
    for _ in range(5):
        fake.hold()
        scoring = asyncio.create_task(watched.score(PROMPT, 0))
        await until(lambda: fake.in_flight == 1)
        for _ in range(3):
            await watched.check()
        fake.let_go()
        await scoring
    async for _ in watched.write(PROMPT, 5, 0):
        for _ in range(10):  # while the reader takes his time
            await watched.check()


async def test_without_work_it_may_be_silent_for_ever(watched: WatchedEngine) -> None:
    for _ in range(20):
        await watched.check()
    await watched.score(PROMPT, 0)


async def test_a_dead_one_is_no_hung_one(fake: FakeEngine, watched: WatchedEngine) -> None:
    fake.kill()
    with pytest.raises(EngineLostError, match="not running"):
        await watched.check()


async def test_cancelling_is_cancelling(fake: FakeEngine, watched: WatchedEngine) -> None:
    fake.hold()
    scoring = asyncio.create_task(watched.score(PROMPT, 0))
    await until(lambda: fake.in_flight == 1)
    scoring.cancel()
    with pytest.raises(asyncio.CancelledError):
        await scoring
    assert fake.aborted == 1
