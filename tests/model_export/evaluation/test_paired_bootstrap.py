import numpy as np
import pytest
from sklearn.metrics import accuracy_score, cohen_kappa_score, f1_score

from model_export.evaluation.fit_calibration import calibration_gaps, expected_calibration_error
from model_export.evaluation.measures import tally_confusion
from model_export.evaluation.paired_bootstrap import (
    Difference,
    PairedBootstrap,
    QueryTallies,
    draw_resamples,
    resampled_metrics,
)

QUERIES, PAIRS, GRADES = 12, 80, 4


def rows_of(query_of: np.ndarray, resample: np.ndarray) -> np.ndarray:
    """List the rows of a resample, each as often as its query was drawn."""
    return np.concatenate(
        [np.flatnonzero(query_of == query) for query in range(QUERIES) for _ in range(int(resample[query]))]
    )


def test_metrics_equal_those_of_the_resampled_rows() -> None:
    rng = np.random.default_rng(3)
    query_of = np.append(np.arange(QUERIES), rng.integers(QUERIES, size=PAIRS - QUERIES))
    # The top grade is rare, so some resamples lack it.
    gold = rng.choice(GRADES, size=PAIRS, p=[0.5, 0.3, 0.19, 0.01])
    predicted = rng.integers(GRADES, size=PAIRS)
    ndcg = np.where(np.arange(QUERIES) % 3 == 0, np.nan, rng.random(QUERIES))
    resamples = draw_resamples(QUERIES, 50, seed=5)
    decided = rng.integers(GRADES, size=PAIRS)
    probable, served = (tally_confusion(query_of, gold, chosen, GRADES) for chosen in (predicted, decided))
    probabilities = rng.dirichlet(np.ones(GRADES), PAIRS)
    tallies = QueryTallies(probable, served, ndcg, calibration_gaps(query_of, probabilities, gold))
    metrics = resampled_metrics(tallies, resamples)
    for draw, resample in enumerate(resamples):
        rows = rows_of(query_of, resample)
        truth, guess, chosen = gold[rows], predicted[rows], decided[rows]
        expected = {
            "accuracy": accuracy_score(truth, guess),
            "macro_f1": f1_score(truth, guess, labels=np.unique(truth), average="macro", zero_division=0.0),
            "qwk": cohen_kappa_score(truth, guess, labels=np.arange(GRADES), weights="quadratic"),
            "macro_f1_decided": f1_score(
                truth, chosen, labels=np.unique(truth), average="macro", zero_division=0.0
            ),
            "qwk_decided": cohen_kappa_score(truth, chosen, labels=np.arange(GRADES), weights="quadratic"),
            "ndcg_at_10": np.nanmean(np.repeat(ndcg, resample.astype(int))),
            "ece_after": expected_calibration_error(probabilities[rows], truth),
        }
        assert {name: values[draw] for name, values in metrics.items()} == pytest.approx(expected)


def test_every_resample_draws_as_many_queries_as_the_sample() -> None:
    resamples = draw_resamples(QUERIES, 20, seed=1)
    assert resamples.sum(axis=1).tolist() == [QUERIES] * 20
    assert (resamples == draw_resamples(QUERIES, 20, seed=1)).all()
    assert not (resamples == draw_resamples(QUERIES, 20, seed=2)).all()


def one_pair_a_query(gold: list[int], predicted: list[int]) -> QueryTallies:
    confusion = tally_confusion(np.arange(len(gold)), np.array(gold), np.array(predicted), 2)
    return QueryTallies(confusion, confusion, np.full(len(gold), np.nan), np.zeros((len(gold), 1)))


def test_equal_systems_have_an_empty_interval() -> None:
    # If each system were resampled independently, their accuracies of 0.5 would appear to differ.
    tallies = one_pair_a_query([0, 1] * 20, [0] * 40)
    bootstrap = PairedBootstrap({"a": tallies, "b": tallies}, draws=200, seed=1)
    assert bootstrap.compare("a", "b")["accuracy"] == Difference(0.0, 0.0, 0.0)


def test_interval_of_accuracy_is_close_to_the_binomial_one() -> None:
    gold = [0, 1] * 200
    bootstrap = PairedBootstrap(
        {"all": one_pair_a_query(gold, gold), "half": one_pair_a_query(gold, [0] * 400)}, draws=2000, seed=1
    )
    difference = bootstrap.compare("all", "half")["accuracy"]
    assert difference.difference == 0.5
    assert difference.low == pytest.approx(0.5 - 1.96 * 0.025, abs=0.01)
    assert difference.high == pytest.approx(0.5 + 1.96 * 0.025, abs=0.01)


def test_one_query_has_a_difference_and_no_interval() -> None:
    """Any resample of a single query is that query, however many pairs it has."""
    confusions = [np.array([[[right, 4 - right], [4 - right, right]]], float) for right in (3, 2)]
    tallies = [
        QueryTallies(confusion, confusion, np.array([0.5]), np.array([[gap]]))
        for confusion, gap in zip(confusions, (-2.0, 1.2), strict=True)
    ]
    bootstrap = PairedBootstrap({"a": tallies[0], "b": tallies[1]}, draws=20, seed=1)
    found = bootstrap.compare("a", "b")
    assert found["accuracy"] == Difference(0.25, None, None)
    assert found["ndcg_at_10"] == Difference(0.0, None, None)
    assert found["ece_after"].difference == pytest.approx(0.1)
    assert not found["accuracy"].excludes_zero


def test_undefined_metric_has_no_difference() -> None:
    tallies = one_pair_a_query([1, 1], [1, 1])
    compared = PairedBootstrap({"a": tallies, "b": tallies}, draws=10, seed=1).compare("a", "b")
    assert compared["qwk"] == compared["ndcg_at_10"] == Difference(None, None, None)
    assert not compared["qwk"].excludes_zero


@pytest.mark.parametrize(
    ("low", "high", "excludes"), [(0.1, 0.2, True), (-0.2, -0.1, True), (-0.1, 0.1, False)]
)
def test_interval_excludes_zero_on_either_side(low: float, high: float, excludes: bool) -> None:
    assert Difference((low + high) / 2, low, high).excludes_zero is excludes
