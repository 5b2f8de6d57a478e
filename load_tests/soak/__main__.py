"""Soak-tests a service with mixed traffic and random faults.

    .venv/bin/python -m load_tests.soak --seconds 600 --out runs/soak
    .venv/bin/python -m load_tests.soak --seconds 10800 --without-faults --pace 0.25   # for the growth of memory

Starts `notegrade serve` and a Redis. At the end it prints the counts of requests, whether the service's own counts agree, the
growth of memory (the slope after the warm-up with its 95 % interval), and the tasks and open files that remain when idle. Exits
with 1 if anything is wrong. The service itself is not killed, since its counts are per process.
"""

import asyncio
import json
import random
import re
import string
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import aiohttp

from load_tests.arguments import CHECKPOINT, SEED, make_parser
from load_tests.bench.peers.notegrade import Notegrade
from load_tests.client import post_score, read_metrics
from load_tests.processes import run_server
from load_tests.soak.faults import Faults
from load_tests.soak.processes import REDIS, SETTINGS, Redis, ServiceProcess
from load_tests.soak.report import Plan, Report, Sample
from load_tests.soak.traffic import CANARY, Callers, Tally
from service.contract.checkpoint import load_checkpoint

SAMPLE_EVERY_S = 5.0
# Before the samples, traffic at the full rate for this share of the run, at most so long. It warms up imports and pools, and the
# engine's heap: glibc keeps what the largest batch so far has needed.
FULL_RATE_S, FULL_RATE_SHARE = 600.0, 0.1
# Of those that fill caches.
WORDS_OF_A_NOTE = 200


class Soak:
    """One soak of a service and its Redis."""

    def __init__(self, url: str, service: ServiceProcess, redis: Redis, plan: Plan, samples: Path) -> None:
        """Each sample is also written to the file `samples` at once, for a soak that is interrupted."""
        self._url = url
        self._service = service
        self._redis = redis
        self._plan = plan
        self._samples: list[Sample] = []
        self._file = samples

    async def run(self) -> Report:
        """Return the report before its checks."""
        # Connections are closed before `_idle` samples, so that it counts none of the callers'.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=2)
        timeout = aiohttp.ClientTimeout(total=90)
        plan = self._plan
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as self._session:
            await self._fill_caches()
            callers = Callers(self._url, self._session, plan.seed)
            await callers.run(min(FULL_RATE_S, plan.seconds * FULL_RATE_SHARE))
            warm = callers.tally
            before = await self._idle()
            callers.tally = Tally(scores=warm.scores, wrong=warm.wrong)
            counted_before = await self._counted()
            faults = Faults(self._redis, self._service, plan.seed)
            await self._drive(callers, faults)
            after = await self._idle()
            counted = await self._counted() - counted_before
        return Report(plan, callers.tally, dict(faults.injected), self._samples, before, after, counted)

    async def _drive(self, callers: Callers, faults: Faults) -> None:
        """Send traffic while samples are taken, and while faults are injected if they are planned."""
        beside = [asyncio.create_task(self._sample())]
        if self._plan.faults:
            beside.append(asyncio.create_task(faults.run()))
        await callers.run(self._plan.seconds, self._plan.pace)
        for task in beside:
            task.cancel()
        for ended in await asyncio.gather(*beside, return_exceptions=True):
            if not isinstance(ended, asyncio.CancelledError):
                callers.tally.complain(f"the soak itself failed: {ended!r}")

    async def _fill_caches(self) -> None:
        """Fill what grows up to a bound, so that the samples show only what grows without one.

        Notes of new words fill tokenizers' cache of words (10,000 in each thread that encodes), and use each page of the engine's
        prefix cache once, which takes minutes: only where the run is long enough to judge the engine's memory. Then new note ids
        fill pydantic's cache of strings (16,384); their pairs are cached, so they are fast.
        """
        rng = random.Random(self._plan.seed)
        metrics = await self._metrics()
        [config] = (name for name in metrics if "cache_config_info" in name)
        size = re.search(r'kv_cache_size_tokens="(\d+)"', config)
        computed = 'notegrade_prompt_tokens_total{kind="computed"}'
        until = metrics.get(computed, 0) + (int(size[1]) if size and self._plan.engine_settles else 0)
        notes: list[dict[str, str]] = []
        body: dict[str, Any] = {}
        words = 0
        while words < 20_000 or metrics.get(computed, 0) < until:
            words += 50 * WORDS_OF_A_NOTE
            notes = _notes_of_new_words(rng, 50)
            body = {"query": f"{CANARY} {rng.random()}", "notes": notes, "deadline_ms": 60_000}
            await post_score(self._session, self._url, body)
            metrics = await self._metrics()
        for number in range(1_000):
            renamed = [note | {"id": f"fill-{number}-{index}"} for index, note in enumerate(notes)]
            await post_score(self._session, self._url, body | {"notes": renamed})

    async def _metrics(self) -> dict[str, float]:
        return await read_metrics(self._session, self._url)

    async def _idle(self) -> Sample:
        await asyncio.sleep(8)
        return await self._take_sample(0.0)

    async def _counted(self) -> float:
        """Count the requests by the service's own metric."""
        counted = re.compile(r'notegrade_request_seconds_count(?!.*route="/(metrics|readyz)")')
        return sum(value for name, value in (await self._metrics()).items() if counted.match(name))

    async def _sample(self) -> None:
        started = time.monotonic()
        with self._file.open("w", encoding="utf-8") as file:
            while True:
                await asyncio.sleep(SAMPLE_EVERY_S)
                self._samples.append(await self._take_sample(time.monotonic() - started))
                print(json.dumps(asdict(self._samples[-1])), file=file, flush=True)

    async def _take_sample(self, seconds: float) -> Sample:
        metrics = await self._metrics()
        memory, files = self._service.rss_mib(), self._service.open_files()
        return Sample(seconds, *memory, *files, metrics["notegrade_connections"], metrics["notegrade_tasks"])


