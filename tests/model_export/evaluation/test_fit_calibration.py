from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_export.evaluation.fit_calibration import (
    TEMPERATURE_BOUNDS,
    CalibrationDataError,
    apply_calibration,
    apply_temperature,
    cross_fitted,
    expected_calibration_error,
    fit_calibration,
    fit_temperature,
    make_calibration,
)
from model_export.evaluation.judged import Judged
from service.contract.calibration import calibrate
from service.contract.manifest import Calibration


def true_probabilities(pairs: int, sharpness: float = 1.0) -> np.ndarray:
    logits = np.random.default_rng(1).normal(size=(pairs, 4)) * sharpness
    weights = np.exp(logits)
    return weights / weights.sum(axis=1, keepdims=True)


def draw_labels(probabilities: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(2)
    return (probabilities.cumsum(axis=1) < rng.random((len(probabilities), 1))).sum(axis=1).clip(max=3)


TRUE = true_probabilities(4000, sharpness=1.5)
LABELS = draw_labels(TRUE)
OVERCONFIDENT = apply_temperature(TRUE, 1 / 3)
ONE = Judged(LABELS, np.arange(4000) // 8, np.full(4000, "product-2"))
# Alternate queries are of two kinds; the model is twice as confident on the second.
TWO = replace(ONE, criteria=np.where(ONE.query_of % 2, "passage-1", "product-2"))
UNEVEN = np.where(TWO.criteria[:, None] == "product-2", TRUE, apply_temperature(TRUE, 1 / 3))


@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=6).filter(lambda weights: sum(weights) > 0.01),
    st.floats(*TEMPERATURE_BOUNDS),
)
def test_temperature_equals_the_service_s_calibration(weights: list[float], temperature: float) -> None:
    probabilities = [weight / sum(weights) for weight in weights]
    served = calibrate(probabilities, Calibration(method="temperature", temperature=temperature), "any")
    assert apply_temperature(np.array([probabilities]), temperature)[0].tolist() == pytest.approx(
        served, abs=1e-12
    )


def test_fit_recovers_a_known_temperature() -> None:
    assert fit_temperature(OVERCONFIDENT, LABELS) == pytest.approx(3, rel=0.1)
    assert fit_temperature(TRUE, LABELS) == pytest.approx(1, rel=0.1)


def test_fit_stays_in_bounds_if_all_or_none_are_right() -> None:
    probabilities, right = np.tile([0.7, 0.2, 0.1], (10, 1)), np.zeros(10, dtype=int)
    low, high = TEMPERATURE_BOUNDS
    assert fit_temperature(probabilities, right) == pytest.approx(low, rel=0.01)
    assert fit_temperature(probabilities, right + 2) == pytest.approx(high, rel=0.01)


def test_label_at_probability_zero_counts_as_wrong() -> None:
    sure = np.tile([1.0, 0.0], (10, 1))
    wrong_twice = np.array([0] * 8 + [1] * 2)
    assert fit_temperature(sure, wrong_twice) > 10


def test_fit_without_pairs_is_refused() -> None:
    with pytest.raises(CalibrationDataError, match="none"):
        fit_temperature(np.empty((0, 4)), np.empty(0, dtype=int))


def test_no_pair_is_in_its_own_fit() -> None:
    calibrated = cross_fitted(OVERCONFIDENT, ONE, seed=1)
    assert calibrated.sum(axis=1) == pytest.approx(np.ones(4000))
    # Changing the labels of one query must change only the probabilities of the other half.
    lied = replace(ONE, gold=np.where(ONE.query_of == 7, 3 - LABELS, LABELS))
    changed = (cross_fitted(OVERCONFIDENT, lied, seed=1) != calibrated).any(axis=1)
    assert not changed[7 * 8 : 8 * 8].any()
    assert changed.sum() == 2000


def test_cross_fitting_needs_two_queries() -> None:
    with pytest.raises(CalibrationDataError, match="two dev queries, and there are 1"):
        cross_fitted(TRUE[:3], ONE[np.arange(3)], seed=1)


def test_ece_matches_a_case_computed_by_hand() -> None:
    # Bin 0.6-0.7: confidence 0.65, accuracy 0.5. Bin 0.9-1.0: confidence and accuracy 1, rounded above 1.
    probabilities = np.array([[0.65, 0.35], [0.35, 0.65], [1.0000001, 0.0]])
    assert expected_calibration_error(probabilities, np.array([0, 0, 0])) == pytest.approx(2 / 3 * 0.15)


def test_helpful_calibration_is_exported_with_ece_before_and_after() -> None:
    calibration = make_calibration(OVERCONFIDENT, ONE, data_name="dev of shop", seed=1)
    assert (calibration.name, calibration.method, calibration.data) == (
        "temperature-1",
        "temperature",
        "dev of shop",
    )
    assert calibration.temperature == pytest.approx(3, rel=0.1)
    assert calibration.ece_before is not None
    assert calibration.ece_after is not None
    assert calibration.ece_after < calibration.ece_before / 3


def test_unhelpful_calibration_is_identity() -> None:
    # Confidence equals accuracy, so the ECE is 0 and any other temperature raises it.
    probabilities = np.tile([0.5, 0.3, 0.2], (8, 1))
    judged = Judged(np.array([0, 1] * 4), np.arange(8) // 2, ONE.criteria[:8])
    calibration = make_calibration(probabilities, judged, data_name="dev", seed=1)
    assert (calibration.name, calibration.method, calibration.temperature) == ("identity", "identity", 1.0)
    assert calibration.ece_before == calibration.ece_after == pytest.approx(0)


def test_each_criteria_has_its_own_temperature() -> None:
    fitted = fit_calibration(UNEVEN, TWO)
    assert fitted.temperatures == pytest.approx({"product-2": 1, "passage-1": 3}, rel=0.1)
    assert 1.2 < fitted.temperature < 2.8
    shared = apply_temperature(UNEVEN, fitted.temperature)
    own = apply_calibration(UNEVEN, fitted, TWO.criteria)
    for name in fitted.temperatures:
        here = TWO.criteria == name
        errors = [expected_calibration_error(each[here], LABELS[here]) for each in (own, shared)]
        assert errors[0] < errors[1] / 2


def test_calibration_per_criteria_equals_the_service_s() -> None:
    fitted = fit_calibration(UNEVEN, TWO)
    for found, raw, name in zip(
        apply_calibration(UNEVEN, fitted, TWO.criteria)[:16], UNEVEN, TWO.criteria, strict=False
    ):
        assert found.tolist() == pytest.approx(calibrate(raw.tolist(), fitted, name), abs=1e-12)
    assert apply_calibration(UNEVEN, Calibration(), TWO.criteria) == pytest.approx(UNEVEN)


def test_criteria_with_few_pairs_or_alone_use_the_shared_temperature() -> None:
    few = replace(ONE, criteria=np.array(["passage-1"] * 49 + ["product-2"] * 3951))
    assert list(fit_calibration(UNEVEN, few).temperatures) == ["product-2"]
    assert fit_calibration(UNEVEN, ONE).temperatures == {}
