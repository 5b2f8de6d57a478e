"""Fits the calibration of a checkpoint on its dev pairs, and says honestly what it gained."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize_scalar

from service.contract.manifest import Calibration
from service.errors import NotegradeError

TEMPERATURE_BOUNDS = (0.05, 20.0)
ECE_BINS = 10
# A label at probability 0 has an infinite loss at every temperature; with a floor, being sure and wrong still counts.
_FLOOR = 1e-12
# Of one criteria: a temperature fitted on fewer says more of them than of what is to come.
_FEWEST_PAIRS = 50


class CalibrationDataError(NotegradeError):
    """Dev pairs that no calibration can be fitted on."""


def apply_temperature(probabilities: np.ndarray, temperature: float | np.ndarray) -> np.ndarray:
    """What service.contract.calibration.calibrate does, on many rows at once.

    Args:
        probabilities: (pairs, grades), each row summing to 1; zeros stay zeros.
        temperature: above 0, one for all or (pairs, 1); 1 changes nothing.
    Returns: (pairs, grades) float64.
    """
    with np.errstate(divide="ignore"):
        logits = np.log(np.asarray(probabilities, dtype=np.float64)) / temperature
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The temperature in TEMPERATURE_BOUNDS that makes the gold grades most likely.

    Args:
        probabilities: (pairs, grades) raw label probabilities.
        labels: (pairs,) gold grades.
    Raises: CalibrationDataError without pairs.
    Source: Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599.
    """
    if len(labels) == 0:
        raise CalibrationDataError("calibration needs dev pairs, and there are none")
    floored = np.maximum(probabilities, _FLOOR)
    rows = np.arange(len(labels))

    def mean_loss(log_temperature: float) -> float:
        calibrated = apply_temperature(floored, float(np.exp(log_temperature)))
        return float(-np.log(np.maximum(calibrated[rows, labels], np.finfo(float).tiny)).mean())

    best = minimize_scalar(mean_loss, bounds=tuple(np.log(TEMPERATURE_BOUNDS)), method="bounded")
    return float(np.clip(np.exp(best.x), *TEMPERATURE_BOUNDS))


def fit_calibration(probabilities: np.ndarray, labels: np.ndarray, criteria: Sequence[str]) -> Calibration:
    """One temperature for all pairs, and one of its own for each criteria that has enough of them.

    Sources differ in how sure a model may be of them: under one temperature, what is too sure of some is too unsure of others.

    Args:
        probabilities: (pairs, grades) raw label probabilities.
        labels, criteria: (pairs,) gold grades, and what each pair was judged by.
    Raises: CalibrationDataError without pairs.
    """
    names, of_pair = np.unique(np.asarray(criteria), return_inverse=True)
    rows = {str(name): np.flatnonzero(of_pair == number) for number, name in enumerate(names)}
    own = {name: here for name, here in rows.items() if len(here) >= _FEWEST_PAIRS} if len(rows) > 1 else {}
    return Calibration(
        name="temperature-1",
        method="temperature",
        temperature=fit_temperature(probabilities, labels),
        temperatures={name: fit_temperature(probabilities[here], labels[here]) for name, here in own.items()},
    )


def apply_calibration(
    probabilities: np.ndarray, calibration: Calibration, criteria: Sequence[str]
) -> np.ndarray:
    """(pairs, grades) float64: what the service makes of (pairs, grades) raw probabilities read under (pairs,) criteria."""
    if calibration.method == "identity":
        return np.asarray(probabilities, dtype=np.float64)
    temperatures = np.array([[calibration.temperature_under(name)] for name in criteria])
    return apply_temperature(probabilities, temperatures)


def cross_fitted(
    probabilities: np.ndarray,
    labels: np.ndarray,
    query_ids: Sequence[str] | np.ndarray,
    criteria: Sequence[str],
    seed: int,
) -> np.ndarray:
    """Each half of the queries, calibrated by the temperatures of the other half: nothing is judged by its own fit.

    Args:
        probabilities: (pairs, grades) raw label probabilities.
        labels: (pairs,) gold grades.
        query_ids: of each pair; a query's pairs stay in one half.
        criteria: (pairs,) what each pair was judged by.
        seed: draws the halves.
    Returns: (pairs, grades) float64. Raises: CalibrationDataError with fewer than two queries.
    """
    in_second, names = split_queries(query_ids, seed), np.asarray(criteria)
    calibrated = np.empty(np.shape(probabilities), dtype=np.float64)
    for half in (in_second, ~in_second):
        fitted = fit_calibration(probabilities[~half], labels[~half], names[~half].tolist())
        calibrated[half] = apply_calibration(probabilities[half], fitted, names[half].tolist())
    return calibrated


def split_queries(query_ids: Sequence[str] | np.ndarray, seed: int) -> np.ndarray:
    """(pairs,) bool: whether a pair is in the second half of the queries. Raises CalibrationDataError with fewer than two queries."""
    queries, query_of = np.unique(np.asarray(query_ids), return_inverse=True)
    if len(queries) < 2:
        raise CalibrationDataError(
            f"cross-fitting needs at least two dev queries, and there are {len(queries)}"
        )
    order = np.random.default_rng(seed).permutation(len(queries))
    in_second: np.ndarray = (order < len(queries) // 2)[query_of]
    return in_second


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Top-label ECE over ECE_BINS bins of equal width, in [0, 1].

    Args:
        probabilities: (pairs, grades).
        labels: (pairs,) gold grades.
    Source: Guo et al., arXiv 1706.04599, equation 3.
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    gaps = np.bincount(bins, weights=right - confidence, minlength=ECE_BINS)
    return float(np.abs(gaps).sum() / len(labels))


def make_calibration(
    probabilities: np.ndarray,
    labels: np.ndarray,
    query_ids: Sequence[str] | np.ndarray,
    criteria: Sequence[str],
    *,
    data_name: str,
    seed: int,
) -> Calibration:
    """The calibration to export: temperatures fitted on all dev pairs, or identity where they don't help.

    Whether they help is the ECE of the cross-fitted probabilities against that of the raw ones.
    Args: as for cross_fitted; `data_name` names the dev data in the manifest.
    Raises: CalibrationDataError with fewer than two queries.
    """
    before = expected_calibration_error(probabilities, labels)
    after = expected_calibration_error(cross_fitted(probabilities, labels, query_ids, criteria, seed), labels)
    if after >= before:
        return Calibration(ece_before=before, ece_after=before, data=data_name)
    fitted = fit_calibration(probabilities, labels, criteria)
    return fitted.model_copy(update={"ece_before": before, "ece_after": after, "data": data_name})
