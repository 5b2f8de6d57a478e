import json
import random

import pytest
from scipy.stats import spearmanr

from service.contract.comparison import Comparison, Graded, RatioMean, describe_comparison, rank_correlation


def graded(*scores: float) -> list[Graded]:
    return [Graded(min(3, int(score * 4)), score) for score in scores]


@pytest.mark.parametrize("seed", range(5))
def test_the_rank_correlation_equals_scipys_including_ties(seed: int) -> None:
    rng = random.Random(seed)
    first = [rng.choice([0.1, 0.2, 0.3, 0.4]) for _ in range(30)]
    second = [rng.random() for _ in range(30)]
    assert rank_correlation(first, second) == pytest.approx(spearmanr(first, second).statistic)


@pytest.mark.parametrize(
    ("first", "second"), [([0.5], [0.5]), ([0.5, 0.5], [0.1, 0.9]), ([0.1, 0.9], [0.5, 0.5])]
)
def test_equal_scores_have_no_rank_correlation(first: list[float], second: list[float]) -> None:
    assert rank_correlation(first, second) is None


def test_a_checkpoint_compared_with_itself_has_no_differences() -> None:
    comparison = Comparison(4)
    for _ in range(20):
        comparison.add(graded(0.1, 0.4, 0.9), graded(0.1, 0.4, 0.9))
    found = comparison.to_json()
    assert (found["requests"], found["pairs"]) == (20, 60)
    for name in ("same_grade", "rank_correlation", "same_first"):
        assert found[name] == {"mean": pytest.approx(1), "low": pytest.approx(1), "high": pytest.approx(1)}
    assert found["score_shift"] == {"mean": 0, "low": 0, "high": 0, "p5": 0, "p50": 0, "p95": 0}
    assert found["flips"] == [[20, 0, 0, 0], [0, 20, 0, 0], [0, 0, 0, 0], [0, 0, 0, 20]]


def test_differences_are_counted_by_kind() -> None:
    comparison = Comparison(4)
    comparison.add(graded(0.2, 0.9), graded(0.8, 0.6))  # the order is reversed
    comparison.add(graded(0.2, 0.9), graded(0.3, 0.9))
    found = comparison.to_json()
    assert found["same_grade"]["mean"] == pytest.approx(1 / 4)
    assert found["same_first"]["mean"] == pytest.approx(1 / 2)
    assert found["rank_correlation"]["mean"] == pytest.approx(0)
    assert found["score_shift"]["mean"] == pytest.approx((0.6 - 0.3 + 0.1 + 0) / 4)
    assert found["score_distance"]["mean"] == pytest.approx((0.6 + 0.3 + 0.1) / 4)
    assert found["score_shift"]["p95"] == pytest.approx(0.6, abs=0.013)
    assert found["flips"] == [[0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1]]
    assert found["same_grade"]["low"] is None  # two requests are too few for an interval


def test_a_request_without_notes_is_ignored() -> None:
    comparison = Comparison(4)
    comparison.add([], [])
    assert comparison.to_json()["requests"] == 0


def test_the_interval_contains_the_true_mean_in_about_95_percent_of_samples() -> None:
    rng = random.Random(1)
    covered = 0
    for _ in range(300):
        mean = RatioMean()
        for _ in range(60):
            count = rng.randint(1, 20)
            share = rng.betavariate(7, 3)  # the pairs of one request are alike
            mean.add(sum(rng.random() < share for _ in range(count)), count)
        found = mean.to_json()
        assert found["low"] is not None
        assert found["high"] is not None
        covered += found["low"] <= 0.7 <= found["high"]
    assert 0.90 <= covered / 300 <= 0.98


def test_a_comparison_is_described_as_text() -> None:
    comparison = Comparison(4)
    assert "same grade        not known yet" in describe_comparison(comparison.to_json())
    for _ in range(10):
        comparison.add(graded(0.2, 0.9), graded(0.3, 0.9))
    text = describe_comparison(json.loads(json.dumps(comparison.to_json())))
    assert text == (
        "20 pairs of 10 requests; 95 % intervals over requests\n"
        "same grade        50.0 % [50.0, 50.0]\n"
        "same note first   100.0 % [100.0, 100.0]\n"
        "rank correlation  1.000 [1.000, 1.000] (Spearman, mean over requests)\n"
        "score shift       +0.050 [+0.050, +0.050], absolute 0.050 [0.050, 0.050]\n"
        "                  p5 +0.000, p50 +0.000, p95 +0.099\n"
        "\n"
        "                 to 0     to 1     to 2     to 3\n"
        "from grade 0        0       10        0        0\n"
        "from grade 1        0        0        0        0\n"
        "from grade 2        0        0        0        0\n"
        "from grade 3        0        0        0       10"
    )
