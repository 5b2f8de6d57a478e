import pytest

from service.observability.live import WINDOW_S, LiveFigures
from tests.clock import Clock


def test_percentiles_are_accurate_to_five_percent() -> None:
    live = LiveFigures(Clock())
    for milliseconds in range(1, 1001):
        live.count_latency(milliseconds / 1000)
    found = live.over(10)
    assert found.requests == 1000
    assert found.p50_ms == pytest.approx(500, rel=0.05)
    assert found.p99_ms == pytest.approx(990, rel=0.05)


def test_figures_without_requests_are_none_or_zero() -> None:
    found = LiveFigures(Clock()).over(10)
    assert (found.requests, found.p50_ms, found.p99_ms) == (0, None, None)
    assert (found.pairs_per_s, found.hit_rate, found.shed_rate) == (0, None, None)


def test_each_rate_has_its_own_denominator() -> None:
    live = LiveFigures(Clock())
    live.count_pairs(scored=6, cached=3, shed=2, all_pairs=10)
    found = live.over(2)
    assert (found.pairs_per_s, found.hit_rate, found.shed_rate) == (3.0, 0.5, 0.2)


def test_throughput_counts_the_part_of_the_second_that_has_passed() -> None:
    clock = Clock()
    live = LiveFigures(clock)
    live.count_pairs(scored=6, cached=0, shed=0, all_pairs=6)
    clock.now += 2.5
    assert live.over(2).pairs_per_s == pytest.approx(6 / 2.5)


def test_old_seconds_are_forgotten_and_idle_ones_are_empty() -> None:
    clock = Clock()
    live = LiveFigures(clock)
    live.count_latency(1.0)
    clock.now += 2
    live.count_latency(0.1)
    clock.now += 1
    assert [second.requests for second in live.by_second(4)] == [0, 1, 0, 1]
    assert live.over(1).requests == 1
    clock.now += 100
    assert live.over(60).requests == 0
    assert [second.requests for second in live.by_second(2)] == [0, 0]


def test_the_chart_s_oldest_second_is_kept_while_a_new_one_is_counted() -> None:
    clock = Clock()
    live = LiveFigures(clock)
    for _ in range(WINDOW_S + 5):
        live.count_latency(0.1)
        clock.now += 1
    live.count_latency(0.1)  # in the current second
    assert [second.requests for second in live.by_second(WINDOW_S)] == [1] * WINDOW_S


def test_memory_is_bounded_whatever_the_load() -> None:
    clock = Clock()
    live = LiveFigures(clock)
    for step in range(200):
        clock.now += 1
        for value in range(50):
            live.count_latency(value**3 * (step + 1) / 1000)
    assert len(live._seconds) == WINDOW_S + 1
    assert max(len(second.latencies) for second in live._seconds) <= 50
