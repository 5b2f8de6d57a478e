"""What was measured, and the ratios that are read off it."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from load_tests.bench.peer import Tuning
from load_tests.bench.saturation import Saturation

Part = Literal["cold", "defaults", "student", "zipf", "replay", "offline", "p99", "sweeps"]
OURS, STUDENT, OFFLINE = "Notegrade", "Notegrade, student", "vLLM offline"


@dataclass(frozen=True, slots=True)
class Measurement:
    """One contestant's turn in one round.

    Attributes:
        requests, pairs: asked.
        pairs_per_s: scored pairs over `seconds`, from the first request sent to the last answer.
        outcomes: requests by what became of them (`load_tests.bench.drive.Outcome`).
        latency_ms: p50, p90, p99, p99.9 and max over all requests, unanswered ones as late as the timeout.
        cpu_s, client_cpu_s: processor time of the server with its children, and of the load generator.
        peak_rss_mib: highest sum of resident memory.
        prompt_tokens_per_pair: length of the prompts, mean.
        computed_tokens_per_pair: what went through the model, by vLLM's counters; None where there are none.
        known_share: pairs that needed no engine, of those scored; 0 where the server has no cache of pairs.
        offered_per_s: rate of arrivals in requests a second; None for clients that wait for answers.
        load: that rate as a share of the best peer's saturation.
        lag_p99_ms: how late the load generator itself was.
        notes, note_tokens: the shape of the requests.
    """

    part: Part
    peer: str
    tuning: Tuning
    round: int
    notes: int
    note_tokens: float
    requests: int
    pairs: int
    seconds: float
    pairs_per_s: float
    outcomes: dict[str, int]
    latency_ms: dict[str, float]
    cpu_s: float
    client_cpu_s: float
    peak_rss_mib: float
    prompt_tokens_per_pair: float
    computed_tokens_per_pair: float | None = None
    known_share: float | None = None
    offered_per_s: float | None = None
    load: float | None = None
    lag_p99_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far a peer's expected grades are from ours, on a sample: greatest and mean difference, in grades."""

    peer: str
    tuning: Tuning
    pairs: int
    greatest: float
    mean: float

    def within(self, most: float) -> bool:
        """False where there are no grades to compare."""
        return self.greatest <= most


def agreement(peer: str, tuning: Tuning, ours: Sequence[float], theirs: Sequence[float]) -> Agreement:
    """NaN where a grade is missing on either side, so that nothing is within any limit."""
    apart = [abs(a - b) for a, b in zip(ours, theirs, strict=True)] or [math.nan]
    is_whole = not any(map(math.isnan, apart))
    greatest, mean = (max(apart), statistics.fmean(apart)) if is_whole else (math.nan, math.nan)
    return Agreement(peer, tuning, len(apart), greatest, mean)


@dataclass(frozen=True, slots=True)
class Ratio:
    """Median of the rounds' ratios, with the least and greatest; all None where it was not measured, and why."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    rounds: int = 0
    over: str | None = None
    under: str | None = None
    reason: str | None = None


@dataclass
class Records:
    """Everything that a run found out."""

    measurements: list[Measurement] = field(default_factory=list)
    agreements: list[Agreement] = field(default_factory=list)
    # Contestants by label: why they did not start, and how they disagree with us. Neither kind is compared.
    absent: dict[str, str] = field(default_factory=dict)
    disagreeing: dict[str, str] = field(default_factory=dict)
    # Parts that were not run, and why.
    skipped: dict[str, str] = field(default_factory=dict)
    # The rest by label, too.
    saturation: dict[str, Saturation] = field(default_factory=dict)
    ready_s: dict[str, float] = field(default_factory=dict)

    def of(self, part: Part, peer: str) -> list[Measurement]:
        """In the order of the rounds; of several loads, those at the highest."""
        found = [each for each in self.measurements if each.part == part and each.peer == peer]
        highest = max((each.load or 0.0 for each in found), default=0.0)
        found = [each for each in found if (each.load or 0.0) == highest]
        return sorted(found, key=lambda each: each.round)

    def peers(self, part: Part) -> list[str]:
        """Who took part."""
        return list(dict.fromkeys(each.peer for each in self.measurements if each.part == part))

    def best_peer(self, part: Part) -> str | None:
        """Of those that are not ourselves: the fastest by median, or at the same rate for all (`p99`), the one with the lowest p99."""
        rivals = [peer for peer in self.peers(part) if peer not in (OURS, STUDENT, OFFLINE)]
        goodness = _promptness if part == "p99" else _rate
        return max(
            rivals,
            key=lambda peer: statistics.median(map(goodness, self.of(part, peer))),
            default=None,
        )


def _rate(measurement: Measurement) -> float:
    return measurement.pairs_per_s


def _promptness(measurement: Measurement) -> float:
    return -_p99_ms(measurement)


def _p99_ms(measurement: Measurement) -> float:
    return measurement.latency_ms.get("p99", math.inf)


def compare(
    records: Records,
    part: Part,
    over: str | None,
    under: str | None,
    value: Callable[[Measurement], float] = _rate,
) -> Ratio:
    """`over`'s value divided by `under`'s, round by round: what the machine did to both of a round cancels out."""
    if part in records.skipped:
        return Ratio(reason=records.skipped[part])
    if over is None or under is None:
        return Ratio(reason=f"{part}: no peer took part")
    by_round = {each.round: value(each) for each in records.of(part, under)}
    pairs = [(value(each), by_round[each.round]) for each in records.of(part, over) if each.round in by_round]
    if not pairs:
        return Ratio(reason=f"{part}: {over} and {under} were not both measured")
    if not all(math.isfinite(a) and math.isfinite(b) and b > 0 for a, b in pairs):
        return Ratio(reason=f"{part}: {over} or {under} scored nothing in a round")
    found = [a / b for a, b in pairs]
    return Ratio(statistics.median(found), min(found), max(found), len(found), over, under)


def compute_ratios(records: Records) -> dict[str, Ratio]:
    """Each greater than 1 where Notegrade is the better one; `http_vs_offline_engine` is what HTTP and all else leave of the engine."""
    best = records.best_peer
    return {
        "cold_vs_best_peer": compare(records, "cold", OURS, best("cold")),
        "cold_vs_peer_defaults": compare(records, "defaults", OURS, best("defaults")),
        "student_vs_best_peer": compare(records, "student", STUDENT, best("student")),
        "zipf_vs_best_peer": compare(records, "zipf", OURS, best("zipf")),
        "http_vs_offline_engine": compare(records, "offline", OURS, OFFLINE),
        "best_peer_p99_over_ours": compare(records, "p99", best("p99"), OURS, _p99_ms),
    }
