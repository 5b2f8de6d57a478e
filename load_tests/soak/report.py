"""Reports a soak's results, and checks them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from scipy.stats import t

from load_tests.soak.traffic import CANARY, Tally

# Caches fill in this share of the run, at most for so long.
WARM_UP_SHARE, LONGEST_WARM_UP_S = 0.5, 1200.0
MAX_GROWTH_MIB_PER_HOUR = 100.0
# The engine core grows while its heap adapts to the traffic. In a shorter run its slope is not checked, only its total growth.
ENGINE_SETTLES_S, MAX_ENGINE_GROWTH_MIB = 1800.0, 1000.0
# A slope's interval is from the growth in this many parts of the time.
PARTS = 24
ENGINE = "engine core"
# The default of NOTEGRADE_REDIS_MAX_CONNECTIONS, plus the explanations' pool.
MAX_FILES_TO_REDIS = 64 + 16
# Measured runs ended with the same numbers as before. The tolerance is for connections that are closing and files that a
# library opens late; a leak in one of a hundred requests would be far larger.
MAX_MORE_FILES = 5
MAX_MORE_TASKS = 3
MAX_CONNECTIONS = 3
# Minimum per second for a meaningful soak on two cores, at pace 1. Measured: a fault in 6 s, about twenty pairs and one disconnecting client
# per second, a sample in 5 s.
MIN_PER_SECOND = {"pairs scored": 5 / 3, "disconnected clients": 1 / 60, "faults": 1 / 20, "samples": 1 / 10}


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample of the service, `seconds` after the start. `open_files` excludes connections to Redis."""

    seconds: float
    rss_mib: float
    engine_rss_mib: float
    files_to_redis: int
    open_files: int
    connections: float
    tasks: float


@dataclass(frozen=True, slots=True)
class Slope:
    """The mean growth in MiB per hour, and half the width of its 95 % interval.

    Memory is a running sum, so the interval is that of a random walk's drift: from the growth between the means of equal parts of
    the time. A least-squares line assumes independent errors around it, and finds a trend in a walk without drift (Granger and
    Newbold, 1974, Spurious regressions in econometrics).
    """

    per_hour: float
    margin: float

    @classmethod
    def of(cls, seconds: Sequence[float], values: Sequence[float]) -> "Slope":
        """Return the slope by up to PARTS parts; NaN for fewer than three values."""
        if len(values) < 3:
            return cls(math.nan, math.nan)
        at, means = (
            [part.mean() for part in np.array_split(np.asarray(numbers), min(PARTS, len(values)))]
            for numbers in (seconds, values)
        )
        rates = np.diff(means) / np.diff(at) * 3600
        # Neighbouring parts of a walk share some of its way, so their growth varies by 2/3 of what it would by itself.
        error = math.sqrt(3 / 2 * rates.var(ddof=1) / len(rates))
        return cls(float(rates.mean()), float(t.ppf(0.975, len(rates) - 1) * error))

    @property
    def is_too_steep(self) -> bool:
        """Return whether the whole interval exceeds the limit, since a short run's slope is noisy."""
        return self.per_hour - self.margin > MAX_GROWTH_MIB_PER_HOUR

    def __str__(self) -> str:
        holds_zero = abs(self.per_hour) <= self.margin
        low, high = self.per_hour - self.margin, self.per_hour + self.margin
        return f"{self.per_hour:+.1f} MiB/h [{low:.1f}, {high:.1f}], which {'holds' if holds_zero else 'excludes'} zero"


@dataclass(frozen=True, slots=True)
class Plan:
    """Describes a soak. `pace` is the share of the full request rate: at 0.25 the pauses between requests are four times as long."""

    seconds: float
    seed: int
    faults: bool = True
    pace: float = 1.0

    @property
    def engine_settles(self) -> bool:
        """Return whether the run is long enough for the slope of the engine core's memory to be meaningful."""
        return self.seconds * WARM_UP_SHARE >= ENGINE_SETTLES_S


