"""What a soak found, and whether that is well."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from load_tests.soak.traffic import CANARY, Tally

# Until caches are full.
WARM_UP_SHARE = 0.5
MAX_GROWTH_MIB_PER_HOUR = 100.0
# The engine core grows for half an hour and then levels off: presumably what oneDNN keeps prepared for each number of tokens
# that it meets. Its slope says something after that alone, so a shorter run bounds the sum only.
ENGINE_SETTLES_S, MAX_ENGINE_GROWTH_MIB = 1800.0, 1000.0
ENGINE = "engine core"
# NOTEGRADE_REDIS_MAX_CONNECTIONS as it is by default, and the explanations' own.
MAX_FILES_TO_REDIS = 64 + 16
# Measured runs ended with as many as before. Let pass: a connection that is just closing, a file that a library opens late.
# Anything that one in a hundred requests leaves behind is far more.
MAX_MORE_FILES = 5
MAX_MORE_TASKS = 3
MAX_CONNECTIONS = 3
# What a soak on two cores does more of in each second of its time, or else it tells nothing. Measured: a fault in
# 6 s, some twenty pairs and one client that leaves a second, a sample in 5 s.
MIN_A_SECOND = {"pairs scored": 5 / 3, "requests left": 1 / 60, "faults": 1 / 20, "samples": 1 / 10}


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at the service: seconds from the start, memory in MiB of the process and of its engine core.

    `open_files` are those that do not lead to Redis.
    """

    seconds: float
    rss_mib: float
    engine_rss_mib: float
    files_to_redis: int
    open_files: int
    connections: float
    tasks: float


@dataclass(frozen=True, slots=True)
class Slope:
    """Least squares, with the standard error."""

    per_hour: float
    error: float

    @classmethod
    def of(cls, seconds: Sequence[float], values: Sequence[float]) -> "Slope":
        """NaN of fewer than three."""
        n = len(values)
        if n < 3:
            return cls(math.nan, math.nan)
        mean_x, mean_y = sum(seconds) / n, sum(values) / n
        spread = sum((x - mean_x) ** 2 for x in seconds)
        slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(seconds, values, strict=True)) / spread
        rest = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in zip(seconds, values, strict=True))
        return cls(slope * 3600, math.sqrt(rest / (n - 2) / spread) * 3600)

    @property
    def is_too_steep(self) -> bool:
        """Grown for certain, and by more than matters: a short run's slope is noise."""
        return self.per_hour - 2 * self.error > MAX_GROWTH_MIB_PER_HOUR


