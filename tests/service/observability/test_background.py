import asyncio

import pytest

from service.observability.background import run_forever
from tests.waiting import until


async def test_a_step_that_raises_is_logged_without_its_text_and_the_next_one_runs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    steps = 0

    async def step() -> None:
        nonlocal steps
        steps += 1
        if steps == 1:
            raise RuntimeError(
                " ".join(["quiet", "cafes"])
            )  # whole only in the text, not in the traceback's line

    task = asyncio.create_task(run_forever("the test's task", step, pause_s=0.001))
    await until(lambda: steps > 2)
    assert not task.done()
    [record] = caplog.records
    assert record.getMessage() == "the test's task failed unexpectedly and continues"
    assert record.__dict__["error"] == "RuntimeError"
    assert "quiet cafes" not in caplog.text
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_step_that_always_raises_waits_before_it_is_repeated() -> None:
    steps = 0

    async def step() -> None:
        nonlocal steps
        steps += 1
        raise RuntimeError

    task = asyncio.create_task(run_forever("the test's task", step, pause_s=1000))
    await until(lambda: steps == 1)
    for _ in range(10):
        await asyncio.sleep(0)
    assert steps == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
