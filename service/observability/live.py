"""What scoring did in the last minute, second by second: for the guard of explanation mode and for the console.

Prometheus keeps the history; this is what a replica knows of itself at once, without anything beside it.
"""

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

WINDOW_S = 60
# Latencies are kept as counts in buckets that grow by a tenth, so that a busy second is as small as an idle one;
# a percentile is then right within 5 %.
_GROWTH = 1.1
_SHORTEST_S, _LONGEST_S = 0.001, 120.0


@dataclass(slots=True)
class Second:
    """Counts of one second; `at` is the second itself. Latencies, of online requests alone, are by bucket."""

    at: int
    pairs: int = 0
    scored: int = 0
    cached: int = 0
    shed: int = 0
    latencies: Counter[int] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Figures:
    """Of some seconds together. Latencies in seconds, of online requests; None where there was nothing to tell of.

    Attributes:
        requests: online requests that were answered, with an error too.
        pairs_per_s: pairs scored in a second.
        hit_rate: share of scored pairs that needed no work of the engine.
        shed_rate: share of pairs that were not admitted.
    """

    requests: int
    p50_s: float | None
    p99_s: float | None
    pairs_per_s: float
    hit_rate: float | None
    shed_rate: float | None


class LiveFigures:
    """The last WINDOW_S seconds. Used from one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives monotonic seconds."""
        self._clock = clock
        self._seconds: deque[Second] = deque(maxlen=WINDOW_S)

    def count_pairs(self, scored: int, cached: int, shed: int, all_pairs: int) -> None:
        """A request's pairs; `cached` of the scored ones needed no work of the engine."""
        now = self._this_second()
        now.pairs += all_pairs
        now.scored += scored
        now.cached += cached
        now.shed += shed

    def count_latency(self, seconds: float) -> None:
        """An online request's time from being taken to its answer."""
        self._this_second().latencies[_bucket(seconds)] += 1

    def over(self, seconds: int) -> Figures:
        """Of the last whole seconds together, and the one that is running."""
        since = int(self._clock()) - seconds
        return _sum_up([second for second in self._seconds if second.at >= since], seconds)

    def by_second(self, seconds: int) -> list[Figures]:
        """Of each of the last whole seconds, oldest first."""
        known = {second.at: second for second in self._seconds}
        now = int(self._clock())
        return [_sum_up([known[at]] if at in known else [], 1) for at in range(now - seconds, now)]

    def _this_second(self) -> Second:
        now = int(self._clock())
        if not self._seconds or self._seconds[-1].at != now:
            self._seconds.append(Second(now))
        return self._seconds[-1]


def _sum_up(seconds: Iterable[Second], length_s: int) -> Figures:
    kept = list(seconds)
    latencies = sum((second.latencies for second in kept), Counter[int]())
    pairs, scored = sum(second.pairs for second in kept), sum(second.scored for second in kept)
    return Figures(
        requests=latencies.total(),
        p50_s=_percentile(latencies, 0.5),
        p99_s=_percentile(latencies, 0.99),
        pairs_per_s=scored / length_s,
        hit_rate=sum(second.cached for second in kept) / scored if scored else None,
        shed_rate=sum(second.shed for second in kept) / pairs if pairs else None,
    )


def _bucket(seconds: float) -> int:
    return round(math.log(min(max(seconds, _SHORTEST_S), _LONGEST_S), _GROWTH))


def _percentile(latencies: Counter[int], share: float) -> float | None:
    """Nearest rank: the smallest latency that `share` of all don't exceed."""
    rank = math.ceil(share * latencies.total())
    for bucket in sorted(latencies):
        rank -= latencies[bucket]
        if rank <= 0:
            return float(_GROWTH**bucket)
    return None
