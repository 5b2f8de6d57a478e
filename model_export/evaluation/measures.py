"""Computes the metrics of one system on one set of pairs.

- Macro-F1 is over the grades that occur in the gold; QWK is quadratic weighted kappa.
- nDCG@10 (gain 2^grade - 1) is the mean over queries with at least two notes of different gold grades, as on the others
  any order is perfect. Ties are broken by a seeded shuffle, the same for all systems.
- Grades are the most probable ones; "decided" grades are chosen by `fit_decision`.
- AUC is for gold grade 2 or more, ranked by expected grade.
- An undefined metric (such as QWK if all grades are equal) is None.
"""

from collections import defaultdict

import ir_measures
import numpy as np
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

RELEVANT_GRADE = 2
NDCG_CUTOFF = 10

Metrics = dict[str, float | None]


def most_probable(probabilities: np.ndarray) -> np.ndarray:
    """Choose the most probable grade of each row, (pairs,); the lower of equal ones, as the service does."""
    return probabilities.argmax(axis=1)


def area_under_curve(gold: np.ndarray, probabilities: np.ndarray) -> float | None:
    """Compute the AUC of the expected grade from (pairs,) gold grades and (pairs, grades) probabilities."""
    relevant = gold >= RELEVANT_GRADE
    if relevant.all() or not relevant.any():
        return None
    return float(roc_auc_score(relevant, probabilities @ np.arange(probabilities.shape[1])))


def ndcg_by_query(gold: np.ndarray, ranking: np.ndarray, query_of: np.ndarray, seed: int) -> np.ndarray:
    """Compute nDCG@10 of each query, NaN for a query that does not count.

    Args:
        gold, ranking, query_of: (pairs,) gold grades, ranking scores, query numbers from 0.
        seed: shuffles tied notes.
    Returns: (queries,) float64.
    """
    # trec_eval ranks by float32 score, then by document name: dense ranks survive float32, shuffled names break ties.
    ranks = rankdata(ranking, method="dense").tolist()
    names = [f"{number:08d}" for number in np.random.default_rng(seed).permutation(len(gold))]
    judged: dict[str, dict[str, int]] = defaultdict(dict)
    ranked: dict[str, dict[str, float]] = defaultdict(dict)
    for name, query, grade, rank in zip(names, query_of.tolist(), gold.tolist(), ranks, strict=True):
        judged[str(query)][name] = grade
        ranked[str(query)][name] = float(rank)
    values = np.full(int(query_of.max()) + 1, np.nan)
    measure = ir_measures.nDCG(gains={grade: 2**grade - 1 for grade in range(gold.max() + 1)}) @ NDCG_CUTOFF
    for metric in ir_measures.iter_calc([measure], judged, ranked):
        if len(set(judged[metric.query_id].values())) > 1:
            values[int(metric.query_id)] = metric.value
    return values


def tally_confusion(query_of: np.ndarray, gold: np.ndarray, predicted: np.ndarray, grades: int) -> np.ndarray:
    """Count confusion matrices [gold, predicted] per query, (queries, grades, grades).

    Args:
        query_of, gold, predicted: (pairs,) query numbers from 0, gold and predicted grades.
    """
    counts = np.zeros((int(query_of.max()) + 1, grades, grades))
    np.add.at(counts, (query_of, gold, predicted), 1)
    return counts


def grade_metrics(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Compute accuracy, macro_f1 and qwk, (...) each, of confusion matrices (..., grades, grades); NaN if undefined."""
    return {
        "accuracy": np.trace(confusion, axis1=-2, axis2=-1) / confusion.sum(axis=(-2, -1)),
        "macro_f1": macro_f1(confusion),
        "qwk": quadratic_weighted_kappa(confusion),
    }


def macro_f1(confusion: np.ndarray) -> np.ndarray:
    """Compute macro-F1, (...), of confusion matrices (..., grades, grades), over the grades that occur in the gold.

    An all-zero matrix gives NaN. Equals scikit-learn's on the rows, and is a hundred times as fast for many matrices.
    """
    gold, chosen = confusion.sum(axis=-1), confusion.sum(axis=-2)
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    f1 = np.divide(2 * hits, gold + chosen, out=np.zeros_like(gold), where=gold > 0)
    with np.errstate(invalid="ignore"):
        found: np.ndarray = f1.sum(axis=-1) / (gold > 0).sum(axis=-1)
    return found


def quadratic_weighted_kappa(confusion: np.ndarray) -> np.ndarray:
    """Compute QWK, (...), of confusion matrices (..., grades, grades); NaN if all gold and chosen grades are the same."""
    grade = np.arange(confusion.shape[-1])
    weights = (grade[:, None] - grade) ** 2
    gold, chosen = confusion.sum(axis=-1), confusion.sum(axis=-2)
    with np.errstate(invalid="ignore", divide="ignore"):
        by_chance = gold[..., :, None] * chosen[..., None, :] / gold.sum(axis=-1)[..., None, None]
        found: np.ndarray = 1 - (weights * confusion).sum(axis=(-2, -1)) / (weights * by_chance).sum(
            axis=(-2, -1)
        )
    return found
