import math

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from model_export.evaluation.measures import grade_metrics, most_probable, ndcg_by_query


def one_hot(grades: list[int], scale: int = 4) -> np.ndarray:
    return np.eye(scale)[grades]


def test_grade_is_the_lower_one_where_two_are_equal() -> None:
    assert most_probable(np.array([[0.2, 0.4, 0.4], [0.5, 0.5, 0.0]])).tolist() == [1, 0]


def test_metrics_of_a_case_worked_by_hand() -> None:
    metrics = grade_metrics(np.array([0, 0, 2, 2]), one_hot([0, 2, 2, 2]))
    assert metrics["accuracy"] == 0.75
    # Grade 0: precision 1, recall 1/2. Grade 2: precision 2/3, recall 1. Grades 1 and 3 don't occur.
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    # One disagreement of 4 in 4 pairs; by chance (2 * 3 + 2 * 1) / 4 = 2 of them.
    assert metrics["qwk"] == pytest.approx(1 - 1 / 2)
    # One of two irrelevant pairs lies level with the two relevant ones.
    assert metrics["auc"] == pytest.approx(0.75)


def test_kappa_keeps_the_distance_of_grades_that_occur_nowhere() -> None:
    far = grade_metrics(np.array([0, 1, 3, 3]), one_hot([0, 1, 3, 0]))["qwk"]
    near = grade_metrics(np.array([0, 1, 2, 2]), one_hot([0, 1, 2, 0]))["qwk"]
    assert far != pytest.approx(near)


def test_predicted_grade_without_gold_adds_no_class_to_macro_f1() -> None:
    metrics = grade_metrics(np.array([0, 1]), one_hot([0, 3]))
    assert metrics["macro_f1"] == pytest.approx(0.5)


def test_ndcg_of_a_case_worked_by_hand() -> None:
    values = ndcg_by_query(np.array([3, 0, 1]), np.array([0.1, 0.2, 0.3]), np.array([0, 0, 0]), seed=0)
    best = 7 + 1 / math.log2(3)
    assert values.tolist() == pytest.approx([(1 + 7 / math.log2(4)) / best])


def test_ndcg_skips_queries_whose_order_can_not_matter() -> None:
    values = ndcg_by_query(np.array([3, 2, 2, 0, 1]), np.arange(5.0), np.array([0, 1, 1, 2, 2]), seed=0)
    assert np.isnan(values).tolist() == [True, True, False]


def test_ndcg_tells_scores_apart_that_float32_can_not() -> None:
    gold, query_of = np.array([0, 3, 0, 3, 0, 3]), np.zeros(6, dtype=int)
    assert ndcg_by_query(gold, 1 + gold * 1e-12, query_of, seed=0).tolist() == [1.0]


def test_ties_are_broken_the_same_for_all_and_favour_nobody() -> None:
    gold, query_of = np.tile([3, 0, 0, 0], 500), np.repeat(np.arange(500), 4)
    level = np.zeros(2000)
    values = ndcg_by_query(gold, level, query_of, seed=0)
    assert values.tolist() == ndcg_by_query(gold, level + 5, query_of, seed=0).tolist()
    in_any_order = ndcg_score([[7, 0, 0, 0]], [[0, 0, 0, 0]], k=10)
    assert values.mean() == pytest.approx(in_any_order, abs=0.03)
