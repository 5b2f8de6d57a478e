"""Evaluates systems against controls: metrics per split, paired bootstrap intervals, and the best system per metric.

`measures` defines the metrics. Calibrated ("after") and decided metrics use a fit on other pairs. Without one they are
cross-fitted: each half of the queries uses the fit of the other half. Grades may mean different things in different
sources, so read the sources one by one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from model_export.data.pairs import Pair
from model_export.evaluation.fit_calibration import (
    calibration_gaps,
    cross_fitted,
    expected_calibration_error,
)
from model_export.evaluation.fit_decision import cross_fitted_grades
from model_export.evaluation.fitted import Fitted
from model_export.evaluation.judged import Judged
from model_export.evaluation.measures import (
    Metrics,
    area_under_curve,
    most_probable,
    ndcg_by_query,
    tally_confusion,
)
from model_export.evaluation.paired_bootstrap import Difference, PairedBootstrap, QueryTallies
from model_export.evaluation.winners import METRIC_TITLES, Winner, find_winners
from service.errors import NotegradeError

# The main control comes first.
DEFAULT_CONTROLS = ("label_only_sft", "cross_encoder", "cot_sft", "zero_shot", "minilm", "bm25", "majority")
ALL, LONG_TAIL = "all", "long_tail"
DRAWS = 1000
# A bfloat16 softmax sums to 1 only within this tolerance.
SUM_TOLERANCE = 1e-2

# Differences by control, system and metric.
Differences = dict[str, dict[str, dict[str, Difference]]]


class EvaluationError(NotegradeError):
    """The systems or pairs can't be evaluated together."""


@dataclass(frozen=True)
class Predictions:
    """One system's predictions for the dev pairs, in the pairs' order.

    Attributes:
        system: its name in the table.
        probabilities: (pairs, grades) raw, before calibration; each row sums to 1.
        ranking: (pairs,) ranking scores; notes of a query are ordered by them, highest first.
        parsed: (pairs,) bool, whether the reasoning trace parsed; None for a system without traces.
    """

    system: str
    probabilities: np.ndarray
    ranking: np.ndarray
    parsed: np.ndarray | None = None


@dataclass(frozen=True)
class Evaluation:
    """The results of `evaluate`.

    Attributes:
        rows: metrics by system, split and metric; None if undefined.
        sizes: by split, the number of `pairs`, `queries` and `ranked_queries` (those that count for nDCG).
        differences: system minus control over all pairs, by control, system and metric.
        split_differences: the same for each other split.
        winners: the best system over all pairs, by metric of RANKED_METRICS.
        controls: the systems compared against, the main one first.
        draws: number of bootstrap resamples.
        seed: seeds the resamples, the cross-fitting halves and the order of ties.
    """

    rows: dict[str, dict[str, Metrics]]
    sizes: dict[str, dict[str, int]]
    differences: Differences
    split_differences: dict[str, Differences]
    winners: dict[str, Winner]
    controls: tuple[str, ...]
    draws: int
    seed: int

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON data without NaN."""
        return asdict(self)

    def differences_on(self, split: str) -> Differences:
        """Return system minus control on a split, ALL included, by control, system and metric."""
        return self.differences if split == ALL else self.split_differences[split]


def evaluate(
    systems: Sequence[Predictions],
    pairs: Sequence[Pair],
    long_tail: frozenset[str],
    *,
    controls: Sequence[str] | None = None,
    fits: Mapping[str, Fitted] | None = None,
    seed: int,
    draws: int = DRAWS,
) -> Evaluation:
    """Measure every system on all pairs, on the long tail and, with several sources, on each source and its long tail.

    COMPARED_METRICS are compared with each control on the same resamples of queries.

    Args:
        long_tail: ids of pairs.
        controls: names of systems, the main one first; by default the DEFAULT_CONTROLS among the systems.
        fits: for each system, what was fitted on other pairs; cross-fitted on these pairs if None.
    Raises: EvaluationError for predictions that don't fit the pairs, an unknown control, or fewer than two queries.
    """
    if controls is None:
        names = {each.system for each in systems}
        controls = [control for control in DEFAULT_CONTROLS if control in names]
    _check(systems, pairs, controls)
    judged = Judged.of(pairs)
    served = [_serve(each, judged, fits[each.system] if fits else None, seed) for each in systems]
    rows: dict[str, dict[str, Metrics]] = {each.system: {} for each in systems}
    bootstraps: dict[str, PairedBootstrap] = {}
    sizes: dict[str, dict[str, int]] = {}
    for split, here in _splits(pairs, long_tail).items():
        tallies = {
            each.system: _tally(each, of_each, judged[here], here, seed)
            for each, of_each in zip(systems, served, strict=True)
        }
        bootstraps[split] = PairedBootstrap(tallies, draws, seed)
        sizes[split] = _sizes(here, tallies[systems[0].system])
        for each in systems:
            own = _measure(each, judged.gold, here)
            rows[each.system][split] = {**bootstraps[split].measure(each.system), **own}
    differences = {
        split: {
            control: {system: bootstrap.compare(system, control) for system in rows if system != control}
            for control in controls
        }
        for split, bootstrap in bootstraps.items()
    }
    overall = {system: row[ALL] for system, row in rows.items()}
    return Evaluation(
        rows=rows,
        sizes=sizes,
        differences=differences.pop(ALL),
        split_differences=differences,
        winners=find_winners(overall, bootstraps[ALL], next(iter(controls), None)),
        controls=tuple(controls),
        draws=draws,
        seed=seed,
    )


def _check(systems: Sequence[Predictions], pairs: Sequence[Pair], controls: Sequence[str]) -> None:
    names = [each.system for each in systems]
    if not names or len(set(names)) < len(names):
        raise EvaluationError(
            f"evaluation needs one or more systems with distinct names, and the names are {names}"
        )
    if missing := [control for control in controls if control not in names]:
        raise EvaluationError(f"controls {missing} are unknown; the systems are {names}")
    if (queries := len({(pair.source, pair.query) for pair in pairs})) < 2:
        raise EvaluationError(f"evaluation needs two or more dev queries, and there are {queries}")
    top_label = max(pair.label for pair in pairs)
    for each in systems:
        _check_shape(each, len(pairs), top_label)


def _check_shape(predictions: Predictions, pairs: int, top_label: int) -> None:
    found = np.shape(predictions.probabilities)
    if (
        len(found) != 2
        or found[0] != pairs
        or found[1] <= top_label
        or np.shape(predictions.ranking) != (pairs,)
    ):
        raise EvaluationError(
            f"{predictions.system}: probabilities {found} and ranking {np.shape(predictions.ranking)} don't fit"
            f" {pairs} dev pairs with labels up to {top_label}"
        )
    sums = predictions.probabilities.sum(axis=1)
    if not (np.abs(sums - 1) < SUM_TOLERANCE).all() or not np.isfinite(predictions.ranking).all():
        raise EvaluationError(
            f"{predictions.system}: each row of probabilities must sum to 1, and ranking scores must be finite"
        )


def _splits(pairs: Sequence[Pair], long_tail: frozenset[str]) -> dict[str, np.ndarray]:
    """Find the (rows,) of each split that is not empty, by the split's name."""
    splits = {
        ALL: np.arange(len(pairs)),
        LONG_TAIL: np.flatnonzero([pair.id in long_tail for pair in pairs]),
    }
    sources = sorted({pair.source for pair in pairs})
    if taken := sorted(splits.keys() & sources):
        raise EvaluationError(f"a source can't be named {taken[0]!r}: a split has that name")
    for source in sources if len(sources) > 1 else ():
        rows = np.flatnonzero([pair.source == source for pair in pairs])
        splits |= {source: rows, f"{source}_{LONG_TAIL}": np.intersect1d(rows, splits[LONG_TAIL])}
    return {split: rows for split, rows in splits.items() if len(rows)}


