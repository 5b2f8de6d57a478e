"""Has a second checkpoint score a sampled share of what was answered, and adds up how the two differ.

Nothing of it is waited for by a request: what finds the queue full is dropped, and what the other service does or fails to do is
counted and told of, no more.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from service.contract.comparison import Comparison, RatioMean
from service.errors import ShadowError
from service.observability.metrics import Metrics, initialize_series
from service.observability.redaction import log_redacted
from service.shadowing.base import Mirrored, Target, TargetAnswer

logger = logging.getLogger(__name__)

WORKERS = 2

Outcome = Literal["compared", "failed", "dropped"]


@dataclass(frozen=True, slots=True)
class ShadowLimits:
    """How much is mirrored.

    Attributes:
        rate: share of requests, 0 to 1.
        queue: most requests that wait to be mirrored.
    """

    rate: float
    queue: int


@dataclass(frozen=True, slots=True)
class _Sums:
    """How two checkpoints differ, and what a pair took in each one's engine."""

    comparison: Comparison
    served_ms: RatioMean = field(default_factory=RatioMean)
    shadow_ms: RatioMean = field(default_factory=RatioMean)


@dataclass(frozen=True, slots=True)
class _Found:
    """All that is known of one checkpoint of the other service."""

    name: str
    fingerprint: str
    since: float
    sums: _Sums


class Shadow:
    """Start it once, close it once. Used from one event loop."""

    def __init__(
        self,
        target: Target,
        grades: int,
        limits: ShadowLimits,
        metrics: Metrics,
        draw: Callable[[], float] = random.random,
        *,
        log_texts: bool = False,
    ) -> None:
        """`grades`: of the scale of the checkpoint that serves; `draw` gives a number from 0 to 1 for each request."""
        self._target = target
        self._grades = grades
        self._limits = limits
        self._metrics = metrics
        self._draw = draw
        self._log_texts = log_texts
        self._queue: asyncio.Queue[Mirrored] = asyncio.Queue(limits.queue)
        self._workers: list[asyncio.Task[None]] = []
        self._counts: dict[Outcome, int] = {"compared": 0, "failed": 0, "dropped": 0}
        self._found: _Found | None = None
        self._is_failing = False
        initialize_series(metrics.shadow_requests, self._counts)

    def start(self) -> None:
        """Begin to mirror."""
        self._workers = [asyncio.create_task(self._work()) for _ in range(WORKERS)]

    async def close(self) -> None:
        """Leave what waits, and let go of the other service."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        await self._target.close()

    def samples(self) -> bool:
        """Whether the request at hand is one to `offer`."""
        return self._draw() < self._limits.rate

    def offer(self, mirrored: Mirrored) -> None:
        """Mirror it when its turn comes; drop it while the queue is full."""
        try:
            self._queue.put_nowait(mirrored)
        except asyncio.QueueFull:
            self._count("dropped")

    def report(self) -> Mapping[str, Any]:
        """What is known of the other service's checkpoint, since it was first seen, as JSON-like data."""
        found = self._found
        sums = found.sums if found else _Sums(Comparison(self._grades))
        return {
            "shadow": {"name": found.name, "fingerprint": found.fingerprint} if found else None,
            "since": found.since if found else None,
            "rate": self._limits.rate,
            "mirrored": dict(self._counts),
            "comparison": sums.comparison.to_json(),
            "engine_ms_per_pair": {"served": sums.served_ms.to_json(), "shadow": sums.shadow_ms.to_json()},
        }

    async def _work(self) -> None:
        while True:
            mirrored = await self._queue.get()
            try:
                self._compare(mirrored, await self._target.score(mirrored))
            except ShadowError as error:
                self._fail(str(error))
            except Exception as error:
                log_redacted(logger, "unforeseen error while shadowing", error, log_texts=self._log_texts)
                self._count("failed")
            else:
                self._is_failing = False
                self._count("compared")

    def _compare(self, mirrored: Mirrored, answer: TargetAnswer) -> None:
        if answer.grades not in (None, self._grades):
            raise ShadowError(
                f"the shadow has {answer.grades} grades, this checkpoint has {self._grades}: they can't be compared"
            )
        sums = self._sums_of(answer)
        both = [
            (note.served, other)
            for note, other in zip(mirrored.notes, answer.notes, strict=True)
            if note.served and other
        ]
        sums.comparison.add([served for served, _ in both], [other for _, other in both])
        for served, other in both:
            self._metrics.shadow_grades.labels(str(served.grade), str(other.grade)).inc()
            self._metrics.shadow_score_distance.observe(abs(other.score - served.score))
        # Of the same pairs, all of them computed by both: a cache tells nothing of what a checkpoint costs.
        if mirrored.engine_ms is not None and answer.engine_ms is not None:
            sums.served_ms.add(mirrored.engine_ms, len(mirrored.notes))
            sums.shadow_ms.add(answer.engine_ms, len(mirrored.notes))

    def _sums_of(self, answer: TargetAnswer) -> _Sums:
        if self._found is None or self._found.fingerprint != answer.fingerprint:
            # Another checkpoint than before: the two are not to be mixed.
            sums = _Sums(Comparison(self._grades))
            self._found = _Found(answer.name, answer.fingerprint, time.time(), sums)
        return self._found.sums

    def _fail(self, why: str) -> None:
        self._count("failed")
        if not self._is_failing:  # not once for each request while it is down: the metric counts them
            logger.warning("shadowing fails", extra={"detail": why})
        self._is_failing = True

    def _count(self, outcome: Outcome) -> None:
        self._counts[outcome] += 1
        self._metrics.shadow_requests.labels(outcome).inc()
