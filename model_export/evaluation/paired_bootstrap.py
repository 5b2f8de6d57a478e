"""Computes confidence intervals of the difference between two systems, by a paired bootstrap over queries.

Notes of the same query are correlated, so resampling pairs would give intervals that are too narrow. The metrics of a
resample come from summed per-query confusion matrices, so a thousand resamples are one matrix product; this is why
`measures` has its own vectorised macro-F1 and kappa, which tests compare with scikit-learn's.
Source: Sakai, Evaluating evaluation metrics based on the bootstrap, SIGIR 2006 (paired, over topics).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from model_export.evaluation.measures import Metrics, grade_metrics, macro_f1, quadratic_weighted_kappa

COVERAGE_PERCENT = 95
# In the order of `PairedBootstrap.compare`.
COMPARED_METRICS = (
    "accuracy",
    "macro_f1",
    "qwk",
    "macro_f1_decided",
    "qwk_decided",
    "ndcg_at_10",
    "ece_after",
)


@dataclass(frozen=True)
class QueryTallies:
    """A system's results per query.

    Attributes:
        confusion: (queries, grades, grades) counts of pairs, [gold, most probable grade].
        decided: the same with the grades of the decision rule.
        ndcg: (queries,) float64; NaN for a query that does not count.
        calibration: (queries, bins) float64, the `calibration_gaps` of the calibrated probabilities.
    """

    confusion: np.ndarray
    decided: np.ndarray
    ndcg: np.ndarray
    calibration: np.ndarray


@dataclass(frozen=True)
class Difference:
    """A metric of the system minus the control's, with a 95 % percentile interval; None if undefined.

    With a single query there is no interval: every resample equals the sample.
    """

    difference: float | None
    low: float | None
    high: float | None

    @property
    def excludes_zero(self) -> bool:
        """Return whether the interval excludes 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def draw_resamples(queries: int, draws: int, seed: int) -> np.ndarray:
    """Draw how often each query is in each resample, (draws, queries) float64; each row sums to `queries`."""
    counts = np.random.default_rng(seed).multinomial(queries, np.full(queries, 1 / queries), size=draws)
    return counts.astype(np.float64)


def resampled_metrics(tallies: QueryTallies, resamples: np.ndarray) -> dict[str, np.ndarray]:
    """Compute COMPARED_METRICS of every resample, (draws,) each; NaN if undefined.

    The values equal those of the resampled rows, as scikit-learn computes them; macro-F1 is over the grades in their gold.
    """
    probable, decided = (resample(tally, resamples) for tally in (tallies.confusion, tallies.decided))
    counted = ~np.isnan(tallies.ndcg)
    with np.errstate(invalid="ignore", divide="ignore"):
        ndcg = resamples[:, counted] @ tallies.ndcg[counted] / resamples[:, counted].sum(axis=1)
    gaps = np.abs(resamples @ tallies.calibration).sum(axis=1)
    return {
        **grade_metrics(probable),
        "macro_f1_decided": macro_f1(decided),
        "qwk_decided": quadratic_weighted_kappa(decided),
        "ndcg_at_10": ndcg,
        "ece_after": gaps / probable.sum(axis=(1, 2)),
    }


def resample(tally: np.ndarray, resamples: np.ndarray) -> np.ndarray:
    """Sum (queries, grades, grades) counts over each resample, (draws, grades, grades)."""
    queries, grades, _ = tally.shape
    summed: np.ndarray = (resamples @ tally.reshape(queries, -1)).reshape(-1, grades, grades)
    return summed


def percentile_interval(drawn: np.ndarray) -> tuple[float, float]:
    """Return the ends of the percentile interval of COVERAGE_PERCENT, from a value of each resample, (draws,)."""
    tail = (100 - COVERAGE_PERCENT) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return float(low), float(high)


class PairedBootstrap:
    """Compares systems on the same resamples of the same queries."""

    def __init__(self, tallies: Mapping[str, QueryTallies], draws: int, seed: int) -> None:
        """Draw `draws` resamples by `seed`. `tallies` by system must have the same queries in the same order."""
        first = next(iter(tallies.values()))
        queries = len(first.confusion)
        ranked = int(np.isfinite(first.ndcg).sum())
        self._queries = {**dict.fromkeys(COMPARED_METRICS, queries), "ndcg_at_10": ranked}
        whole, resamples = np.ones((1, queries)), draw_resamples(queries, draws, seed)
        self._points = {system: resampled_metrics(tally, whole) for system, tally in tallies.items()}
        self._drawn = {system: resampled_metrics(tally, resamples) for system, tally in tallies.items()}

    def measure(self, system: str) -> Metrics:
        """Return the metrics of the whole sample, None if undefined."""
        found = {metric: float(value[0]) for metric, value in self._points[system].items()}
        return {metric: value if np.isfinite(value) else None for metric, value in found.items()}

    def compare(self, system: str, control: str) -> dict[str, Difference]:
        """Compute the differences system - control, by metric."""
        points, drawn = self._points, self._drawn
        return {
            metric: _interval(
                float(points[system][metric][0] - points[control][metric][0]),
                drawn[system][metric] - drawn[control][metric],
                self._queries[metric],
            )
            for metric in points[system]
        }


def _interval(difference: float, drawn: np.ndarray, queries: int) -> Difference:
    defined = drawn[np.isfinite(drawn)]
    if not np.isfinite(difference) or len(defined) == 0:
        return Difference(None, None, None)
    if queries < 2:
        return Difference(difference, None, None)
    return Difference(difference, *percentile_interval(defined))
