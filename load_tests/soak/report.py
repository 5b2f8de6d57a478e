"""Reports a soak's results, and checks them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from scipy.stats import linregress

from load_tests.soak.traffic import CANARY, Tally

# The share of the run in which caches fill.
WARM_UP_SHARE = 0.5
MAX_GROWTH_MIB_PER_HOUR = 100.0
# The engine core grows for half an hour and then levels off, presumably because oneDNN caches kernels per number of tokens. In a
# shorter run its slope is not checked, only its total growth.
ENGINE_SETTLES_S, MAX_ENGINE_GROWTH_MIB = 1800.0, 1000.0
ENGINE = "engine core"
# The default of NOTEGRADE_REDIS_MAX_CONNECTIONS, plus the explanations' pool.
MAX_FILES_TO_REDIS = 64 + 16
# Measured runs ended with the same numbers as before. The tolerance is for connections that are closing and files that a
# library opens late; a leak in one of a hundred requests would be far larger.
MAX_MORE_FILES = 5
MAX_MORE_TASKS = 3
MAX_CONNECTIONS = 3
# Minimum per second for a meaningful soak on two cores. Measured: a fault in 6 s, about twenty pairs and one disconnecting client
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
    """A least-squares slope with its standard error."""

    per_hour: float
    error: float

    @classmethod
    def of(cls, seconds: Sequence[float], values: Sequence[float]) -> "Slope":
        """Fit the slope; NaN for fewer than three values."""
        if len(values) < 3:
            return cls(math.nan, math.nan)
        line = linregress(seconds, values)
        return cls(float(line.slope) * 3600, float(line.stderr) * 3600)

    @property
    def is_too_steep(self) -> bool:
        """Return whether the growth exceeds the limit by two standard errors, since a short run's slope is noisy."""
        return self.per_hour - 2 * self.error > MAX_GROWTH_MIB_PER_HOUR


@dataclass(slots=True)
class Report:
    """The results of a soak; `counted` requests by the service's own count, and `wrong` lists the failed checks."""

    seconds: float
    seed: int
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
        """The growth of memory after the warm-up, in MiB per hour."""
        steady = [sample for sample in self.samples if sample.seconds >= WARM_UP_SHARE * self.seconds]
        at = [sample.seconds for sample in steady]
        return {
            "service": Slope.of(at, [sample.rss_mib for sample in steady]),
            ENGINE: Slope.of(at, [sample.engine_rss_mib for sample in steady]),
        }

    @property
    def engine_has_settled(self) -> bool:
        """Return whether the run is long enough for the slope of the engine core's memory to be meaningful."""
        return self.seconds * WARM_UP_SHARE >= ENGINE_SETTLES_S

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
            "pairs scored": self.tally.pairs["scored"],
            "disconnected clients": self.tally.left.total(),
            "faults": sum(self.faults.values()),
            "samples": len(self.samples),
        }
        for name, count in amounts.items():
            if count <= (minimum := MIN_PER_SECOND[name] * self.seconds):
                yield f"{name}: {count}, expected more than {minimum:g}"

    def _counts(self) -> Iterator[str]:
        if (lost := self.tally.unanswered()) != 0:
            yield f"{lost} requests were not answered"
        if self.counted != (sent := self.tally.sent.total()):
            yield f"the service counted {self.counted:g} requests, but {sent} were sent"

    def _memory(self) -> Iterator[str]:
        for name, slope in self.slopes.items():
            if slope.is_too_steep and (name != ENGINE or self.engine_has_settled):
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
            f"{self.seconds:.0f} s, seed {self.seed}",
            f"sent {self.tally.sent.total()}: {dict(self.tally.sent)}",
            f"answered {self.tally.answered.total()}, disconnected {self.tally.left.total()}, lost {self.tally.unanswered()}: {statuses}",
            f"pairs of /score: {dict(self.tally.pairs)}; malformed requests: {dict(self.tally.raw)}",
            f"faults: {self.faults}",
            *self._memory_lines(),
            f"idle before: {self.before}",
            f"idle after: {self.after}",
        ]
        return "\n".join(
            [*lines, *(f"WRONG {what}" for what in self.wrong), "all checks passed" * (not self.wrong)]
        )

    def _memory_lines(self) -> list[str]:
        lines = [
            f"memory of the {name}: {slope.per_hour:+.1f} MiB/h (standard error {slope.error:.1f})"
            for name, slope in self.slopes.items()
        ]
        if not self.engine_has_settled:
            lines[-1] += f", not checked: it settles for {ENGINE_SETTLES_S:.0f} s"
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return everything but the scores as JSON data."""
        return {
            "seconds": self.seconds, "seed": self.seed, "faults": self.faults, "wrong": self.wrong,
            "sent": self.tally.sent, "left": self.tally.left, "raw": self.tally.raw, "pairs": self.tally.pairs,
            "answered": {f"{kind} {status}": count for (kind, status), count in self.tally.answered.items()},
            "slopes": {name: asdict(slope) for name, slope in self.slopes.items()},
            "before": asdict(self.before), "after": asdict(self.after),
            "samples": [asdict(sample) for sample in self.samples],
        }  # fmt: skip
