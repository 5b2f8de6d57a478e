"""The difference between two arms of an experiment, and how sure it is: statistics alone, no metric and no network.

Requests of one minute, and of one user, are not independent, so an interval that counts each of them is too narrow. What is taken as
independent here is a window of time: a number is a ratio of two sums over the windows, and its variance is how much the windows
differ from it. Windows are paired between the arms, so that a load peak which both had takes nothing off.

Source: the linearised variance of a ratio of means (Cochran, Sampling Techniques, 1977, chapter 6; for experiments Deng, Knoblich, Lu,
arXiv 1803.06336), with Student's t for few windows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

# Of the larger of the two ratios: less is what floating point leaves of equal ones, and no difference.
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Window:
    """What both arms counted in one window: each arm's number is the sum of its parts over the sum of its wholes (> 0)."""

    control_part: float
    control_whole: float
    treatment_part: float
    treatment_whole: float


@dataclass(frozen=True, slots=True)
class Difference:
    """Treatment minus control, with the interval's ends."""

    control: float
    treatment: float
    low: float
    high: float

    @property
    def value(self) -> float:
        return self.treatment - self.control

    @property
    def is_seen(self) -> bool:
        """Zero is outside of the interval."""
        nothing = ROUNDING * max(abs(self.control), abs(self.treatment))
        return self.low > nothing or self.high < -nothing


def ratios(windows: Sequence[Window]) -> tuple[float, float]:
    """The control's number and the treatment's. Raises ZeroDivisionError for no windows."""
    return (
        sum(each.control_part for each in windows) / sum(each.control_whole for each in windows),
        sum(each.treatment_part for each in windows) / sum(each.treatment_whole for each in windows),
    )


def compare(windows: Sequence[Window], confidence: float) -> Difference:
    """The difference of the arms' ratios, with an interval that holds the true one with that confidence (0 to 1).

    Raises ValueError for fewer than two windows, which have no variance.
    """
    count = len(windows)
    if count < 2:
        raise ValueError(f"{count} window(s) have no variance")
    control_whole = sum(each.control_whole for each in windows)
    treatment_whole = sum(each.treatment_whole for each in windows)
    control, treatment = ratios(windows)
    # What each window moves the difference by; they sum to zero.
    moves = [
        (each.treatment_part - treatment * each.treatment_whole) / treatment_whole
        - (each.control_part - control * each.control_whole) / control_whole
        for each in windows
    ]
    error = math.sqrt(count / (count - 1) * sum(move * move for move in moves))
    margin = t_quantile((1 + confidence) / 2, count - 1) * error
    difference = treatment - control
    return Difference(control, treatment, difference - margin, difference + margin)


def t_quantile(probability: float, degrees: int) -> float:
    """The quantile of Student's t, within 1 % from 9 degrees of freedom up.

    Source: the expansion 26.7.5 of Abramowitz and Stegun. The exact one is in scipy, which is not installed for serving.
    """
    z = NormalDist().inv_cdf(probability)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / float(degrees) ** power for power, term in enumerate(terms))


def bucket_quantile(share: float, buckets: dict[float, float]) -> float | None:
    """A quantile from counts up to each bound, as Prometheus's histogram_quantile estimates it; None of nothing.

    Inside a bucket it is a straight line from bound to bound; beyond the last finite bound, that bound.
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
