"""Fits a checkpoint's decision rule, from probabilities to a grade, on dev pairs, and measures its gain by cross-fitting.

The most probable grade maximises accuracy. It does not maximise macro-F1, which weighs rare grades as much as common
ones, nor quadratic kappa, which weighs an error of two grades four times as much as an error of one.

`probabilities` are (pairs, grades) calibrated probabilities; `gold` and `chosen` are (pairs,) grades; `utilities` are
(grades, grades), [true grade, chosen grade].
"""

import numpy as np

from model_export.evaluation.fit_calibration import split_queries
from model_export.evaluation.judged import Judged
from model_export.evaluation.measures import (
    macro_f1,
    most_probable,
    quadratic_weighted_kappa,
    tally_confusion,
)
from service.contract.manifest import Decision

GOAL = "mean of macro-F1 and QWK"
_STEPS = 60
# Kappa is undefined if all gold and chosen grades are the same; the floor keeps its gradient finite.
_FLOOR = 1e-6


def choose(probabilities: np.ndarray, utilities: np.ndarray) -> np.ndarray:
    """Choose grades as service.contract.judgement.judge does: those of highest expected utility, the lowest of equal ones."""
    chosen: np.ndarray = (probabilities @ utilities).argmax(axis=1)
    return chosen


def fit_utilities(probabilities: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Fit the utilities that maximise the mean of macro-F1 and QWK; the identity if nothing beats the most probable grade.

    Both metrics are functions of the confusion matrix. Each Frank-Wolfe step takes their gradient at the running mean of
    the confusion matrices as the next utilities; the best step is returned.
    Source: Narasimhan et al., Consistent Multiclass Algorithms for Complex Performance Measures, ICML 2015.
    """
    grades = probabilities.shape[1]
    utilities = best = np.eye(grades)
    best_value = -np.inf
    mean = np.zeros((grades, grades))
    for step in range(_STEPS):
        confusion = _confusion(gold, choose(probabilities, utilities), grades)
        if (value := _goal(confusion)) > best_value:
            best, best_value = utilities, value
        mean += (confusion - mean) * 2 / (step + 2)
        utilities = _gradient(mean)
    return best


def goal_value(gold: np.ndarray, chosen: np.ndarray) -> float:
    """Compute GOAL for gold and chosen grades; an undefined metric counts as 0."""
    return _goal(_confusion(gold, chosen, int(max(gold.max(), chosen.max())) + 1))


def _goal(confusion: np.ndarray) -> float:
    return float(macro_f1(confusion) + np.nan_to_num(quadratic_weighted_kappa(confusion))) / 2


def _confusion(gold: np.ndarray, chosen: np.ndarray, grades: int) -> np.ndarray:
    """Compute (grades, grades) shares [true, chosen]."""
    [counts] = tally_confusion(np.zeros_like(gold), gold, chosen, grades)
    shares: np.ndarray = counts / len(gold)
    return shares


def _gradient(confusion: np.ndarray) -> np.ndarray:
    """Compute the gradient of GOAL at a confusion matrix [true, chosen] of shares, which sum to 1."""
    grades = len(confusion)
    gold, chosen = confusion.sum(axis=1), confusion.sum(axis=0)
    judged = gold > 0  # macro-F1 is over these grades only
    both = np.where(judged, gold + chosen, 1.0)
    f1 = 2 * confusion.diagonal() / both
    macro_f1 = (2 * np.eye(grades) - f1) * judged / both / np.count_nonzero(judged)
    distance = (np.arange(grades)[:, None] - np.arange(grades)) ** 2
    observed, expected = (distance * confusion).sum(), max(gold @ distance @ chosen, _FLOOR)
    qwk = (observed / expected * (gold @ distance) - distance) / expected
    gradient: np.ndarray = (macro_f1 + qwk) / 2
    return gradient


def cross_fitted_grades(probabilities: np.ndarray, judged: Judged, seed: int) -> np.ndarray:
    """Choose grades per criteria, each half of the queries with the utilities fitted on the other half.

    Under a criteria with fewer than two queries these are the most probable grades. `seed` draws the halves.
    """
    grades = most_probable(probabilities)
    for here in _rows_by_criteria(judged).values():
        in_second = split_queries(judged.query_of[here], seed)
        halves = here[in_second], here[~in_second]
        for rows, fitted_on in (halves, halves[::-1]):
            utilities = fit_utilities(probabilities[fitted_on], judged.gold[fitted_on])
            grades[rows] = choose(probabilities[rows], utilities)
    return grades


def make_decisions(
    probabilities: np.ndarray, judged: Judged, *, seed: int, data_name: str
) -> tuple[Decision, ...]:
    """Fit the decisions to export: one for each criteria whose cross-fitted grades beat the most probable grade.

    A criteria with fewer than two queries gets no decision. `data_name` names the dev data in the manifest.
    """
    found = []
    decided = cross_fitted_grades(probabilities, judged, seed)
    for name, here in _rows_by_criteria(judged).items():
        gold = judged.gold[here]
        before = goal_value(gold, most_probable(probabilities[here]))
        after = goal_value(gold, decided[here])
        if after > before:
            utilities = fit_utilities(probabilities[here], gold)
            rows = tuple(tuple(round(float(value), 6) for value in row) for row in utilities)
            found.append(
                Decision(criteria=name, utilities=rows, goal=GOAL, before=before, after=after, data=data_name)
            )
    return tuple(found)


def _rows_by_criteria(judged: Judged) -> dict[str, np.ndarray]:
    """Find the (rows,) of each criteria with at least two queries."""
    rows = judged.rows_by_criteria()
    return {name: here for name, here in rows.items() if len(np.unique(judged.query_of[here])) > 1}
