"""Finds the highest rate that a server keeps up with, by bisection."""

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from load_tests.bench.drive import Drive

GOOD_SHARE = 0.95
# The start of a probe is not counted: an idle server's first answers are still on their way.
RAMP_SHARE = 0.25
# Steps of the search for a bracket are small, since a backlog from a far too high rate takes long to drain.
STEP, MOST_STEPS = 1.25, 8


@dataclass(frozen=True, slots=True)
class Probe:
    """The result of one rate, counted after the ramp.

    Attributes:
        rate: requests per second to send.
        offered: pairs sent per second.
        goodput: pairs scored per second.
        backlog_grew: whether the number of waiting requests grew.
    """

    rate: float
    offered: float
    goodput: float
    backlog_grew: bool

    @property
    def keeps_up(self) -> bool:
        """Return whether the server scores as fast as pairs arrive."""
        return self.goodput >= GOOD_SHARE * self.offered and not self.backlog_grew


@dataclass(frozen=True, slots=True)
class Saturation:
    """The highest rate that the server kept up with and the lowest that it did not, in requests/s, and all probes."""

    kept_up: float
    not_kept_up: float
    probes: list[Probe] = field(default_factory=list)

    @property
    def goodput(self) -> float:
        """Pairs per second at the highest rate that the server kept up with; 0 if there is none."""
        return max((probe.goodput for probe in self.probes if probe.keeps_up), default=0.0)


def judge(rate: float, seconds: float, drive: Drive, notes: int, scored: Sequence[int]) -> Probe:
    """Judge a drive of `seconds` of arrivals of `notes` notes. `scored` counts the scored pairs of each of `drive.sent`.

    The drive should last many times as long as a request, or requests in flight at its end look like lost goodput.
    """
    ramp_s = RAMP_SHARE * seconds
    window_s = seconds - ramp_s
    arrived = notes * sum(each.meant_s >= ramp_s for each in drive.sent)
    done = sum(n for each, n in zip(drive.sent, scored, strict=True) if ramp_s <= each.done_s < seconds)
    return Probe(rate, arrived / window_s, done / window_s, _backlog_grew(drive, seconds))


def _backlog_grew(drive: Drive, seconds: float) -> bool:
    """Return whether the last third had significantly more waiting requests on average than the second third.

    Significant means more than 5 % of a third's arrivals plus twice their standard deviation (of a Poisson process).
    """
    third = seconds / 3
    arrivals = len(drive.sent) / 3
    allowed = (1 - GOOD_SHARE) * arrivals + 2 * math.sqrt(arrivals)
    grown = _mean_backlog(drive, 2 * third, seconds) - _mean_backlog(drive, third, 2 * third)
    return grown > allowed


def _mean_backlog(drive: Drive, start_s: float, end_s: float) -> float:
    waited = sum(max(0.0, min(each.done_s, end_s) - max(each.meant_s, start_s)) for each in drive.sent)
    return waited / (end_s - start_s)


async def find_saturation(
    probe: Callable[[float], Awaitable[Probe]], first_rate: float, resolution: float = 0.05
) -> Saturation:
    """Bisect between a rate that the server keeps up with and one that it doesn't, to a relative `resolution`.

    probe: sends a rate (requests per second) to an idle server.
    first_rate: a guess, such as the rate of a closed loop.
    """
    probes: list[Probe] = []

    async def keeps_up(rate: float) -> bool:
        probes.append(await probe(rate))
        return probes[-1].keeps_up

    low, high = await _bracket(keeps_up, first_rate)
    while low > 0 and math.isfinite(high) and high - low > resolution * low:
        middle = (low + high) / 2
        if await keeps_up(middle):
            low = middle
        else:
            high = middle
    return Saturation(low, high, probes)


async def _bracket(keeps_up: Callable[[float], Awaitable[bool]], first_rate: float) -> tuple[float, float]:
    """Find a bracket: (0, rate) if the lowest rate tried is too high, (rate, infinity) if the highest is not."""
    rate = first_rate
    if await keeps_up(rate):
        for _ in range(MOST_STEPS):
            low, rate = rate, rate * STEP
            if not await keeps_up(rate):
                return low, rate
        return rate, math.inf
    for _ in range(MOST_STEPS):
        high, rate = rate, rate / STEP
        if await keeps_up(rate):
            return rate, high
    return 0.0, rate
