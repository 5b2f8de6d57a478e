import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from service.metrics import Metrics
from service.scoring.admission import RETRY_AFTER_RANGE_S, Admission


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def make(limit: int = 100) -> tuple[Admission, Clock, CollectorRegistry]:
    clock, registry = Clock(), CollectorRegistry()
    return Admission(limit, clock, Metrics(registry)), clock, registry


def test_budget_is_kept() -> None:
    admission, _, registry = make(100)
    admission.admit(60)
    assert admission.can_admit(40)
    assert not admission.can_admit(41)
    admission.release(60, done=True)
    assert admission.can_admit(100)
    assert registry.get_sample_value("notegrade_backlog_tokens") == 0


def test_an_idle_engine_admits_even_what_is_over_the_budget() -> None:
    admission, _, _ = make(100)
    assert admission.can_admit(1_000)
    admission.admit(1_000)
    assert not admission.can_admit(1)


@given(st.lists(st.tuples(st.integers(1, 80), st.booleans()), max_size=40))
def test_backlog_is_what_was_admitted_and_not_released(steps: list[tuple[int, bool]]) -> None:
    admission, _, _ = make(100)
    held: list[int] = []
    for cost, release in steps:
        if release and held:
            admission.release(held.pop(), done=True)
        elif admission.can_admit(cost):
            admission.admit(cost)
            held.append(cost)
        assert admission.backlog_tokens == sum(held)
        assert admission.backlog_tokens <= 100


def test_retry_after_is_backlog_over_rate() -> None:
    admission, clock, _ = make(10_000)
    admission.admit(1_000)
    clock.now_s += 2
    admission.release(1_000, done=True)  # 500 tokens a second
    admission.admit(4_000)
    assert admission.retry_after_s() == pytest.approx(8, rel=0.01)


def test_idle_time_and_undone_work_say_nothing_about_the_rate() -> None:
    admission, clock, _ = make(10_000)
    admission.admit(1_000)
    clock.now_s += 2
    admission.release(1_000, done=True)
    clock.now_s += 3_600
    admission.admit(4_000)
    assert admission.retry_after_s() == pytest.approx(8, rel=0.01)
    clock.now_s += 2
    admission.release(2_000, done=False)
    assert admission.retry_after_s() > 2_000 / 500


def test_retry_after_stays_in_its_range() -> None:
    admission, clock, _ = make(10_000)
    shortest, longest = RETRY_AFTER_RANGE_S
    assert admission.retry_after_s() == shortest
    admission.admit(5_000)
    assert admission.retry_after_s() == longest  # nothing measured yet
    clock.now_s += 1_000
    admission.release(1, done=True)
    assert admission.retry_after_s() == longest