@dataclass(slots=True)
class Report:
    """What a soak found; `wrong` is empty when all is well."""

    seconds: float
    seed: int
    tally: Tally
    faults: dict[str, int]
    samples: list[Sample]
    before: Sample
    after: Sample
    exit_code: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def slopes(self) -> dict[str, Slope]:
        """Of memory, in MiB an hour, after the warm-up."""
        steady = [sample for sample in self.samples if sample.seconds >= WARM_UP_SHARE * self.seconds]
        at = [sample.seconds for sample in steady]
        return {
            "service": Slope.of(at, [sample.rss_mib for sample in steady]),
            ENGINE: Slope.of(at, [sample.engine_rss_mib for sample in steady]),
        }

    @property
    def engine_has_settled(self) -> bool:
        """Whether the slope of its memory says anything."""
        return self.seconds * WARM_UP_SHARE >= ENGINE_SETTLES_S

    def judge(self, counted: float, log: str) -> None:
        """Fill in what is wrong. `counted` are the requests that the service says it had."""
        self.wrong += self.tally.wrong
        self._judge_what_happened()
        self._judge_books(counted)
        self._judge_memory()
        self._judge_what_is_left()
        if self.exit_code:
            self.wrong.append(f"the service ended with {self.exit_code}")
        self.wrong += [f"the log holds {bad!r}" for bad in (CANARY, "Traceback", "unforeseen") if bad in log]

    def _judge_what_happened(self) -> None:
        happened = {
            "pairs scored": self.tally.pairs["scored"],
            "requests left": self.tally.left.total(),
            "faults": sum(self.faults.values()),
            "samples": len(self.samples),
        }
        for name, count in happened.items():
            if count <= (least := MIN_A_SECOND[name] * self.seconds):
                self.wrong.append(f"{name}: {count}, and such a soak has more than {least:g}")

    def _judge_books(self, counted: float) -> None:
        if (lost := self.tally.unanswered()) != 0:
            self.wrong.append(f"{lost} requests were not answered")
        if counted != (sent := self.tally.sent.total()):
            self.wrong.append(f"the service counted {counted:g} requests, sent were {sent}")

    def _judge_memory(self) -> None:
        for name, slope in self.slopes.items():
            if slope.is_too_steep and (name != ENGINE or self.engine_has_settled):
                self.wrong.append(f"{name}: memory grows by {slope.per_hour:.0f} MiB an hour")
        more = self.after.engine_rss_mib - self.before.engine_rss_mib
        if more > MAX_ENGINE_GROWTH_MIB:
            self.wrong.append(f"{ENGINE}: {more:.0f} MiB more")

    def _judge_what_is_left(self) -> None:
        before, after = self.before, self.after
        if after.connections > MAX_CONNECTIONS:
            self.wrong.append(f"{after.connections:g} connections are still open")
        if after.open_files > before.open_files + MAX_MORE_FILES:
            self.wrong.append(f"open files: {before.open_files} before, {after.open_files} after")
        if after.files_to_redis > MAX_FILES_TO_REDIS:
            self.wrong.append(f"{after.files_to_redis} sockets to Redis, more than the pools hold")
        if after.tasks > before.tasks + MAX_MORE_TASKS:
            self.wrong.append(f"tasks: {before.tasks:g} before, {after.tasks:g} after")

    def told(self) -> str:
        """For people."""
        statuses: dict[str, dict[int, int]] = {}
        for (kind, status), count in sorted(self.tally.answered.items()):
            statuses.setdefault(kind, {})[status] = count
        lines = [
            f"{self.seconds:.0f} s, seed {self.seed}",
            f"sent {self.tally.sent.total()}: {dict(self.tally.sent)}",
            f"answered {self.tally.answered.total()}, left {self.tally.left.total()}, lost {self.tally.unanswered()}: {statuses}",
            f"pairs of /score: {dict(self.tally.pairs)}; no requests at all: {dict(self.tally.raw)}",
            f"faults: {self.faults}",
            *self._told_memory(),
            f"quiet before: {self.before}",
            f"quiet after: {self.after}",
        ]
        return "\n".join(
            [*lines, *(f"WRONG {what}" for what in self.wrong), "all is well" * (not self.wrong)]
        )

    def _told_memory(self) -> list[str]:
        lines = [
            f"memory of the {name}: {slope.per_hour:+.1f} MiB an hour (standard error {slope.error:.1f})"
            for name, slope in self.slopes.items()
        ]
        if not self.engine_has_settled:
            lines[-1] += f", not judged: it settles for {ENGINE_SETTLES_S:.0f} s"
        return lines

    def to_json(self) -> dict[str, Any]:
        """All of it but the scores."""
        return {
            "seconds": self.seconds, "seed": self.seed, "faults": self.faults, "wrong": self.wrong,
            "sent": self.tally.sent, "left": self.tally.left, "raw": self.tally.raw, "pairs": self.tally.pairs,
            "answered": {f"{kind} {status}": count for (kind, status), count in self.tally.answered.items()},
            "slopes": {name: asdict(slope) for name, slope in self.slopes.items()},
            "before": asdict(self.before), "after": asdict(self.after),
            "samples": [asdict(sample) for sample in self.samples],
        }  # fmt: skip
