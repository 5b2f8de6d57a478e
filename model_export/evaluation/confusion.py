"""Confusion matrices [gold grade, chosen grade], and measures of grades from many of them at once, of counts or shares.

The measures are equal to scikit-learn's on the rows behind them, and some hundred times as fast where there are many.
"""

import numpy as np


def tally_confusion(query_of: np.ndarray, gold: np.ndarray, predicted: np.ndarray, grades: int) -> np.ndarray:
    """(queries, grades, grades) counts. `query_of`: (pairs,) query numbers from 0, as are gold and predicted grades."""
    counts = np.zeros((int(query_of.max()) + 1, grades, grades))
    np.add.at(counts, (query_of, gold, predicted), 1)
    return counts


def macro_f1(confusion: np.ndarray) -> np.ndarray:
    """(...) of (..., grades, grades), over the grades that occur in the gold; NaN for a matrix of zeros."""
    gold, chosen = confusion.sum(axis=-1), confusion.sum(axis=-2)
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    f1 = np.divide(2 * hits, gold + chosen, out=np.zeros_like(gold), where=gold > 0)
    with np.errstate(invalid="ignore"):
        found: np.ndarray = f1.sum(axis=-1) / (gold > 0).sum(axis=-1)
    return found


def quadratic_weighted_kappa(confusion: np.ndarray) -> np.ndarray:
    """(...) of (..., grades, grades); NaN where gold and chosen grades are all the same one."""
    grade = np.arange(confusion.shape[-1])
    weights = (grade[:, None] - grade) ** 2
    gold, chosen = confusion.sum(axis=-1), confusion.sum(axis=-2)
    with np.errstate(invalid="ignore", divide="ignore"):
        by_chance = gold[..., :, None] * chosen[..., None, :] / gold.sum(axis=-1)[..., None, None]
        found: np.ndarray = 1 - (weights * confusion).sum(axis=(-2, -1)) / (weights * by_chance).sum(
            axis=(-2, -1)
        )
    return found