def _serve(
    predictions: Predictions, judged: Judged, fitted: Fitted | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Compute calibrated probabilities and decided grades, by the fit or else cross-fitted."""
    raw = predictions.probabilities
    if fitted is not None:
        criteria = judged.criteria.tolist()
        return fitted.calibrate(raw, criteria), fitted.choose_grades(raw, criteria)
    calibrated = cross_fitted(raw, judged, seed)
    return calibrated, cross_fitted_grades(calibrated, judged, seed)


def _tally(
    predictions: Predictions,
    served: tuple[np.ndarray, np.ndarray],
    judged: Judged,
    here: np.ndarray,
    seed: int,
) -> QueryTallies:
    """Tally the rows `here`; `served` has the calibrated probabilities and decided grades of all rows, `judged` those rows alone."""
    calibrated, decided = served
    queries = np.unique(judged.query_of, return_inverse=True)[1]
    probabilities = predictions.probabilities[here]
    grades = probabilities.shape[1]
    return QueryTallies(
        tally_confusion(queries, judged.gold, most_probable(probabilities), grades),
        tally_confusion(queries, judged.gold, decided[here], grades),
        ndcg_by_query(judged.gold, predictions.ranking[here], queries, seed),
        calibration_gaps(queries, calibrated[here], judged.gold),
    )


def _sizes(here: np.ndarray, tallies: QueryTallies) -> dict[str, int]:
    ranked = int(np.isfinite(tallies.ndcg).sum())
    return {"pairs": len(here), "queries": len(tallies.ndcg), "ranked_queries": ranked}


def _measure(predictions: Predictions, gold: np.ndarray, here: np.ndarray) -> Metrics:
    """Compute the metrics that have no interval, on the rows `here`."""
    raw, parsed = predictions.probabilities[here], predictions.parsed
    return {
        "auc": area_under_curve(gold[here], raw),
        "ece_before": expected_calibration_error(raw, gold[here]),
        "parse_rate": None if parsed is None else float(np.mean(parsed[here])),
    }


def format_table(evaluation: Evaluation) -> str:
    """Format the results as plain text: a table per split, then the best system per metric."""
    blocks = [_format_split(evaluation, split) for split in evaluation.sizes]
    return "\n\n".join([*blocks, "\n".join(winner.sentence for winner in evaluation.winners.values())])


def _format_split(evaluation: Evaluation, split: str) -> str:
    size = evaluation.sizes[split]
    titles = ["system", *METRIC_TITLES.values()]
    lines = [
        [system, *(format_number(row[split][metric]) for metric in METRIC_TITLES)]
        for system, row in evaluation.rows.items()
    ]
    widths = [max(map(len, column)) for column in zip(titles, *lines, strict=True)]
    aligned = (
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in (titles, *lines)
    )
    heading = (
        f"{split}: {size['pairs']:,} pairs, {size['queries']:,} queries ({size['ranked_queries']:,} for nDCG)"
    )
    return "\n".join([heading, *aligned])


def format_number(value: float | None) -> str:
    """Format with three decimals, or as a dash if undefined."""
    return "–" if value is None else f"{value:.3f}"
