"""The measurements of a run, and the ratios computed from them."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from load_tests.bench.peer import Tuning
from load_tests.bench.saturation import Saturation

Part = Literal[
    "cold", "defaults", "student", "vectors", "unknown", "zipf", "replay", "offline", "p99", "sweeps"
]
OURS, STUDENT, OFFLINE = "Notegrade", "Notegrade, student", "vLLM offline"
VECTORS, AUTO = "Notegrade, vectors", "Notegrade, auto"


@dataclass(frozen=True, slots=True)
class Measurement:
    """One contestant's turn in one round.

    Attributes:
        notes, note_tokens: the shape of the requests.
        requests, pairs: numbers sent.
        pairs_per_s: scored pairs over `seconds`, from the first request to the last answer.
        outcomes: number of requests by `load_tests.bench.drive.Outcome`.
        latency_ms: p50, p90, p99 and max over all requests; an unanswered request counts as the timeout.
        cpu_s, client_cpu_s: CPU time of the server with its children, and of the load generator.
        peak_rss_mib: peak of the total resident memory.
        prompt_tokens_per_pair: mean length of the prompts.
        computed_tokens_per_pair: tokens computed by the model, by vLLM's counters; None without them.
        known_share: share of the scored pairs that needed no engine; 0 for a server without a pair cache.
        offered_per_s: arrivals in requests per second; None for a closed loop.
        load: that rate as a share of the best peer's saturation.
        lag_p99_ms: p99 of the load generator's own delay.
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
    """Differences between a peer's expected grades and ours on a sample, in grades; NaN if a grade is missing."""

    peer: str
    tuning: Tuning
    pairs: int
    maximum: float
    mean: float


def agreement(peer: str, tuning: Tuning, ours: Sequence[float], theirs: Sequence[float]) -> Agreement:
    """Compare grades; a missing grade on either side, or no grades at all, give NaN."""
    differences = np.abs(np.subtract(ours, theirs)) if ours else np.array([math.nan])
    return Agreement(peer, tuning, len(differences), float(differences.max()), float(differences.mean()))


@dataclass(frozen=True, slots=True)
class Ratio:
    """Median, minimum and maximum of the rounds' ratios; None with a reason if not measured."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    rounds: int = 0
    over: str | None = None
    under: str | None = None
    reason: str | None = None


@dataclass
class Records:
    """All results of a run.

    Attributes:
        absent, disagreeing: by label, contestants that did not start or compute other grades, with the reason; not compared.
        skipped: parts that were not run, with the reason.
        saturation, ready_s: by label of the contestant.
    """

    measurements: list[Measurement] = field(default_factory=list)
    agreements: list[Agreement] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    disagreeing: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    saturation: dict[str, Saturation] = field(default_factory=dict)
    ready_s: dict[str, float] = field(default_factory=dict)

    def of(self, part: Part, peer: str) -> list[Measurement]:
        """List a contestant's measurements by round; with several loads, those at the highest."""
        found = [each for each in self.measurements if each.part == part and each.peer == peer]
        highest = max((each.load or 0.0 for each in found), default=0.0)
        found = [each for each in found if (each.load or 0.0) == highest]
        return sorted(found, key=lambda each: each.round)

    def best_peer(self, part: Part) -> str | None:
        """Return the best other server by median: the fastest, or in `p99` the one with the lowest p99."""
        peers = dict.fromkeys(each.peer for each in self.measurements if each.part == part)
        rivals = [peer for peer in peers if peer not in (OURS, STUDENT, OFFLINE, VECTORS, AUTO)]

        def quality(peer: str) -> float:
            found = self.of(part, peer)
            return statistics.median(-_p99_ms(each) if part == "p99" else _rate(each) for each in found)

        return max(rivals, key=quality, default=None)


def _rate(measurement: Measurement) -> float:
    return measurement.pairs_per_s


def _p99_ms(measurement: Measurement) -> float:
    return measurement.latency_ms.get("p99", math.inf)


def compare(
    records: Records,
    part: Part,
    over: str | None,
    under: str | None,
    value: Callable[[Measurement], float] = _rate,
) -> Ratio:
    """Divide `over`'s value by `under`'s, round by round, so that changes in the machine's speed cancel out."""
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
    """Compute all ratios; above 1 Notegrade is better. `http_vs_offline_engine` is the share of the engine's own rate."""
    best = records.best_peer
    return {
        "cold_vs_best_peer": compare(records, "cold", OURS, best("cold")),
        "cold_vs_peer_defaults": compare(records, "defaults", OURS, best("defaults")),
        "student_vs_best_peer": compare(records, "student", STUDENT, best("student")),
        "vectors_vs_best_peer": compare(records, "vectors", VECTORS, best("vectors")),
        "vectors_vs_text": compare(records, "vectors", VECTORS, OURS),
        "unknown_vs_text": compare(records, "unknown", AUTO, OURS),
        "zipf_vs_best_peer": compare(records, "zipf", OURS, best("zipf")),
        "zipf_vectors_vs_best_peer": compare(records, "zipf", VECTORS, best("zipf")),
        "http_vs_offline_engine": compare(records, "offline", OURS, OFFLINE),
        "best_peer_p99_over_ours": compare(records, "p99", best("p99"), OURS, _p99_ms),
        "best_peer_p99_over_vectors": compare(records, "p99", best("p99"), VECTORS, _p99_ms),
    }
