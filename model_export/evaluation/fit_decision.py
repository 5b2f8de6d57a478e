"""Fits how a checkpoint chooses a grade from its probabilities, on its dev pairs, and says honestly what that gained.

The most probable grade is best for accuracy. Macro-F1 counts rare grades as much as common ones, and kappa a distance of two four
times as much as one of one: for both, another grade than the most probable one is often the better choice.
"""

from collections.abc import Sequence

import numpy as np

from model_export.evaluation.confusion import macro_f1, quadratic_weighted_kappa, tally_confusion
from model_export.evaluation.fit_calibration import split_queries
from model_export.evaluation.measures import most_probable
from service.contract.manifest import Decision

GOAL = "mean of macro-F1 and QWK"
_STEPS = 60
# Where all gold and all chosen grades are the same one, kappa is undefined; this keeps its slopes finite.
_FLOOR = 1e-6


def choose(probabilities: np.ndarray, utilities: np.ndarray) -> np.ndarray:
    """What service.contract.judgement.judge does, on many rows at once.

    Args:
        probabilities: (pairs, grades) calibrated.
        utilities: (grades, grades), of the true and the chosen grade.
    Returns: (pairs,) grades; the lowest of equally good ones.
    """
    chosen: np.ndarray = (probabilities @ utilities).argmax(axis=1)
    return chosen


def fit_utilities(probabilities: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Utilities [true grade, chosen grade] whose choices have the greatest mean of macro-F1 and QWK on these pairs.

    Both measures are functions of the confusion matrix. At the mean of the matrices so far, their slopes are the utilities of the
    next choice (Frank-Wolfe), and the best choice of all steps is kept.

    Args:
        probabilities: (pairs, grades) calibrated.
        gold: (pairs,) grades.
    Returns: (grades, grades); the identity, which chooses the most probable grade, where nothing is better.
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
        utilities = _slopes(mean)
    return best


def goal_value(gold: np.ndarray, chosen: np.ndarray) -> float:
    """GOAL of (pairs,) chosen grades against (pairs,) gold grades; what is undefined counts as 0."""
    return _goal(_confusion(gold, chosen, int(max(gold.max(), chosen.max())) + 1))


def _goal(confusion: np.ndarray) -> float:
    return float(macro_f1(confusion) + np.nan_to_num(quadratic_weighted_kappa(confusion))) / 2


def _confusion(gold: np.ndarray, chosen: np.ndarray, grades: int) -> np.ndarray:
    """(grades, grades) shares [true, chosen]."""
    [counts] = tally_confusion(np.zeros_like(gold), gold, chosen, grades)
    shares: np.ndarray = counts / len(gold)
    return shares


def _slopes(confusion: np.ndarray) -> np.ndarray:
    """Of GOAL by each cell of the confusion matrix [true, chosen], whose cells sum to 1."""
    grades = len(confusion)
    gold, chosen = confusion.sum(axis=1), confusion.sum(axis=0)
    judged = gold > 0  # macro-F1 is over these alone
    both = np.where(judged, gold + chosen, 1.0)
    f1 = 2 * confusion.diagonal() / both
    macro_f1 = (2 * np.eye(grades) - f1) * judged / both / np.count_nonzero(judged)
    distance = (np.arange(grades)[:, None] - np.arange(grades)) ** 2
    observed, expected = (distance * confusion).sum(), max(gold @ distance @ chosen, _FLOOR)
    qwk = (observed / expected * (gold @ distance) - distance) / expected
    slopes: np.ndarray = (macro_f1 + qwk) / 2
    return slopes


def cross_fitted_grades(
    calibrated: np.ndarray, gold: np.ndarray, query_ids: np.ndarray, criteria: Sequence[str], seed: int
) -> np.ndarray:
    """(pairs,) grades: under each criteria, each half of the queries gets them by the utilities of the other half.

    Args: as for `make_decisions`; under a criteria with fewer than two queries they are the most probable ones.
    """
    grades = most_probable(calibrated)
    for here in _by_criteria(criteria, query_ids).values():
        in_second = split_queries(query_ids[here], seed)
        for to, by in ((here[in_second], here[~in_second]), (here[~in_second], here[in_second])):
            grades[to] = choose(calibrated[to], fit_utilities(calibrated[by], gold[by]))
    return grades


def make_decisions(
    calibrated: np.ndarray,
    gold: np.ndarray,
    query_ids: np.ndarray,
    criteria: Sequence[str],
    *,
    seed: int,
    data_name: str,
) -> tuple[Decision, ...]:
    """The decisions to export, for each criteria under which cross-fitted choices are better than the most probable grade.

    Args:
        calibrated: (pairs, grades), as the checkpoint will calibrate them.
        gold, query_ids, criteria: (pairs,) each; a criteria with fewer than two queries gets none.
        seed: draws the halves.
        data_name: names the dev data in the manifest.
    """
    found = []
    decided = cross_fitted_grades(calibrated, gold, query_ids, criteria, seed)
    for name, here in _by_criteria(criteria, query_ids).items():
        before = goal_value(gold[here], most_probable(calibrated[here]))
        after = goal_value(gold[here], decided[here])
        if after > before:
            utilities = fit_utilities(calibrated[here], gold[here])
            rows = tuple(tuple(round(float(value), 6) for value in row) for row in utilities)
            found.append(
                Decision(criteria=name, utilities=rows, goal=GOAL, before=before, after=after, data=data_name)
            )
    return tuple(found)


def _by_criteria(criteria: Sequence[str], query_ids: np.ndarray) -> dict[str, np.ndarray]:
    """(rows,) of each criteria that has two queries or more."""
    rows = {name: np.flatnonzero([each == name for each in criteria]) for name in dict.fromkeys(criteria)}
    return {name: here for name, here in rows.items() if len(np.unique(query_ids[here])) > 1}
