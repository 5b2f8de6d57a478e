"""Soak a service of its own: mixed traffic, random faults, then the books.

    .venv/bin/python -m load_tests.soak --seconds 600 --out runs/soak

Starts `notegrade serve` and a Redis. At the end it prints what was sent, answered and left, whether the service's own counts agree, how memory
went (slope over the second half, with its standard error), and what is left of tasks and open files when all is quiet. Exits with 1
if anything is wrong.
"""

import argparse
import asyncio
import json
import math
import random
import re
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from load_tests.client import post_score, read_metrics
from load_tests.soak.faults import Faults
from load_tests.soak.processes import Redis, Service, wait_for_start
from load_tests.soak.traffic import CANARY, Callers, Tally
from load_tests.texts import make_note

SAMPLE_EVERY_S = 5.0
# Until caches are full.
WARM_UP_SHARE = 0.5
MAX_GROWTH_MIB_PER_HOUR = 100.0
# The engine core grows for half an hour and then levels off: presumably what oneDNN keeps prepared for each number of tokens
# that it meets. Its slope says something after that alone.
ENGINE_SETTLES_S, MAX_ENGINE_GROWTH_MIB = 1800.0, 1000.0
# When all is quiet. Redis' pools keep sockets to servers that were killed until they are used again: 64 and 16.
MAX_MORE_FILES = 83
MAX_MORE_TASKS = 3
MAX_CONNECTIONS = 3


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at the service: seconds from the start, memory in MiB of the process and of its engine core."""

    seconds: float
    rss_mib: float
    engine_rss_mib: float
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
            "engine core": Slope.of(at, [sample.engine_rss_mib for sample in steady]),
        }

    def judge(self, counted: float, log: str) -> None:
        """Fill in what is wrong. `counted` are the requests that the service says it had."""
        self.wrong += self.tally.wrong
        if (lost := self.tally.unanswered()) != 0:
            self.wrong.append(f"{lost} requests were not answered")
        if counted != self.tally.sent.total():
            self.wrong.append(
                f"the service counted {counted:g} requests, sent were {self.tally.sent.total()}"
            )
        slopes = self.slopes
        if self.seconds * WARM_UP_SHARE < ENGINE_SETTLES_S:
            del slopes["engine core"]
        for name, slope in slopes.items():
            # Grown for certain, and by more than matters: a short run's slope is noise.
            if slope.per_hour - 2 * slope.error > MAX_GROWTH_MIB_PER_HOUR:
                self.wrong.append(f"{name}: memory grows by {slope.per_hour:.0f} MiB an hour")
        if self.after.engine_rss_mib > self.before.engine_rss_mib + MAX_ENGINE_GROWTH_MIB:
            self.wrong.append(
                f"engine core: {self.after.engine_rss_mib - self.before.engine_rss_mib:.0f} MiB more"
            )
        if self.after.connections > MAX_CONNECTIONS:
            self.wrong.append(f"{self.after.connections:g} connections are still open")
        if self.after.open_files > self.before.open_files + MAX_MORE_FILES:
            self.wrong.append(f"open files: {self.before.open_files} before, {self.after.open_files} after")
        if self.after.tasks > self.before.tasks + MAX_MORE_TASKS:
            self.wrong.append(f"tasks: {self.before.tasks:g} before, {self.after.tasks:g} after")
        if self.exit_code:
            self.wrong.append(f"the service ended with {self.exit_code}")
        for bad in (CANARY, "Traceback", "unforeseen"):
            if bad in log:
                self.wrong.append(f"the log holds {bad!r}")

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
        ]
        for name, slope in self.slopes.items():
            lines.append(
                f"memory of the {name}: {slope.per_hour:+.1f} MiB an hour (standard error {slope.error:.1f})"
            )
        lines += [
            f"{when}: {sample}"
            for when, sample in (("quiet before", self.before), ("quiet after", self.after))
        ]
        return "\n".join(
            [*lines, *(f"WRONG {what}" for what in self.wrong), "all is well" * (not self.wrong)]
        )

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


class Soak:
    """One service, one Redis, one run."""

    def __init__(self, service: Service, redis: Redis, session: aiohttp.ClientSession, seed: int) -> None:
        self._service = service
        self._redis = redis
        self._session = session
        self._seed = seed
        self._samples: list[Sample] = []

    async def run(self, seconds: float) -> tuple[Report, float]:
        """The report, not judged yet, and how many requests the service says it had from callers."""
        await self._fill_prefix_cache()
        callers = Callers(self._service.url, self._session, self._seed)
        await callers.run(min(20.0, seconds / 10))  # imports, pools and caches
        warm = callers.tally
        before = await self._quiet()
        callers.tally = Tally(scores=warm.scores, wrong=warm.wrong)
        counted_before = await self._counted()
        faults = Faults(self._redis, self._seed)
        failing = asyncio.create_task(faults.run())
        sampling = asyncio.create_task(self._sample())
        await callers.run(seconds)
        for task in (failing, sampling):
            task.cancel()
        for ended in await asyncio.gather(failing, sampling, return_exceptions=True):
            if not isinstance(ended, asyncio.CancelledError):
                callers.tally.complain(f"the soak itself failed: {ended!r}")
        after = await self._quiet()
        counted = await self._counted() - counted_before
        return Report(
            seconds, self._seed, callers.tally, dict(faults.injected), self._samples, before, after
        ), counted

    async def _fill_prefix_cache(self) -> None:
        """Use every page of it once: until then, the engine core's memory grows as it is meant to."""
        rng = random.Random(self._seed)
        metrics = await read_metrics(self._session, self._service.url)
        [size] = (
            re.search(r'kv_cache_size_tokens="(\d+)"', name)
            for name in metrics
            if "cache_config_info" in name
        )
        computed = 'notegrade_prompt_tokens_total{kind="computed"}'
        until = metrics.get(computed, 0) + int(size[1] if size else 0)
        while metrics.get(computed, 0) < until:
            notes = [make_note(rng, str(number), words=100) for number in range(50)]
            body = {"query": f"{CANARY} {rng.random()}", "notes": notes, "deadline_ms": 60_000}
            await post_score(self._session, self._service.url, body)
            metrics = await read_metrics(self._session, self._service.url)

    async def _quiet(self) -> Sample:
        await asyncio.sleep(8)
        return await self._look(0.0)

    async def _counted(self) -> float:
        metrics = await read_metrics(self._session, self._service.url)
        return sum(
            value
            for name, value in metrics.items()
            if name.startswith("notegrade_request_seconds_count")
            and not re.search(r'route="/(metrics|readyz)"', name)
        )

    async def _sample(self) -> None:
        started = time.monotonic()
        while True:
            await asyncio.sleep(SAMPLE_EVERY_S)
            self._samples.append(await self._look(time.monotonic() - started))

    async def _look(self, seconds: float) -> Sample:
        metrics = await read_metrics(self._session, self._service.url)
        own, engine = self._service.rss_mib()
        files = self._service.open_files()
        return Sample(
            seconds, own, engine, files, metrics["notegrade_connections"], metrics["notegrade_tasks"]
        )


