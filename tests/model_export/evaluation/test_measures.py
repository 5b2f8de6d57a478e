import math

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from model_export.evaluation.measures import (
    area_under_curve,
    grade_metrics,
    macro_f1,
    most_probable,
    ndcg_by_query,
    quadratic_weighted_kappa,
    tally_confusion,
)


def measure(gold: list[int], chosen: list[int]) -> dict[str, float]:
    [confusion] = tally_confusion(np.zeros_like(gold), np.array(gold), np.array(chosen), 4)
    return {metric: float(value) for metric, value in grade_metrics(confusion).items()}


def test_most_probable_grade_is_the_lower_of_equal_ones() -> None:
    assert most_probable(np.array([[0.2, 0.4, 0.4], [0.5, 0.5, 0.0]])).tolist() == [1, 0]


def test_metrics_match_a_case_computed_by_hand() -> None:
    assert measure([0, 0, 2, 2], [0, 2, 2, 2]) == pytest.approx(
        {
            "accuracy": 0.75,
            # Grade 0: precision 1, recall 1/2. Grade 2: precision 2/3, recall 1. Grades 1 and 3 don't occur.
            "macro_f1": (2 / 3 + 4 / 5) / 2,
            # One disagreement of weight 4 in 4 pairs; by chance (2 * 3 + 2 * 1) / 4 = 2 such disagreements.
            "qwk": 1 - 1 / 2,
        }
    )


def test_area_under_curve_counts_a_tie_as_half() -> None:
    # One of two irrelevant pairs ties with the two relevant ones.
    assert area_under_curve(np.array([0, 0, 2, 2]), np.eye(4)[[0, 2, 2, 2]]) == pytest.approx(0.75)


def test_kappa_counts_the_distance_over_grades_that_do_not_occur() -> None:
    far, near = measure([0, 1, 3, 3], [0, 1, 3, 0]), measure([0, 1, 2, 2], [0, 1, 2, 0])
    assert far["qwk"] != pytest.approx(near["qwk"])


def test_predicted_grade_without_gold_adds_no_class_to_macro_f1() -> None:
    assert measure([0, 1], [0, 3])["macro_f1"] == pytest.approx(0.5)


def test_ndcg_matches_a_case_computed_by_hand() -> None:
    values = ndcg_by_query(np.array([3, 0, 1]), np.array([0.1, 0.2, 0.3]), np.array([0, 0, 0]), seed=0)
    best = 7 + 1 / math.log2(3)
    assert values.tolist() == pytest.approx([(1 + 7 / math.log2(4)) / best])


def test_ndcg_skips_queries_where_any_order_is_perfect() -> None:
    values = ndcg_by_query(np.array([3, 2, 2, 0, 1]), np.arange(5.0), np.array([0, 1, 1, 2, 2]), seed=0)
    assert np.isnan(values).tolist() == [True, True, False]


def test_ndcg_distinguishes_scores_that_are_equal_in_float32() -> None:
    gold, query_of = np.array([0, 3, 0, 3, 0, 3]), np.zeros(6, dtype=int)
    assert ndcg_by_query(gold, 1 + gold * 1e-12, query_of, seed=0).tolist() == [1.0]


def test_ties_are_broken_equally_for_all_systems_and_without_bias() -> None:
    gold, query_of = np.tile([3, 0, 0, 0], 500), np.repeat(np.arange(500), 4)
    level = np.zeros(2000)
    values = ndcg_by_query(gold, level, query_of, seed=0)
    assert values.tolist() == ndcg_by_query(gold, level + 5, query_of, seed=0).tolist()
    in_any_order = ndcg_score([[7, 0, 0, 0]], [[0, 0, 0, 0]], k=10)
    assert values.mean() == pytest.approx(in_any_order, abs=0.03)


def test_shares_have_the_metrics_of_counts() -> None:
    gold, chosen = np.random.default_rng(3).integers(0, 4, (2, 30))
    [confusion] = tally_confusion(np.zeros_like(gold), gold, chosen, 4)
    assert grade_metrics(confusion / 30) == pytest.approx(grade_metrics(confusion))


def test_kappa_is_undefined_if_all_grades_are_the_same() -> None:
    confusion = np.diag([0.0, 7.0, 0.0])
    assert np.isnan(quadratic_weighted_kappa(confusion))
    assert macro_f1(confusion) == 1
