"""Percentiles are those of what was recorded."""

import random

import pytest

from load_tests.bench.latencies import Latencies


def test_percentiles_are_right_to_three_digits_at_every_scale() -> None:
    rng = random.Random(1)
    seconds = [rng.lognormvariate(-3, 2) for _ in range(10_000)]
    found, ranked = Latencies(seconds).percentiles_ms(), sorted(seconds)
    assert ranked[-1] / ranked[0] > 1e5
    for name, rank in (("p50", 5_000), ("p90", 9_000), ("p99", 9_900), ("p99.9", 9_990), ("max", 10_000)):
        assert found[name] == pytest.approx(ranked[rank - 1] * 1000, rel=2e-3)


def test_two_histograms_add_up_to_that_of_all() -> None:
    one, other = Latencies([0.1] * 99), Latencies([5.0])
    one.add(other)
    assert len(one) == 100
    assert one.percentiles_ms() == Latencies([0.1] * 99 + [5.0]).percentiles_ms()


def test_of_nothing_there_are_no_percentiles() -> None:
    assert Latencies().percentiles_ms() == {}


def test_what_is_out_of_range_still_counts() -> None:
    found = Latencies([0.0, 1e6])
    assert len(found) == 2
    assert found.percentiles_ms()["max"] == pytest.approx(3_600_000, rel=1e-3)
