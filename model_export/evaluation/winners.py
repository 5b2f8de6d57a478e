"""Finds the best system for each metric, which may be a control."""

from collections.abc import Mapping
from dataclasses import dataclass

from model_export.evaluation.measures import Metrics
from model_export.evaluation.paired_bootstrap import COVERAGE_PERCENT, Difference, PairedBootstrap

# Our systems, the served one first; every other system is a control.
METHOD = ("student", "stack", "rl")
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


def find_winners(
    rows: Mapping[str, Metrics], bootstrap: PairedBootstrap, main_control: str | None
) -> dict[str, Winner]:
    """Find the winner for each of RANKED_METRICS that any system has; `rows` is by system.

    The sentence compares our system (the first of METHOD among the systems) with the best one and the main control.
    """
    winners = {}
    for metric in RANKED_METRICS:
        values = {system: value for system, row in rows.items() if (value := row[metric]) is not None}
        if not values:
            continue
        best = (min if metric in LOWER_IS_BETTER else max)(values, key=lambda system: values[system])
        ours = next((system for system in METHOD if system in values), None)
        clauses = [f"{METRIC_TITLES[metric]}: best is {best} ({values[best]:.3f})"]
        for rival in dict.fromkeys((best, main_control)):
            if ours is not None and rival in values and rival != ours:
                interval = bootstrap.compare(ours, rival).get(metric)
                clauses.append(_compare(ours, rival, values[ours] - values[rival], interval))
        winners[metric] = Winner(best, values[best], best not in METHOD, "; ".join(clauses))
    return winners


def _compare(ours: str, rival: str, difference: float, interval: Difference | None) -> str:
    side = "above" if difference > 0 else "below"
    distance = f"{abs(difference):.3f} {side}" if difference else "equal to"
    sentence = f"{ours} is {distance} {rival}"
    if interval is None or interval.low is None:
        return sentence
    return f"{sentence} ({COVERAGE_PERCENT} % interval {interval.low:.3f} to {interval.high:.3f})"
