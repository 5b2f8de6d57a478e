from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from model_export.evaluation.fit_decision import (
    GOAL,
    choose,
    cross_fitted_grades,
    fit_utilities,
    goal_value,
    make_decisions,
)
from model_export.evaluation.judged import Judged
from model_export.evaluation.measures import most_probable
from service.contract.judgement import judge
from service.contract.labels import LabelDistribution
from service.contract.manifest import Decision, Manifest
from tests.checkpoints import load_tiny
from tests.model_export.evaluation.test_fit_calibration import draw_labels

PAIRS = 3000


def skewed(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Make calibrated probabilities of grades that are mostly 3, as in shop searches."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(PAIRS, 4)) + np.log([0.05, 0.1, 0.15, 0.7])
    weights = np.exp(logits)
    probabilities = weights / weights.sum(axis=1, keepdims=True)
    return probabilities, draw_labels(probabilities)


PROBABILITIES, GOLD = skewed(3)
ONE = Judged(GOLD, np.arange(PAIRS) // 10, np.full(PAIRS, "product-2"))


def test_fit_beats_the_most_probable_grade_on_held_out_pairs() -> None:
    utilities = fit_utilities(PROBABILITIES, GOLD)
    others, gold = skewed(4)
    assert goal_value(gold, choose(others, utilities)) > 1.2 * goal_value(gold, most_probable(others))


def test_no_grade_weights_are_clearly_better_than_the_fit() -> None:
    fitted = goal_value(GOLD, choose(PROBABILITIES, fit_utilities(PROBABILITIES, GOLD)))
    rng = np.random.default_rng(5)
    drawn = [np.exp(rng.normal(0, 1, 4)) for _ in range(400)]
    best = max(goal_value(GOLD, most_probable(PROBABILITIES * weights)) for weights in drawn)
    assert fitted > best - 0.005


def test_most_probable_grade_is_chosen_if_always_right() -> None:
    certain = np.eye(4)[GOLD]
    assert (choose(certain, fit_utilities(certain, GOLD)) == GOLD).all()


def test_utilities_are_finite_for_a_grade_that_does_not_occur() -> None:
    gold = np.where(GOLD == 2, 3, GOLD)
    utilities = fit_utilities(PROBABILITIES, gold)
    assert np.abs(utilities).max() < 1000
    assert goal_value(gold, choose(PROBABILITIES, utilities)) > goal_value(gold, most_probable(PROBABILITIES))
    assert np.isfinite(fit_utilities(PROBABILITIES, np.full(PAIRS, 3))).all()


def test_cross_fitting_shows_no_gain_on_noise() -> None:
    noise = np.random.default_rng(6).permutation(GOLD)
    in_sample = goal_value(noise, choose(PROBABILITIES, fit_utilities(PROBABILITIES, noise)))
    crossed = cross_fitted_grades(PROBABILITIES, replace(ONE, gold=noise), seed=1)
    assert goal_value(noise, crossed) < in_sample
    assert cohen_kappa_score(noise, crossed, weights="quadratic") == pytest.approx(0, abs=0.05)


def test_each_criteria_has_its_own_decision() -> None:
    criteria = np.array(["product-2", "passage-1"] * (PAIRS // 2))
    turned = criteria == "passage-1"
    probabilities, gold = PROBABILITIES.copy(), GOLD.copy()
    probabilities[turned], gold[turned] = probabilities[turned][:, ::-1], 3 - gold[turned]
    found = make_decisions(probabilities, Judged(gold, ONE.query_of, criteria), seed=1, data_name="made up")
    assert [each.criteria for each in found] == ["product-2", "passage-1"]
    assert {(each.goal, each.data) for each in found} == {(GOAL, "made up")}
    assert all(each.after > each.before for each in found if each.after and each.before)
    product, passage = (np.array(each.utilities) for each in found)
    unsure = np.array([[0.1, 0.2, 0.2, 0.5]])
    assert choose(unsure, product) < 3
    assert choose(unsure[:, ::-1], passage) > 0


def test_criteria_with_one_query_keep_the_most_probable_grade() -> None:
    one_query = replace(ONE, query_of=np.zeros(PAIRS, dtype=int))
    assert make_decisions(PROBABILITIES, one_query, seed=1, data_name="") == ()
    kept = cross_fitted_grades(PROBABILITIES, one_query, seed=1)
    assert (kept == most_probable(PROBABILITIES)).all()


def test_decision_without_gain_is_not_exported() -> None:
    assert make_decisions(np.eye(4)[GOLD], ONE, seed=1, data_name="") == ()


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return load_tiny(tmp_path_factory.mktemp("checkpoint")).manifest


@given(
    weights=st.lists(st.floats(0, 1), min_size=4, max_size=4).filter(lambda weights: sum(weights) > 0.01),
    utilities=st.lists(st.lists(st.floats(-5, 5), min_size=4, max_size=4), min_size=4, max_size=4),
)
def test_choose_equals_the_service_s_decision(
    manifest: Manifest, weights: list[float], utilities: list[list[float]]
) -> None:
    row = np.array(weights) / sum(weights)
    decision = Decision(criteria="product-2", utilities=tuple(map(tuple, utilities)))
    served = judge(
        LabelDistribution(tuple(row.tolist()), 1.0),
        manifest.model_copy(update={"decisions": (decision,)}),
        "product-2",
    )
    expected = row @ np.array(utilities)
    # If two utilities differ by rounding only, either grade may be chosen.
    assert expected[served.grade] == pytest.approx(expected.max(), abs=1e-9)
    assert expected[choose(row[None], np.array(utilities))[0]] == expected.max()