@dataclass(slots=True)
class Report:
    """The results of a soak; `counted` requests by the service's own count, and `wrong` lists the failed checks."""

    plan: Plan
    tally: Tally
    faults: dict[str, int]
    samples: list[Sample]
    before: Sample
    after: Sample
    counted: float
    exit_code: int | None = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def slopes(self) -> dict[str, Slope]:
        """The growth of memory after the warm-up."""
        warm_up_s = min(WARM_UP_SHARE * self.plan.seconds, LONGEST_WARM_UP_S)
        steady = [sample for sample in self.samples if sample.seconds >= warm_up_s]
        at = [sample.seconds for sample in steady]
        return {
            "service": Slope.of(at, [sample.rss_mib for sample in steady]),
            ENGINE: Slope.of(at, [sample.engine_rss_mib for sample in steady]),
        }

    def judge(self, log: str) -> None:
        """Run all checks."""
        self.wrong += [*self.tally.wrong, *self._amounts(), *self._counts(), *self._memory(), *self._leaks()]
        if self.exit_code != 0:
            self.wrong.append(f"the service ended with exit code {self.exit_code}")
        self.wrong += [
            f"the log contains {bad!r}" for bad in (CANARY, "Traceback", "unforeseen") if bad in log
        ]

    def _amounts(self) -> Iterator[str]:
        amounts = {
            "pairs scored": self.tally.pairs["scored"] / self.plan.pace,
            "disconnected clients": self.tally.left.total() / self.plan.pace,
            **({"faults": sum(self.faults.values())} if self.plan.faults else {}),
            "samples": len(self.samples),
        }
        for name, count in amounts.items():
            if count <= (minimum := MIN_PER_SECOND[name] * self.plan.seconds):
                yield f"{name}: {count:g}, expected more than {minimum:g}"

    def _counts(self) -> Iterator[str]:
        if (lost := self.tally.unanswered()) != 0:
            yield f"{lost} requests were not answered"
        # A client that disconnects may do so before its request has left it, on a busy machine.
        sent, left = self.tally.sent.total(), self.tally.left.total()
        if not sent - left <= self.counted <= sent:
            yield f"the service counted {self.counted:g} requests, but {sent} were sent, {left} of them by clients that disconnected"

    def _memory(self) -> Iterator[str]:
        for name, slope in self.slopes.items():
            if slope.is_too_steep and (name != ENGINE or self.plan.engine_settles):
                yield f"{name}: memory grows by {slope.per_hour:.0f} MiB/h"
        growth = self.after.engine_rss_mib - self.before.engine_rss_mib
        if growth > MAX_ENGINE_GROWTH_MIB:
            yield f"{ENGINE}: memory grew by {growth:.0f} MiB"

    def _leaks(self) -> Iterator[str]:
        before, after = self.before, self.after
        if after.connections > MAX_CONNECTIONS:
            yield f"{after.connections:g} connections are still open"
        if after.open_files > before.open_files + MAX_MORE_FILES:
            yield f"open files: {before.open_files} before, {after.open_files} after"
        if after.files_to_redis > MAX_FILES_TO_REDIS:
            yield f"{after.files_to_redis} connections to Redis, more than the pools allow"
        if after.tasks > before.tasks + MAX_MORE_TASKS:
            yield f"tasks: {before.tasks:g} before, {after.tasks:g} after"

    def to_text(self) -> str:
        """Format the report as plain text."""
        statuses: dict[str, dict[int, int]] = {}
        for (kind, status), count in sorted(self.tally.answered.items()):
            statuses.setdefault(kind, {})[status] = count
        lines = [
            f"{self.plan.seconds:.0f} s, seed {self.plan.seed}, pace {self.plan.pace:g}",
            f"sent {self.tally.sent.total()}: {dict(self.tally.sent)}",
            f"answered {self.tally.answered.total()}, disconnected {self.tally.left.total()}, lost {self.tally.unanswered()}: {statuses}",
            f"pairs of /score: {dict(self.tally.pairs)}; malformed requests: {dict(self.tally.raw)}",
            f"faults: {self.faults or 'none'}",
            *self._memory_lines(),
            f"idle before: {self.before}",
            f"idle after: {self.after}",
        ]
        return "\n".join(
            [*lines, *(f"WRONG {what}" for what in self.wrong), "all checks passed" * (not self.wrong)]
        )

    def _memory_lines(self) -> list[str]:
        lines = [f"memory of the {name}: {slope}" for name, slope in self.slopes.items()]
        if not self.plan.engine_settles:
            lines[-1] += f", not checked: it settles for {ENGINE_SETTLES_S:.0f} s"
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return everything but the scores as JSON data; of the samples one a minute (samples.jsonl has all)."""
        return {
            **asdict(self.plan), "injected": self.faults, "wrong": self.wrong,
            "sent": self.tally.sent, "left": self.tally.left, "raw": self.tally.raw, "pairs": self.tally.pairs,
            "answered": {f"{kind} {status}": count for (kind, status), count in self.tally.answered.items()},
            "slopes": {name: asdict(slope) for name, slope in self.slopes.items()},
            "before": asdict(self.before), "after": asdict(self.after),
            "samples": [asdict(sample) for sample in self.samples[::12]],
        }  # fmt: skip
