"""Sends new pairs to a running service, which no cache can know: as fast as it answers, or in an open loop."""

import json
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from load_tests.bench.drive import Drive, Job, Sent, closed_loop, open_loop, poisson
from load_tests.bench.workloads import Shape, cold
from load_tests.figures import percentile

TIMEOUT_S = 120.0
_CLIENTS = 16


@dataclass
class NewPairs:
    """Endless requests of new notes, and how they are sent.

    Attributes:
        url: of the service. headers: sent with each request.
        notes: notes per request.
    """

    url: str
    seed: int
    notes: int = 1
    deadline_ms: int = 60_000
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        self._traffic = cold(str(self.seed), Shape(self.notes))

    async def measure_capacity(self, seconds: float) -> float:
        """Return scored pairs per second with clients that send the next request after each answer.

        The service is warmed up for a quarter of the time first. Deadlines are as long as the service allows.
        Raises RuntimeError when no pair is scored.
        """
        for each in (seconds / 4, seconds):
            jobs = self._jobs(60_000)
            drive = await closed_loop(self.url, jobs, _CLIENTS, TIMEOUT_S, each, headers=self.headers)
            rate = sum(map(count_scored, drive.sent)) / drive.seconds
        if not rate:
            raise RuntimeError(f"{self.url} scored no pair: {dict(drive.outcomes)}")
        return rate

    async def send(self, pairs_per_s: float, seconds: float) -> Drive:
        """Send requests at Poisson arrivals, and wait for all answers."""
        moments = poisson(str(self._rng.random()), pairs_per_s / self.notes, seconds)
        plan = list(zip(moments, self._jobs(self.deadline_ms), strict=False))
        return await open_loop(self.url, plan, TIMEOUT_S, headers=self.headers)

    def _jobs(self, deadline_ms: int) -> Iterator[Job]:
        for asked in self._traffic:
            yield Job("/score", json.dumps(asked.body(deadline_ms)).encode(), self.notes)


def results_of(sent: Sent) -> list[dict[str, Any]]:
    """Return the results of the pairs; empty for a request without an answer."""
    results: list[dict[str, Any]] = json.loads(sent.answer)["results"] if sent.answer else []
    return results


def count_scored(sent: Sent) -> int:
    """Count the scored pairs of a request."""
    return sum(result["outcome"] == "scored" for result in results_of(sent))


def latency_percentile_ms(sent: Iterable[Sent], percent: float) -> float:
    """Return a percentile of the latencies from the intended send time; NaN of no requests."""
    return 1000 * percentile((each.done_s - each.meant_s for each in sent), percent)
