import asyncio

import pytest

from service.scoring.deadline import Deadline


async def test_remaining_time_is_zero_after_the_deadline() -> None:
    now = asyncio.get_running_loop().time()
    assert Deadline(now + 5).remaining_s() == pytest.approx(5, abs=1)
    assert Deadline(now - 5).remaining_s() == 0


async def test_milliseconds_count_from_now() -> None:
    assert Deadline.after_ms(5_000).remaining_s() == pytest.approx(5, abs=1)
