"""The difference between two arms of an experiment, with a confidence interval: statistics only, no metrics and no network.

Requests of the same minute or the same user are not independent, so an interval that treats them as independent is too narrow. This
module takes windows of time as independent instead: a measure is a ratio of two sums over the windows, and its variance comes from how
much the windows differ from it. Windows are paired between the arms, so that a load peak in both does not widen the interval.

Source: the linearised variance of a ratio of means (Cochran, Sampling Techniques, 1977, chapter 6; for experiments Deng, Knoblich, Lu,
arXiv 1803.06336), with Student's t for few windows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from service.errors import CommandError

try:
    from scipy.stats import t as student_t
except ImportError as error:
    raise CommandError(
        "`notegrade experiment` needs scipy: install the extra `experiments` "
        "(pip install 'notegrade[experiments]', or `make setup-train` in a clone)"
    ) from error

# Differences below this share of the larger ratio come from floating-point rounding.
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Window:
    """The counts of both arms in one window of time. An arm's measure is the sum of its parts over the sum of its wholes (> 0)."""

    control_part: float
    control_whole: float
    treatment_part: float
    treatment_whole: float


@dataclass(frozen=True, slots=True)
class Difference:
    """Treatment minus control, with the ends of its interval."""

    control: float
    treatment: float
    low: float
    high: float

    @property
    def value(self) -> float:
        return self.treatment - self.control

    @property
    def is_significant(self) -> bool:
        """Return whether zero is outside the interval."""
        rounding = ROUNDING * max(abs(self.control), abs(self.treatment))
        return self.low > rounding or self.high < -rounding


def ratios(windows: Sequence[Window]) -> tuple[float, float]:
    """Return the control's measure and the treatment's. Raises ZeroDivisionError without windows."""
    return (
        sum(each.control_part for each in windows) / sum(each.control_whole for each in windows),
        sum(each.treatment_part for each in windows) / sum(each.treatment_whole for each in windows),
    )


def compare(windows: Sequence[Window], confidence: float) -> Difference:
    """Return the difference of the arms' ratios, with an interval that contains the true one with `confidence` (0 to 1).

    Raises ValueError for fewer than two windows, which have no variance.
    """
    count = len(windows)
    if count < 2:
        raise ValueError(f"{count} window(s) have no variance")
    control_whole = sum(each.control_whole for each in windows)
    treatment_whole = sum(each.treatment_whole for each in windows)
    control, treatment = ratios(windows)
    # Each window's influence on the difference; together they are zero.
    influences = [
        (each.treatment_part - treatment * each.treatment_whole) / treatment_whole
        - (each.control_part - control * each.control_whole) / control_whole
        for each in windows
    ]
    error = math.sqrt(count / (count - 1) * sum(influence * influence for influence in influences))
    margin = float(student_t.ppf((1 + confidence) / 2, count - 1)) * error
    difference = treatment - control
    return Difference(control, treatment, difference - margin, difference + margin)


def bucket_quantile(share: float, buckets: dict[float, float]) -> float | None:
    """Estimate a quantile from cumulative counts by upper bound, as Prometheus's histogram_quantile does; None without counts.

    Values are taken as evenly spread within their bucket; above the last finite bound, that bound is returned.
    """
    bounds = sorted(buckets)
    total = buckets[bounds[-1]] if bounds else 0.0
    below, start = 0.0, 0.0
    for bound in bounds:
        if total and buckets[bound] >= share * total and buckets[bound] > below:
            if math.isinf(bound):
                return start
            return start + (bound - start) * (share * total - below) / (buckets[bound] - below)
        below, start = buckets[bound], bound
    return None
