"""Finds the best system for each metric, which may be a control."""

from collections.abc import Mapping
from dataclasses import dataclass

from model_export.evaluation.measures import Metrics
from model_export.evaluation.paired_bootstrap import COVERAGE_PERCENT, PairedBootstrap

# Our systems, the served one first; every other system is a control.
METHOD = ("student", "sam")
METRIC_TITLES = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "qwk": "QWK",
    "macro_f1_decided": "macro-F1 decided",
    "qwk_decided": "QWK decided",
    "ndcg_at_10": "nDCG@10",
    "auc": "AUC",
    "ece_before": "ECE before",
    "ece_after": "ECE after",
    "parse_rate": "parse rate",
}
# The metrics that have a winner.
RANKED_METRICS = ("accuracy", "macro_f1", "qwk", "ndcg_at_10", "auc", "ece_after")
LOWER_IS_BETTER = frozenset({"ece_before", "ece_after"})


@dataclass(frozen=True)
class Winner:
    """The best system for a metric, with a sentence on it; of equal systems, the first in the table."""

    system: str
    value: float
    is_control: bool
    sentence: str


@dataclass(frozen=True)
class _Contest:
    """All systems' values of one metric; systems without the metric are left out."""

    metric: str
    values: Mapping[str, float]
    bootstrap: PairedBootstrap

    def best(self) -> str:
        pick = min if self.metric in LOWER_IS_BETTER else max
        return pick(self.values, key=lambda system: self.values[system])

    def sentence(self, main_control: str | None) -> str:
        best = self.best()
        opening = f"{METRIC_TITLES[self.metric]}: best is {best} ({self.values[best]:.3f})"
        ours = next((system for system in METHOD if system in self.values), None)
        if ours is None:
            return opening
        rivals = dict.fromkeys((best, main_control or best))
        clauses = [self._compare(ours, rival) for rival in rivals if rival in self.values and rival != ours]
        return "; ".join([opening, *clauses])

    def _compare(self, ours: str, rival: str) -> str:
        difference = self.values[ours] - self.values[rival]
        side = "above" if difference > 0 else "below"
        distance = f"{abs(difference):.3f} {side}" if difference else "equal to"
        return f"{ours} is {distance} {rival}{self._interval(ours, rival)}"

    def _interval(self, ours: str, rival: str) -> str:
        difference = self.bootstrap.compare(ours, rival).get(self.metric)
        if difference is None or difference.low is None:
            return ""
        return f" ({COVERAGE_PERCENT} % interval {difference.low:.3f} to {difference.high:.3f})"


def find_winners(
    rows: Mapping[str, Metrics], bootstrap: PairedBootstrap, main_control: str | None
) -> dict[str, Winner]:
    """Find the winner for each of RANKED_METRICS that any system has; `rows` is by system.

    The sentence compares our system (the first of METHOD among the systems) with the best one and the main control.
    """
    winners = {}
    for metric in RANKED_METRICS:
        values = {system: value for system, row in rows.items() if (value := row[metric]) is not None}
        if values:
            contest = _Contest(metric, values, bootstrap)
            best = contest.best()
            winners[metric] = Winner(best, values[best], best not in METHOD, contest.sentence(main_control))
    return winners
