"""The interval holds the true difference as often as it says, on made-up windows whose truth is known."""

import math
import random
from statistics import NormalDist

import pytest

from service.experiments.interval import Window, bucket_quantile, compare, t_quantile

CONTROL, TREATMENT = 0.05, 0.07


def window(chance: random.Random, is_together: float = 0.5) -> Window:
    """Requests of one window. A shock moves all of them, in both arms or in one; without shocks they would be independent."""
    together = chance.gammavariate(1 / is_together, is_together)

    def failed(requests: int, share: float) -> float:
        rate = min(1.0, share * together * chance.gammavariate(4, 1 / 4))
        return max(0.0, chance.gauss(requests * rate, math.sqrt(requests * rate * (1 - rate))))

    control, treatment = chance.randint(400, 1200), chance.randint(40, 160)
    return Window(failed(control, CONTROL), control, failed(treatment, TREATMENT), treatment)


def counted_one_by_one(windows: list[Window]) -> tuple[float, float]:
    """The interval of binomials, as if requests were independent."""
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
def test_as_many_intervals_hold_the_truth_as_they_say(count: int) -> None:
    chance, truth, repeats = random.Random(count), TREATMENT - CONTROL, 1500
    held = one_by_one = 0
    for _ in range(repeats):
        windows = [window(chance) for _ in range(count)]
        found, naive = compare(windows, 0.95), counted_one_by_one(windows)
        held += found.low <= truth <= found.high
        one_by_one += naive[0] <= truth <= naive[1]
    print(f"{count} windows: {held / repeats:.3f}; requests one by one: {one_by_one / repeats:.3f}")
    # Rates are skewed, which costs a few points with few windows; four standard deviations of chance on top are 2.3.
    assert 0.91 <= held / repeats <= 0.975
    assert one_by_one / repeats < 0.8


def test_what_both_arms_suffer_together_is_taken_off() -> None:
    chance = random.Random(7)
    rates = [chance.uniform(0.1, 0.9) for _ in range(30)]
    paired = compare([Window(100 * rate, 100, 100 * rate + 2, 100) for rate in rates], 0.95)
    others = chance.sample(rates, 30)
    unpaired = compare(
        [Window(100 * a, 100, 100 * b + 2, 100) for a, b in zip(rates, others, strict=True)], 0.95
    )
    assert paired.value == pytest.approx(0.02)
    assert paired.is_seen
    assert not unpaired.is_seen
    assert paired.high - paired.low < (unpaired.high - unpaired.low) / 100


def test_a_long_window_counts_for_as_much_as_it_holds() -> None:
    found = compare([Window(1, 10, 0, 1), Window(90, 90, 9, 9)], 0.95)
    assert (found.control, found.treatment) == (0.91, 0.9)


def test_equal_arms_differ_in_nothing_whatever_floating_point_leaves() -> None:
    found = compare([Window(0.1 * each, each, 0.3 * each, 3 * each) for each in range(1, 40)], 0.95)
    assert not found.is_seen


def test_one_window_has_no_variance() -> None:
    with pytest.raises(ValueError, match=r"1 window\(s\) have no variance"):
        compare([Window(1, 2, 1, 2)], 0.95)


# From the tables of Student's t.
@pytest.mark.parametrize(
    ("probability", "degrees", "expected"),
    [(0.975, 9, 2.2622), (0.975, 23, 2.0687), (0.995, 9, 3.2498), (0.9975, 23, 3.1040), (0.975, 120, 1.9799)],
)
def test_t_is_that_of_the_tables(probability: float, degrees: int, expected: float) -> None:
    assert t_quantile(probability, degrees) == pytest.approx(expected, rel=1e-3)


def test_quantiles_are_estimated_as_prometheus_does() -> None:
    buckets = {0.1: 50.0, 0.5: 90.0, 1.0: 90.0, math.inf: 100.0}
    assert bucket_quantile(0.25, buckets) == pytest.approx(0.05)
    assert bucket_quantile(0.5, buckets) == pytest.approx(0.1)
    assert bucket_quantile(0.7, buckets) == pytest.approx(0.3)
    assert bucket_quantile(0.99, buckets) == 1.0, "beyond the last bound there is none to go by"
    assert bucket_quantile(0.5, {}) is None
    assert bucket_quantile(0.5, {0.1: 0.0, math.inf: 0.0}) is None
