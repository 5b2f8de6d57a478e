"""Figures of the last minute, second by second, for the guard of explanation mode and for the console.

They need no Prometheus: a replica knows its own last minute at once. Prometheus keeps the history.
"""

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

WINDOW_S = 60
# Latencies are counted in buckets, each 10 % wider than the one before, so that a busy second needs no more memory
# than an idle one. A percentile is then accurate to 5 %.
_GROWTH = 1.1
_SHORTEST_S, _LONGEST_S = 0.001, 120.0


@dataclass(slots=True)
class Second:
    """Counts of one second. `at` is that second on the clock; latencies are those of online requests, by bucket."""

    at: int
    pairs: int = 0
    scored: int = 0
    cached: int = 0
    shed: int = 0
    latencies: Counter[int] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Figures:
    """Aggregates over a time window. Latencies are those of online requests. Null: nothing was measured.

    `requests` counts the online requests that were answered, errors included. `hit_rate` is the share of the scored pairs that
    the engine did not compute, `shed_rate` the share of all pairs that were not admitted.
    """

    requests: int
    p50_ms: float | None
    p99_ms: float | None
    pairs_per_s: float
    hit_rate: float | None
    shed_rate: float | None


class LiveFigures:
    """Counts the last WINDOW_S seconds. Used from one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives monotonic seconds."""
        self._clock = clock
        # One more than the window: the current second must not push out the oldest whole one.
        self._seconds: deque[Second] = deque(maxlen=WINDOW_S + 1)

    def count_pairs(self, scored: int, cached: int, shed: int, all_pairs: int) -> None:
        """Count a request's pairs; `cached` of the scored ones were not computed by the engine."""
        now = self._this_second()
        now.pairs += all_pairs
        now.scored += scored
        now.cached += cached
        now.shed += shed

    def count_latency(self, seconds: float) -> None:
        """Count an online request's latency, from its arrival at the scorer to its answer."""
        self._this_second().latencies[_bucket(seconds)] += 1

    def over(self, seconds: int) -> Figures:
        """Aggregate the last whole seconds and the current one."""
        now = self._clock()
        since = int(now) - seconds
        return _aggregate([second for second in self._seconds if second.at >= since], now - since)

    def by_second(self, seconds: int) -> list[Figures]:
        """Return the figures of each of the last whole seconds, oldest first."""
        counted = {second.at: second for second in self._seconds}
        now = int(self._clock())
        return [_aggregate([counted[at]] if at in counted else [], 1) for at in range(now - seconds, now)]

    def _this_second(self) -> Second:
        now = int(self._clock())
        if not self._seconds or self._seconds[-1].at != now:
            self._seconds.append(Second(now))
        return self._seconds[-1]


def _aggregate(seconds: Collection[Second], length_s: float) -> Figures:
    latencies = sum((second.latencies for second in seconds), Counter[int]())
    pairs, scored = sum(second.pairs for second in seconds), sum(second.scored for second in seconds)
    return Figures(
        requests=latencies.total(),
        p50_ms=_percentile_ms(latencies, 0.5),
        p99_ms=_percentile_ms(latencies, 0.99),
        pairs_per_s=round(scored / length_s, 3),
        hit_rate=sum(second.cached for second in seconds) / scored if scored else None,
        shed_rate=sum(second.shed for second in seconds) / pairs if pairs else None,
    )


def _bucket(seconds: float) -> int:
    return round(math.log(min(max(seconds, _SHORTEST_S), _LONGEST_S), _GROWTH))


def _percentile_ms(latencies: Counter[int], share: float) -> float | None:
    """Return the nearest-rank percentile: the smallest latency that at least `share` of all requests stay within."""
    rank = math.ceil(share * latencies.total())
    for bucket in sorted(latencies):
        rank -= latencies[bucket]
        if rank <= 0:
            return round(1000 * _GROWTH**bucket, 2)
    return None
