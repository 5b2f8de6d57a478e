"""Latencies in an HDR histogram: every request counts, and a percentile is right to three digits at any scale."""

from collections.abc import Iterable, Mapping

from hdrh.histogram import HdrHistogram

# From 1 µs to 1 hour.
_HIGHEST_US = 3_600_000_000
_DIGITS = 3
SHOWN = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}


class Latencies:
    """Counts of latencies, in seconds outside and microseconds inside."""

    def __init__(self, seconds: Iterable[float] = ()) -> None:
        self._histogram = HdrHistogram(1, _HIGHEST_US, _DIGITS)
        for each in seconds:
            self.record(each)

    def __len__(self) -> int:
        return int(self._histogram.get_total_count())

    def record(self, seconds: float) -> None:
        """Longer ones than an hour count as an hour."""
        self._histogram.record_value(min(max(1, round(seconds * 1e6)), _HIGHEST_US))

    def add(self, other: "Latencies") -> None:
        """Count what the other one counted as well."""
        self._histogram.add(other._histogram)

    def percentiles_ms(self) -> Mapping[str, float]:
        """p50, p90, p99, p99.9 and the greatest, in milliseconds; empty of none."""
        if not len(self):
            return {}
        found = self._histogram.get_percentile_to_value_dict(list(SHOWN.values()))
        return {name: found[percent] / 1000 for name, percent in SHOWN.items()}
