"""The metrics of one system on one set of pairs, by the field's libraries.

How the numbers are to be read:
- macro-F1 is over the grades that occur in the gold; QWK is quadratic weighted kappa.
- nDCG@10 (gain 2^grade - 1) is the mean over the queries that have at least two notes and not all of one grade:
  on the others any order is perfect. Ties are broken by a seeded shuffle, the same for all systems.
- Grades are the most probable ones, but for what is "decided": see model_export/evaluation/fit_decision.py.
- AUC asks for gold grade 2 or more, by expected grade.
- A metric that is undefined (gold of one grade alone, say) is None.
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
    """(pairs,) grade of each row of (pairs, grades); the lower one where two are equal, as the service has it."""
    return probabilities.argmax(axis=1)


def grade_metrics(gold: np.ndarray, probabilities: np.ndarray) -> Metrics:
    """accuracy, macro_f1, qwk and auc of (pairs, grades) probabilities against (pairs,) gold grades."""
    return {
        **chosen_metrics(gold, most_probable(probabilities)),
        "auc": _auc(gold >= RELEVANT_GRADE, probabilities @ np.arange(probabilities.shape[1])),
    }


def chosen_metrics(gold: np.ndarray, predicted: np.ndarray) -> Metrics:
    """accuracy, macro_f1 and qwk of (pairs,) chosen grades against (pairs,) gold grades."""
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
    # scikit-learn weighs by position among the labels it is given: a grade left out would bring its neighbours closer.
    return np.arange(max(gold.max(), predicted.max()) + 1)


def _auc(relevant: np.ndarray, expected_grade: np.ndarray) -> float | None:
    return float(roc_auc_score(relevant, expected_grade)) if 0 < relevant.sum() < len(relevant) else None


def decision_metrics(gold: np.ndarray, decided: np.ndarray) -> Metrics:
    """macro_f1_decided and qwk_decided of (pairs,) grades that were chosen by fitted utilities."""
    found = chosen_metrics(gold, decided)
    return {"macro_f1_decided": found["macro_f1"], "qwk_decided": found["qwk"]}


def calibration_metrics(gold: np.ndarray, probabilities: np.ndarray, calibrated: np.ndarray) -> Metrics:
    """ece_before and ece_after of (pairs, grades) probabilities as they are and calibrated."""
    return {
        "ece_before": expected_calibration_error(probabilities, gold),
        "ece_after": expected_calibration_error(calibrated, gold),
    }


def ndcg_by_query(gold: np.ndarray, ranking: np.ndarray, query_of: np.ndarray, seed: int) -> np.ndarray:
    """nDCG@10 of each query, NaN where a query does not count.

    Args:
        gold, ranking, query_of: (pairs,) gold grades, ranking scores, query numbers from 0.
        seed: shuffles the notes that tie.
    Returns: (queries,) float64.
    """
    # trec_eval ranks by float32 score, then by document name: dense ranks lose no order, and shuffled names favour no
    # tied note.
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
    """The mean of what is not NaN; None where all is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else None
