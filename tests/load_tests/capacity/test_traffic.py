"""Classes of equal popularity give the same sums as every single query and note."""

import math

import numpy as np
import pytest

from load_tests.capacity.traffic import Traffic, inclusion, pairs_of, solve, zipf_law


@pytest.mark.parametrize("exponent", [0.0, 0.7, 1.0, 1.4])
@pytest.mark.parametrize("count", [1, 7, 100, 101, 20_000])
def test_zipf_classes_match_the_exact_law(exponent: float, count: int) -> None:
    law = zipf_law(exponent, count)
    ranks = np.arange(1.0, count + 1)
    exact = ranks**-exponent / (ranks**-exponent).sum()
    assert law.count.sum() == count
    assert (law.share * law.count).sum() == pytest.approx(1)
    # Each share in a class is the class's mean, so sums over all ranks agree.
    for times in (1, 30, 1_000):
        summed = (law.count * -np.expm1(-law.share * times)).sum()
        assert summed == pytest.approx((-np.expm1(-exact * times)).sum(), rel=1e-3)


def test_a_billion_notes_are_a_few_hundred_classes() -> None:
    law = zipf_law(1.0, 10**9)
    assert len(law.share) < 400
    # The harmonic number: ln n + Euler's constant.
    assert law.share[0] == pytest.approx(1 / (math.log(10**9) + 0.5772), rel=1e-4)


def test_inclusion_sums_to_the_number_drawn() -> None:
    law = zipf_law(0.0, 4)
    assert inclusion(law, 1).tolist() == pytest.approx([0.25] * 4)
    assert inclusion(law, 4).tolist() == [1.0] * 4
    skewed = zipf_law(1.0, 1_000)
    chances = inclusion(skewed, 20)
    assert (chances * skewed.count).sum() == pytest.approx(20)
    # More often than in 20 draws with repetition, and never twice.
    assert 1 - (1 - skewed.share[0]) ** 20 < chances[0] < 1
    assert inclusion(law, 0).tolist() == [0.0] * 4


def test_pair_frequencies_sum_to_all_notes_of_all_requests() -> None:
    pairs = pairs_of(Traffic(queries=50, notes=300, notes_per_request=8, own_share=0.25))
    assert pairs.notes[0, 0] == 2
    assert pairs.mean(np.ones((1, 1))) == pytest.approx(1)
    assert pairs.total(np.ones((1, 1))) == 50 * 302


def test_requests_with_more_notes_than_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="more than 3"):
        pairs_of(Traffic(queries=5, notes=3))


def test_solve_finds_the_crossing() -> None:
    assert solve(lambda x: x * x, 49) == pytest.approx(7)
    assert solve(lambda x: 1 - math.exp(-x), 1.5) == math.inf