def _notes_of_new_words(rng: random.Random, count: int) -> list[dict[str, str]]:
    words = [
        ["".join(rng.choices(string.ascii_lowercase, k=8)) for _ in range(WORDS_OF_A_NOTE)]
        for _ in range(count)
    ]
    return [{"id": str(index), "title": "", "body": " ".join(note)} for index, note in enumerate(words)]


def soak(plan: Plan, checkpoint: Path, redis_server: str, out: Path) -> Report:
    """Run a soak and check it; service.log, samples.jsonl and soak.json are written to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    log = out / "service.log"
    with Redis(redis_server) as redis:
        settings = {**SETTINGS, "NOTEGRADE_REDIS_URL": redis.url}
        peer = Notegrade(load_checkpoint(checkpoint), "default", cached=True, settings=settings)
        with run_server(peer.server(), log) as running:
            service = ServiceProcess(running.pid, redis.port)
            report = asyncio.run(Soak(running.url, service, redis, plan, out / "samples.jsonl").run())
            report.exit_code = service.terminate()
    report.judge(log.read_text(encoding="utf-8", errors="replace"))
    (out / "soak.json").write_text(json.dumps(report.to_json(), indent=1), encoding="utf-8")
    return report


def main() -> None:
    """Read the command line and run."""
    parser = make_parser(
        __doc__,
        seconds=600.0,
        pace=1.0,
        seed=SEED,
        checkpoint=CHECKPOINT,
        redis_server=REDIS,
        out=Path("runs/soak"),
    )
    parser.add_argument("--without-faults", action="store_true")
    options = parser.parse_args()
    plan = Plan(options.seconds, options.seed, not options.without_faults, options.pace)
    report = soak(plan, options.checkpoint, options.redis_server, options.out)
    print(report.to_text())
    sys.exit(bool(report.wrong))


if __name__ == "__main__":
    main()
