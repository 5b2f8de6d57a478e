"""Fits a checkpoint's calibration on dev pairs, and measures its gain by cross-fitting.

`probabilities` are (pairs, grades) raw label probabilities, each row summing to 1; `gold` are (pairs,) grades. Source: Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599.
"""

from collections.abc import Iterable

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import softmax

from model_export.evaluation.judged import Judged
from service.contract.manifest import Calibration
from service.errors import NotegradeError

TEMPERATURE_BOUNDS = (0.05, 20.0)
ECE_BINS = 10
# A label at probability 0 has an infinite loss at every temperature; with a floor the loss is large, but finite.
_FLOOR = 1e-12
# A temperature fitted on fewer pairs of a criteria would overfit.
_MIN_PAIRS = 50


class CalibrationDataError(NotegradeError):
    """There are too few dev pairs or queries to fit a calibration."""


def apply_temperature(probabilities: np.ndarray, temperature: float | np.ndarray) -> np.ndarray:
    """Apply service.contract.calibration.calibrate to many rows at once: (pairs, grades) float64; zeros stay zeros.

    `temperature` is above 0, a scalar or (pairs, 1); 1 changes nothing.
    """
    with np.errstate(divide="ignore"):
        logits = np.log(np.asarray(probabilities, dtype=np.float64)) / temperature
    calibrated: np.ndarray = softmax(logits, axis=1)
    return calibrated


def fit_temperature(probabilities: np.ndarray, gold: np.ndarray) -> float:
    """Fit the temperature in TEMPERATURE_BOUNDS that maximises the likelihood of the gold grades.

    Raises CalibrationDataError without pairs.
    """
    if len(gold) == 0:
        raise CalibrationDataError("calibration needs dev pairs, and there are none")
    floored = np.maximum(probabilities, _FLOOR)
    rows = np.arange(len(gold))

    def mean_loss(log_temperature: float) -> float:
        calibrated = apply_temperature(floored, float(np.exp(log_temperature)))
        return float(-np.log(np.maximum(calibrated[rows, gold], np.finfo(float).tiny)).mean())

    best = minimize_scalar(mean_loss, bounds=tuple(np.log(TEMPERATURE_BOUNDS)), method="bounded")
    return float(np.clip(np.exp(best.x), *TEMPERATURE_BOUNDS))


def fit_calibration(probabilities: np.ndarray, judged: Judged) -> Calibration:
    """Fit one temperature over all pairs, and another for each criteria with enough pairs.

    A single temperature would leave a model overconfident on one source and underconfident on another.
    Raises CalibrationDataError without pairs.
    """
    rows = judged.rows_by_criteria()
    own = {name: here for name, here in rows.items() if len(here) >= _MIN_PAIRS} if len(rows) > 1 else {}
    return Calibration(
        name="temperature-1",
        method="temperature",
        temperature=fit_temperature(probabilities, judged.gold),
        temperatures={
            name: fit_temperature(probabilities[here], judged.gold[here]) for name, here in own.items()
        },
    )


def apply_calibration(
    probabilities: np.ndarray, calibration: Calibration, criteria: Iterable[str]
) -> np.ndarray:
    """Calibrate as the service does, each row under its criteria; (pairs, grades) float64."""
    if calibration.method == "identity":
        return np.asarray(probabilities, dtype=np.float64)
    temperatures = np.array([[calibration.temperature_under(name)] for name in criteria])
    return apply_temperature(probabilities, temperatures)


def cross_fitted(probabilities: np.ndarray, judged: Judged, seed: int) -> np.ndarray:
    """Calibrate each half of the queries with the temperatures of the other half, so no pair is in its own fit.

    `seed` draws the halves. Raises CalibrationDataError with fewer than two queries.
    """
    in_second = split_queries(judged.query_of, seed)
    calibrated = np.empty(np.shape(probabilities), dtype=np.float64)
    for half in (in_second, ~in_second):
        fitted = fit_calibration(probabilities[~half], judged[~half])
        calibrated[half] = apply_calibration(probabilities[half], fitted, judged.criteria[half])
    return calibrated


def split_queries(query_of: np.ndarray, seed: int) -> np.ndarray:
    """Split the queries into halves; (pairs,) bool, True in the second half. Raises CalibrationDataError with fewer than two queries."""
    queries, numbers = np.unique(query_of, return_inverse=True)
    if len(queries) < 2:
        raise CalibrationDataError(
            f"cross-fitting needs at least two dev queries, and there are {len(queries)}"
        )
    order = np.random.default_rng(seed).permutation(len(queries))
    in_second: np.ndarray = (order < len(queries) // 2)[numbers]
    return in_second


def expected_calibration_error(probabilities: np.ndarray, gold: np.ndarray) -> float:
    """Compute top-label ECE over ECE_BINS bins of equal width, in [0, 1]: Guo et al., equation 3."""
    gaps = calibration_gaps(np.zeros_like(gold), probabilities, gold)
    return float(np.abs(gaps).sum() / len(gold))


def calibration_gaps(query_of: np.ndarray, probabilities: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Sum right - confidence of the most probable grades per query and bin of confidence, (queries, ECE_BINS).

    Over any set of queries, the ECE is the sum over bins of the absolute sums, divided by the pairs.

    Args:
        query_of: (pairs,) query numbers from 0.
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == gold
    bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    gaps = np.zeros((int(query_of.max()) + 1, ECE_BINS))
    np.add.at(gaps, (query_of, bins), right - confidence)
    return gaps


def make_calibration(probabilities: np.ndarray, judged: Judged, *, data_name: str, seed: int) -> Calibration:
    """Fit the calibration to export: temperatures over all dev pairs, or identity if they don't lower the ECE.

    The ECE after calibration is that of the cross-fitted probabilities. `data_name` names the dev data in the manifest.
    Raises CalibrationDataError with fewer than two queries.
    """
    before = expected_calibration_error(probabilities, judged.gold)
    after = expected_calibration_error(cross_fitted(probabilities, judged, seed), judged.gold)
    if after >= before:
        return Calibration(ece_before=before, ece_after=before, data=data_name)
    fitted = fit_calibration(probabilities, judged)
    return fitted.model_copy(update={"ece_before": before, "ece_after": after, "data": data_name})
