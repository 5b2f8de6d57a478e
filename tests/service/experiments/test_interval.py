"""The interval contains the true difference as often as its confidence says, on simulated windows whose true rates are known."""

import math
import random
from statistics import NormalDist

import pytest

from service.experiments.interval import Window, bucket_quantile, compare

CONTROL, TREATMENT = 0.05, 0.07


def window(chance: random.Random, is_together: float = 0.5) -> Window:
    """Simulate the requests of one window. Shocks to both arms and to each arm correlate its requests."""
    together = chance.gammavariate(1 / is_together, is_together)

    def failed(requests: int, share: float) -> float:
        rate = min(1.0, share * together * chance.gammavariate(4, 1 / 4))
        return max(0.0, chance.gauss(requests * rate, math.sqrt(requests * rate * (1 - rate))))

    control, treatment = chance.randint(400, 1200), chance.randint(40, 160)
    return Window(failed(control, CONTROL), control, failed(treatment, TREATMENT), treatment)


def binomial_interval(windows: list[Window]) -> tuple[float, float]:
    """Compute the interval for two binomials, as if requests were independent."""
    control, treatment = (
        sum(each.control_whole for each in windows),
        sum(w.treatment_whole for w in windows),
    )
    shares = (
        sum(each.control_part for each in windows) / control,
        sum(each.treatment_part for each in windows) / treatment,
    )
    error = math.sqrt(
        sum(share * (1 - share) / n for share, n in zip(shares, (control, treatment), strict=True))
    )
    margin = NormalDist().inv_cdf(0.975) * error
    return shares[1] - shares[0] - margin, shares[1] - shares[0] + margin


@pytest.mark.parametrize("count", [12, 24, 100])
def test_the_interval_covers_the_true_difference_as_often_as_it_says(count: int) -> None:
    chance, truth, repeats = random.Random(count), TREATMENT - CONTROL, 1500
    covered = covered_by_binomial = 0
    for _ in range(repeats):
        windows = [window(chance) for _ in range(count)]
        found, naive = compare(windows, 0.95), binomial_interval(windows)
        covered += found.low <= truth <= found.high
        covered_by_binomial += naive[0] <= truth <= naive[1]
    print(
        f"coverage with {count} windows: {covered / repeats:.3f}; binomial: {covered_by_binomial / repeats:.3f}"
    )
    # Skewed rates cost a few points of coverage with few windows; four standard deviations of chance are 2.3 points more.
    assert 0.91 <= covered / repeats <= 0.975
    assert covered_by_binomial / repeats < 0.8


def test_a_disturbance_of_both_arms_does_not_widen_the_interval() -> None:
    chance = random.Random(7)
    rates = [chance.uniform(0.1, 0.9) for _ in range(30)]
    paired = compare([Window(100 * rate, 100, 100 * rate + 2, 100) for rate in rates], 0.95)
    others = chance.sample(rates, 30)
    unpaired = compare(
        [Window(100 * a, 100, 100 * b + 2, 100) for a, b in zip(rates, others, strict=True)], 0.95
    )
    assert paired.value == pytest.approx(0.02)
    assert paired.is_significant
    assert not unpaired.is_significant
    assert paired.high - paired.low < (unpaired.high - unpaired.low) / 100


def test_a_window_is_weighted_by_its_requests() -> None:
    found = compare([Window(1, 10, 0, 1), Window(90, 90, 9, 9)], 0.95)
    assert (found.control, found.treatment) == (0.91, 0.9)


def test_rounding_is_not_a_difference() -> None:
    found = compare([Window(0.1 * each, each, 0.3 * each, 3 * each) for each in range(1, 40)], 0.95)
    assert not found.is_significant


def test_one_window_has_no_variance() -> None:
    with pytest.raises(ValueError, match=r"1 window\(s\) have no variance"):
        compare([Window(1, 2, 1, 2)], 0.95)


def test_the_interval_is_student_s() -> None:
    """Ten windows whose difference has mean 0.02 and standard error 0.01; t(0.975, 9) is 2.2622."""
    moves = [0.05, -0.01] * 5
    found = compare([Window(10, 100, 10 + 100 * move, 100) for move in moves], 0.95)
    assert found.value == pytest.approx(0.02)
    assert found.low == pytest.approx(0.02 - 2.2622 * 0.01, abs=1e-6)
    assert found.high == pytest.approx(0.02 + 2.2622 * 0.01, abs=1e-6)


def test_quantiles_are_estimated_as_by_prometheus() -> None:
    buckets = {0.1: 50.0, 0.5: 90.0, 1.0: 90.0, math.inf: 100.0}
    assert bucket_quantile(0.25, buckets) == pytest.approx(0.05)
    assert bucket_quantile(0.5, buckets) == pytest.approx(0.1)
    assert bucket_quantile(0.7, buckets) == pytest.approx(0.3)
    assert bucket_quantile(0.99, buckets) == 1.0, "the last finite bound, above which nothing is known"
    assert bucket_quantile(0.5, {}) is None
    assert bucket_quantile(0.5, {0.1: 0.0, math.inf: 0.0}) is None
