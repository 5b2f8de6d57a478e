"""Compares the grades and scores of two checkpoints on the same pairs, before the second replaces the first.

The service compares mirrored requests, the trainer compares a file of pairs. Neither needs gold grades.
"""

import math
import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Two-sided quantile of the normal distribution.
_Z_95 = 1.96
# Bins for a score's shift from -1 to 1. The number is odd, so that a shift of 0 is in the middle of a bin; quantiles are exact to half a bin.
_BINS = 81
_FEWEST_FOR_INTERVAL = 10


@dataclass(frozen=True, slots=True)
class Graded:
    """A note's grade, starting at 0, and its score in [0, 1]."""

    grade: int
    score: float


class RatioMean:
    """A mean over pairs with its confidence interval. Requests are the sample, not pairs: the pairs of one query are alike.

    Source: Cochran, Sampling Techniques, 3rd edition, section 6.3: the variance of a ratio of two sums.
    """

    def __init__(self) -> None:
        self._requests = 0
        self._total = self._count = 0.0
        self._total_squared = self._both = self._count_squared = 0.0

    def add(self, total: float, count: float = 1.0) -> None:
        """Add a request's sum over `count` pairs."""
        self._requests += 1
        self._total += total
        self._count += count
        self._total_squared += total * total
        self._both += total * count
        self._count_squared += count * count

    def to_json(self) -> dict[str, float | None]:
        """Return `mean`, and `low` and `high` of its 95 % interval; None where there is too little data."""
        if not self._count:
            return {"mean": None, "low": None, "high": None}
        mean = self._total / self._count
        if self._requests < _FEWEST_FOR_INTERVAL:
            return {"mean": mean, "low": None, "high": None}
        squared_residuals = self._total_squared - 2 * mean * self._both + mean * mean * self._count_squared
        n = self._requests
        half = _Z_95 * math.sqrt(max(0.0, squared_residuals) * n / (n - 1)) / self._count
        return {"mean": mean, "low": mean - half, "high": mean + half}


class Comparison:
    """Compares two checkpoints over requests, in constant memory.

    The first checkpoint is the one that serves, the second is the candidate.
    """

    def __init__(self, grades: int) -> None:
        """Create an empty comparison. `grades` is the number of grades."""
        self.requests = 0
        self.pairs = 0
        self._flips = [[0] * grades for _ in range(grades)]
        self._shifts = [0] * _BINS
        self._same_grade, self._same_first = RatioMean(), RatioMean()
        self._shift, self._distance, self._rank_correlation = RatioMean(), RatioMean(), RatioMean()

    def add(self, first: Sequence[Graded], second: Sequence[Graded]) -> None:
        """Add both checkpoints' results for the notes of one query, in the same order. A request without notes is ignored.

        Raises IndexError for a grade that is not below the number of grades.
        """
        if not first:
            return
        shifts = [b.score - a.score for a, b in zip(first, second, strict=True)]
        for a, b, shift in zip(first, second, shifts, strict=True):
            self._flips[a.grade][b.grade] += 1
            self._shifts[min(_BINS - 1, int((shift + 1) / 2 * _BINS))] += 1
        self.requests += 1
        self.pairs += len(first)
        self._same_grade.add(sum(a.grade == b.grade for a, b in zip(first, second, strict=True)), len(first))
        self._shift.add(sum(shifts), len(shifts))
        self._distance.add(sum(map(abs, shifts)), len(shifts))
        self._add_order([each.score for each in first], [each.score for each in second])

    def _add_order(self, first: Sequence[float], second: Sequence[float]) -> None:
        correlation = rank_correlation(first, second)
        if correlation is not None:
            self._rank_correlation.add(correlation)
            self._same_first.add(second[first.index(max(first))] == max(second))

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as JSON-like data, for `describe_comparison`.

        `flips[i][j]` counts the pairs with grade i from the first checkpoint and grade j from the second. `rank_correlation`
        is the mean of Spearman's correlation over the requests in which both rank the notes, and `same_first` is the share of
        those requests in which both rank the same note first.
        """
        return {
            "requests": self.requests,
            "pairs": self.pairs,
            "same_grade": self._same_grade.to_json(),
            "flips": [list(row) for row in self._flips],
            "score_shift": {**self._shift.to_json(), **self._shift_quantiles()},
            "score_distance": self._distance.to_json(),
            "rank_correlation": self._rank_correlation.to_json(),
            "same_first": self._same_first.to_json(),
        }

    def _shift_quantiles(self) -> dict[str, float | None]:
        return {
            name: self._shift_quantile(share) for name, share in (("p5", 0.05), ("p50", 0.5), ("p95", 0.95))
        }

    def _shift_quantile(self, share: float) -> float | None:
        below = 0
        for number, count in enumerate(self._shifts):
            below += count
            if count and below >= share * self.pairs:
                return (number + 0.5) / _BINS * 2 - 1
        return None


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation in [-1, 1]; ties have the mean of their ranks. None where all values of one are equal."""
    try:
        return statistics.correlation(_ranks(first), _ranks(second))
    except statistics.StatisticsError:
        return None


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [(bisect_left(ordered, value) + 1 + bisect_right(ordered, value)) / 2 for value in values]


def describe_comparison(found: Mapping[str, Any]) -> str:
    """Describe the result of `Comparison.to_json` as text for people."""
    shift = found["score_shift"]
    lines = [
        f"{found['pairs']:,} pairs of {found['requests']:,} requests; 95 % intervals over requests",
        f"same grade        {_percent(found['same_grade'])}",
        f"same note first   {_percent(found['same_first'])}",
        f"rank correlation  {describe_interval(found['rank_correlation'], '.3f')} (Spearman, mean over requests)",
        f"score shift       {describe_interval(shift, '+.3f')}, absolute {describe_interval(found['score_distance'], '.3f')}",
    ]
    if shift["p50"] is not None:
        lines.append(
            f"                  p5 {shift['p5']:+.3f}, p50 {shift['p50']:+.3f}, p95 {shift['p95']:+.3f}"
        )
    return "\n".join([*lines, "", *_describe_flips(found["flips"])])


def _describe_flips(flips: Sequence[Sequence[int]]) -> list[str]:
    width = max(7, *(len(f"{count:,}") for row in flips for count in row))
    head = "".join(f"{f'to {grade}':>{width + 2}}" for grade in range(len(flips)))
    rows = [
        f"from grade {grade}" + "".join(f"{count:>{width + 2},}" for count in row)
        for grade, row in enumerate(flips)
    ]
    return [" " * len("from grade 0") + head, *rows]


def _percent(found: Mapping[str, float | None]) -> str:
    return describe_interval(
        {name: None if value is None else 100 * value for name, value in found.items()}, ".1f", " %"
    )


def describe_interval(found: Mapping[str, float | None], form: str, unit: str = "") -> str:
    """Describe the result of `RatioMean.to_json`, each number in the format `form`."""
    mean, low, high = (found[name] for name in ("mean", "low", "high"))
    if mean is None:
        return "not known yet"
    interval = f" [{low:{form}}, {high:{form}}]" if low is not None and high is not None else ""
    return f"{mean:{form}}{unit}{interval}"