def soak(seconds: float, seed: int, command: str, checkpoint: str, redis_server: str, out: Path) -> Report:
    """Run and judge; `out` gets the service's log and soak.json."""
    out.mkdir(parents=True, exist_ok=True)
    log = out / "service.log"
    redis = Redis(redis_server)
    redis.start()
    service = Service(command, checkpoint, redis, log)
    try:
        report, counted = asyncio.run(_run(service, redis, seconds, seed))
        report.exit_code = service.terminate()
    finally:
        service.kill()
        redis.kill()
    report.judge(counted, log.read_text(encoding="utf-8", errors="replace"))
    (out / "soak.json").write_text(json.dumps(report.to_json(), indent=1), encoding="utf-8")
    return report


async def _run(service: Service, redis: Redis, seconds: float, seed: int) -> tuple[Report, float]:
    # Kept for less long than `_quiet` waits: what is open then is not the callers'.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=2)
    timeout = aiohttp.ClientTimeout(total=90)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        await wait_for_start(session, service)
        return await Soak(service, redis, session, seed).run(seconds)


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--command", default=str(Path(sys.executable).with_name("notegrade")))
    parser.add_argument("--checkpoint", default="checkpoints/default")
    parser.add_argument("--redis-server", default=shutil.which("redis-server") or "valkey-server")
    parser.add_argument("--out", type=Path, default=Path("runs/soak"))
    a = parser.parse_args()
    report = soak(a.seconds, a.seed, a.command, a.checkpoint, a.redis_server, a.out)
    print(report.told())
    sys.exit(bool(report.wrong))


if __name__ == "__main__":
    main()
