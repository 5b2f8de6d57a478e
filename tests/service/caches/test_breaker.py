import asyncio
from collections.abc import Callable

import pytest

from service.caches.breaker import Breaker
from service.errors import CacheUnavailableError


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(failures_to_open=3, open_for_s=10, clock=clock)


def call(breaker: Breaker, error: BaseException | None = None) -> bool:
    """One call that ends so; whether it was admitted. What it raises, other than `error`, comes out."""
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


def test_failures_in_a_row_open_it(breaker: Breaker) -> None:
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


def test_the_failure_goes_on_to_the_caller(breaker: Breaker) -> None:
    with pytest.raises(CacheUnavailableError, match="down"), breaker.attempt():
        raise CacheUnavailableError("down")


def test_it_admits_nothing_until_its_time_is_up(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now = 9.9
    assert not call(breaker)
    clock.now = 10
    assert call(breaker)


def test_a_trial_that_succeeds_closes_it(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now = 10
    call(breaker)
    assert not breaker.is_open
    fail(breaker, 2)
    assert not breaker.is_open, "the old failures count no more"


def test_a_trial_that_fails_opens_it_for_another_while(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now = 10
    fail(breaker)
    clock.now = 19.9
    assert not call(breaker)
    clock.now = 20
    assert call(breaker)
    assert not breaker.is_open


def test_one_trial_runs_at_a_time(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now = 10
    with breaker.attempt() as first:
        assert [call(breaker) for _ in range(3)] == [False] * 3
        assert breaker.is_open
    assert first
    assert call(breaker)


@pytest.mark.parametrize("end", [asyncio.CancelledError, KeyError, GeneratorExit])
def test_a_trial_without_verdict_leaves_it_open_and_lets_the_next_try(
    breaker: Breaker, clock: Clock, end: Callable[[], BaseException]
) -> None:
    fail(breaker, 3)
    clock.now = 10
    assert call(breaker, end())
    assert breaker.is_open
    assert call(breaker)
    assert not breaker.is_open


def test_cancelled_calls_are_no_failures(breaker: Breaker) -> None:
    for _ in range(10):
        call(breaker, asyncio.CancelledError())
    assert not breaker.is_open


def test_stragglers_from_before_it_opened_do_not_close_it(breaker: Breaker) -> None:
    with breaker.attempt():
        fail(breaker, 3)
    assert breaker.is_open


def test_stragglers_from_before_it_opened_do_not_delay_the_trial(breaker: Breaker, clock: Clock) -> None:
    straggler = breaker.attempt()
    assert straggler.__enter__()
    fail(breaker, 3)
    clock.now = 5
    error = CacheUnavailableError("late")
    straggler.__exit__(type(error), error, None)
    clock.now = 10
    assert call(breaker)
