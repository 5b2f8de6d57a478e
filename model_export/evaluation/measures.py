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
from sklearn.metrics import accuracy_score, cohen_kappa_score, f1_score, roc_auc_score

from model_export.evaluation.fit_calibration import expected_calibration_error

RELEVANT_GRADE = 2
NDCG_CUTOFF = 10

Metrics = dict[str, float | None]


def most_probable(probabilities: np.ndarray) -> np.ndarray:
    """Choose the most probable grade of each row, (pairs,); the lower of equal ones, as the service does."""
    return probabilities.argmax(axis=1)


def grade_metrics(gold: np.ndarray, probabilities: np.ndarray) -> Metrics:
    """Compute accuracy, macro_f1, qwk and auc from (pairs,) gold grades and (pairs, grades) probabilities."""
    return {
        **chosen_metrics(gold, most_probable(probabilities)),
        "auc": _auc(gold >= RELEVANT_GRADE, probabilities @ np.arange(probabilities.shape[1])),
    }


def chosen_metrics(gold: np.ndarray, predicted: np.ndarray) -> Metrics:
    """Compute accuracy, macro_f1 and qwk from (pairs,) gold and chosen grades."""
    return {
        "accuracy": float(accuracy_score(gold, predicted)),
        "macro_f1": float(
            f1_score(gold, predicted, labels=np.unique(gold), average="macro", zero_division=0.0)
        ),
        "qwk": _qwk(gold, predicted),
    }


def _qwk(gold: np.ndarray, predicted: np.ndarray) -> float | None:
    if len(np.union1d(gold, predicted)) < 2:
        return None
    return float(cohen_kappa_score(gold, predicted, labels=_scale(gold, predicted), weights="quadratic"))


def _scale(gold: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    # scikit-learn weighs by position in `labels`: without a missing grade its neighbours would count as adjacent.
    return np.arange(max(gold.max(), predicted.max()) + 1)


def _auc(relevant: np.ndarray, expected_grade: np.ndarray) -> float | None:
    return float(roc_auc_score(relevant, expected_grade)) if 0 < relevant.sum() < len(relevant) else None


def decision_metrics(gold: np.ndarray, decided: np.ndarray) -> Metrics:
    """Compute macro_f1_decided and qwk_decided from (pairs,) grades chosen by fitted utilities."""
    found = chosen_metrics(gold, decided)
    return {"macro_f1_decided": found["macro_f1"], "qwk_decided": found["qwk"]}


def calibration_metrics(gold: np.ndarray, probabilities: np.ndarray, calibrated: np.ndarray) -> Metrics:
    """Compute ece_before and ece_after from (pairs, grades) raw and calibrated probabilities."""
    return {
        "ece_before": expected_calibration_error(probabilities, gold),
        "ece_after": expected_calibration_error(calibrated, gold),
    }


def ndcg_by_query(gold: np.ndarray, ranking: np.ndarray, query_of: np.ndarray, seed: int) -> np.ndarray:
    """Compute nDCG@10 of each query, NaN for a query that does not count.

    Args:
        gold, ranking, query_of: (pairs,) gold grades, ranking scores, query numbers from 0.
        seed: shuffles tied notes.
    Returns: (queries,) float64.
    """
    # trec_eval ranks by float32 score, then by document name. Dense ranks survive float32, and shuffled names break ties
    # at random.
    ranks = rankdata(ranking, method="dense").tolist()
    names = [f"{number:08d}" for number in np.random.default_rng(seed).permutation(len(gold))]
    judged: dict[str, dict[str, int]] = defaultdict(dict)
    ranked: dict[str, dict[str, float]] = defaultdict(dict)
    for name, query, grade, rank in zip(names, query_of.tolist(), gold.tolist(), ranks, strict=True):
        judged[str(query)][name] = grade
        ranked[str(query)][name] = float(rank)
    values = np.full(int(query_of.max()) + 1, np.nan)
    for metric in ir_measures.iter_calc([_ndcg(int(gold.max()))], judged, ranked):
        if len(set(judged[metric.query_id].values())) > 1:
            values[int(metric.query_id)] = metric.value
    return values


def _ndcg(top_grade: int) -> ir_measures.Measure:
    return ir_measures.nDCG(gains={grade: 2**grade - 1 for grade in range(top_grade + 1)}) @ NDCG_CUTOFF


def mean_defined(values: np.ndarray) -> float | None:
    """Compute the mean without NaN; None if all values are NaN."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else None


def tally_confusion(query_of: np.ndarray, gold: np.ndarray, predicted: np.ndarray, grades: int) -> np.ndarray:
    """Count confusion matrices [gold, predicted] per query, (queries, grades, grades).

    Args:
        query_of, gold, predicted: (pairs,) query numbers from 0, gold and predicted grades.
    """
    counts = np.zeros((int(query_of.max()) + 1, grades, grades))
    np.add.at(counts, (query_of, gold, predicted), 1)
    return counts


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
