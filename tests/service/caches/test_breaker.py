import asyncio
from collections.abc import Callable

import pytest

from service.caches.breaker import Breaker
from service.errors import CacheUnavailableError
from tests.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock(0.0)


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(failures_to_open=3, open_for_s=10, clock=clock)


def call(breaker: Breaker, error: BaseException | None = None) -> bool:
    """Make a call that succeeds or raises `error`, and return whether the breaker admitted it."""
    admitted = False
    try:
        with breaker.attempt() as admitted:
            if admitted and error is not None:
                raise error
    except BaseException as raised:
        if raised is not error:
            raise
    return admitted


def fail(breaker: Breaker, times: int = 1) -> None:
    for _ in range(times):
        call(breaker, CacheUnavailableError("down"))


def test_consecutive_failures_open_it(breaker: Breaker) -> None:
    fail(breaker, 2)
    assert not breaker.is_open
    fail(breaker)
    assert breaker.is_open
    assert not call(breaker)


def test_a_success_between_failures_keeps_it_closed(breaker: Breaker) -> None:
    for _ in range(5):
        fail(breaker, 2)
        assert call(breaker)
    assert not breaker.is_open


def test_a_failure_is_raised_to_the_caller(breaker: Breaker) -> None:
    with pytest.raises(CacheUnavailableError, match="down"), breaker.attempt():
        raise CacheUnavailableError("down")


def test_while_open_it_admits_nothing_until_the_time_of_the_trial(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now = 9.9
    assert not call(breaker)
    clock.now = 10
    assert call(breaker)


def test_a_successful_trial_closes_it(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now = 10
    call(breaker)
    assert not breaker.is_open
    fail(breaker, 2)
    assert not breaker.is_open, "the old failures count no more"


def test_a_failed_trial_keeps_it_open_for_another_period(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now = 10
    fail(breaker)
    clock.now = 19.9
    assert not call(breaker)
    clock.now = 20
    assert call(breaker)
    assert not breaker.is_open


def test_it_admits_one_trial_at_a_time(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now = 10
    with breaker.attempt() as first:
        assert [call(breaker) for _ in range(3)] == [False] * 3
        assert breaker.is_open
    assert first
    assert call(breaker)


@pytest.mark.parametrize("end", [asyncio.CancelledError, KeyError, GeneratorExit])
def test_a_trial_that_neither_fails_nor_succeeds_allows_another_trial(
    breaker: Breaker, clock: Clock, end: Callable[[], BaseException]
) -> None:
    fail(breaker, 3)
    clock.now = 10
    assert call(breaker, end())
    assert breaker.is_open
    assert call(breaker)
    assert not breaker.is_open


def test_cancelled_calls_do_not_count_as_failures(breaker: Breaker) -> None:
    for _ in range(10):
        call(breaker, asyncio.CancelledError())
    assert not breaker.is_open


def test_a_call_from_before_it_opened_does_not_close_it(breaker: Breaker) -> None:
    with breaker.attempt():
        fail(breaker, 3)
    assert breaker.is_open


def test_a_call_from_before_it_opened_does_not_delay_the_trial(breaker: Breaker, clock: Clock) -> None:
    straggler = breaker.attempt()
    assert straggler.__enter__()
    fail(breaker, 3)
    clock.now = 5
    error = CacheUnavailableError("late")
    straggler.__exit__(type(error), error, None)
    clock.now = 10
    assert call(breaker)
