"""The highest rate that a server keeps up with, found by offering it rates."""

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from load_tests.bench.drive import Drive

GOOD_SHARE = 0.95
# Before that, a server that began idle answers less than it is asked because the first answers are still on their way.
RAMP_SHARE = 0.25
# How the bracket is looked for: in small steps, since an offer far too high takes long to drain.
STEP, MOST_STEPS = 1.25, 8


@dataclass(frozen=True, slots=True)
class Probe:
    """What came of one offered rate, in pairs a second and counted after the ramp.

    Attributes:
        rate: requests a second that were to be offered.
        offered: pairs that arrived.
        goodput: pairs that were scored.
        backlog_grew: whether more and more requests were waiting.
    """

    rate: float
    offered: float
    goodput: float
    backlog_grew: bool

    @property
    def keeps_up(self) -> bool:
        """Whether the server does what it is asked."""
        return self.goodput >= GOOD_SHARE * self.offered and not self.backlog_grew


@dataclass(frozen=True, slots=True)
class Saturation:
    """The highest rate that was kept up with and the lowest that was not, in requests a second; all probes in order."""

    kept_up: float
    not_kept_up: float
    probes: list[Probe] = field(default_factory=list)

    @property
    def goodput(self) -> float:
        """Pairs a second at the highest rate that was kept up with; 0 where none was."""
        return max((probe.goodput for probe in self.probes if probe.keeps_up), default=0.0)


def judge(rate: float, seconds: float, drive: Drive, pairs: Sequence[int], scored: Sequence[int]) -> Probe:
    """Read a drive of `seconds` of arrivals. `pairs` and `scored` are those of each of `drive.sent`.

    The window should be many times as long as a request takes, or what is on its way at its end looks like a shortfall.
    """
    ramp_s = RAMP_SHARE * seconds
    window_s = seconds - ramp_s
    arrived = sum(n for each, n in zip(drive.sent, pairs, strict=True) if each.meant_s >= ramp_s)
    done = sum(n for each, n in zip(drive.sent, scored, strict=True) if ramp_s <= each.done_s < seconds)
    return Probe(rate, arrived / window_s, done / window_s, _backlog_grew(drive, seconds))


def _backlog_grew(drive: Drive, seconds: float) -> bool:
    """Whether the last third of the time had clearly more waiting requests on average than the second.

    Clearly: by 5 % of the arrivals of a third, and by twice the standard deviation of their number (that of a Poisson
    process), by which a backlog sways without growing.
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
    """Bisect between a rate that is kept up with and one that isn't, until they differ by `resolution` of the lower.

    probe: offers a rate (requests a second), from an empty server.
    first_rate: a guess, such as what clients that wait for their answers got.
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
    """(0, rate) where even the lowest rate tried is too much, (rate, infinity) where the highest is not."""
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
