"""The measures of an experiment, and the rule for when a difference counts."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from service.experiments.interval import Window, bucket_quantile, compare, ratios

# The counts of one arm in one window: by kind (the keys of prometheus.COUNTED), then by the label's value.
Counts = Mapping[str, Mapping[str, float]]
# By the window's position in time.
Windows = Mapping[int, Counts]
Unit = Literal["share", "seconds", "grade"]
Verdict = Literal["better", "worse", "higher", "lower", "no difference seen", "too little data"]

CONFIDENCE = 0.95
# With fewer windows or events, the interval does not have the stated confidence.
FEWEST_WINDOWS = 10
FEWEST_EVENTS = 10
# Prometheus's `increase` gives fractions: a count below this means that nothing happened.
NO_EVENT = 0.5
# The latency objective of deploy/prometheus/rules/slo.yaml.
SLOW_S = 1.0
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True, slots=True)
class Measure:
    """A ratio of two counts. Unless `lower_is_better`, neither direction is better: a more lenient checkpoint grades higher."""

    name: str
    unit: Unit
    lower_is_better: bool
    part: Callable[[Counts], float]
    whole: Callable[[Counts], float]


@dataclass(frozen=True, slots=True)
class Judgement:
    """A measure of both arms, in its unit (shares from 0 to 1); None for what could not be computed."""

    name: str
    unit: Unit
    control: float | None
    treatment: float | None
    difference: float | None
    low: float | None
    high: float | None
    verdict: Verdict


def judge_all(control: Windows, treatment: Windows) -> list[Judgement]:
    """Judge every measure, over the windows that both arms have.

    CONFIDENCE holds for all intervals together (Bonferroni): a reader who acts on any line of the table is misled by chance in one
    of twenty experiments. Without the correction it would be every third.
    """
    grades = {grade for arm in (control, treatment) for counts in arm.values() for grade in counts["grades"]}
    measures = [*MEASURES, *(_grade_share(grade) for grade in sorted(grades))]
    confidence = 1 - (1 - CONFIDENCE) / len(measures)
    return [judge(measure, _paired(measure, control, treatment), confidence) for measure in measures]


def judge(measure: Measure, windows: Sequence[Window], confidence: float) -> Judgement:
    """Judge one measure; its own interval has that confidence (0 to 1)."""
    if not windows:
        return Judgement(measure.name, measure.unit, None, None, None, None, None, "too little data")
    control, treatment = ratios(windows)
    values = (measure.name, measure.unit, control, treatment, treatment - control)
    events = _rarer_events(windows) if measure.unit == "share" else math.inf
    if len(windows) < FEWEST_WINDOWS or NO_EVENT < events < FEWEST_EVENTS:
        return Judgement(*values, None, None, "too little data")
    if events <= NO_EVENT:  # it never happened in either arm, or always did in both
        return Judgement(*values, None, None, "no difference seen")
    found = compare(windows, confidence)
    verdict: Verdict = "no difference seen"
    if found.is_significant:
        verdict = _direction(measure, found.value > 0)
    return Judgement(*values, found.low, found.high, verdict)


def answer_quantiles(windows: Iterable[Counts]) -> dict[str, float | None]:
    """Estimate latency quantiles, in seconds, from the histogram's buckets. They are shown and not judged."""
    buckets: dict[float, float] = defaultdict(float)
    for counts in windows:
        for bound, count in counts["buckets"].items():
            buckets[float(bound)] += count
    return {name: bucket_quantile(share, buckets) for name, share in QUANTILES.items()}


def requests(counts: Counts) -> float:
    """Count the scoring requests, without those that failed through the caller's fault (4xx)."""
    return sum(count for status, count in counts["requests"].items() if not status.startswith("4"))


def _paired(measure: Measure, control: Windows, treatment: Windows) -> list[Window]:
    """Pair the windows of both arms; a window in which one arm has no requests is left out."""
    found = []
    for position in sorted(control.keys() & treatment.keys()):
        ours, theirs = control[position], treatment[position]
        window = Window(measure.part(ours), measure.whole(ours), measure.part(theirs), measure.whole(theirs))
        if window.control_whole > 0 and window.treatment_whole > 0:
            found.append(window)
    return found


def _rarer_events(windows: Sequence[Window]) -> float:
    """Count the events in both arms, or the non-events if those are fewer."""
    part = sum(each.control_part + each.treatment_part for each in windows)
    whole = sum(each.control_whole + each.treatment_whole for each in windows)
    return min(part, whole - part)


def _direction(measure: Measure, is_higher: bool) -> Verdict:
    if measure.lower_is_better:
        return "worse" if is_higher else "better"
    return "higher" if is_higher else "lower"


def _starting(kind: str, start: str) -> Callable[[Counts], float]:
    return lambda counts: sum(count for label, count in counts[kind].items() if label.startswith(start))


def _except(kind: str, label: str) -> Callable[[Counts], float]:
    return lambda counts: sum(count for each, count in counts[kind].items() if each != label)


def _slow(counts: Counts) -> float:
    up_to = {float(bound): count for bound, count in counts["buckets"].items()}
    return up_to.get(math.inf, 0.0) - up_to.get(SLOW_S, 0.0)


def _grade_sum(counts: Counts) -> float:
    return sum(int(grade) * count for grade, count in counts["grades"].items())


def _grade_share(grade: str) -> Measure:
    return Measure(
        f"grade {grade}",
        "share",
        False,
        lambda counts: counts["grades"].get(grade, 0.0),
        _starting("grades", ""),
    )


MEASURES = (
    Measure("errors (5xx)", "share", True, _starting("requests", "5"), requests),
    Measure("answers over 1 s", "share", True, _slow, _starting("buckets", "+Inf")),
    Measure("mean answer time", "seconds", True, _starting("seconds", "2"), _starting("requests", "2")),
    Measure("pairs not scored", "share", True, _except("outcomes", "scored"), _starting("outcomes", "")),
    Measure("pairs from a cache", "share", False, _except("sources", "engine"), _starting("sources", "")),
    Measure("mean grade", "grade", False, _grade_sum, _starting("grades", "")),
)
