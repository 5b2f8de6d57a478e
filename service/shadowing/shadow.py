"""Mirrors a sampled share of the answered requests to a second checkpoint, and aggregates how the two differ.

No request waits for it. While the queue is full, requests are not mirrored; failures of the other service are counted and logged.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from service.contract.comparison import Comparison, Graded, RatioMean
from service.contract.manifest import ReadingKind
from service.errors import ShadowError
from service.observability.background import cancel_and_wait, run_forever
from service.observability.metrics import Metrics, initialize_series
from service.shadowing.base import Mirrored, Target, TargetAnswer

logger = logging.getLogger(__name__)

WORKERS = 2

Outcome = Literal["compared", "failed", "dropped"]
_Both = tuple[Graded, Graded]


class ShadowOptions(BaseModel):
    """The settings of the shadow."""

    model_config = ConfigDict(frozen=True)

    shadow_url: str | None = Field(
        None,
        description="Base URL of another Notegrade service to compare with: it is sent a share of the requests after they were answered, with their queries and notes; unset: none",
    )
    shadow_key: SecretStr = Field(
        SecretStr(""), description="Key for that service, with the role `score`; empty if it needs none"
    )
    shadow_rate: float = Field(0.05, gt=0, le=1, description="Share of requests that are sent there")
    shadow_queue: int = Field(
        32, ge=1, description="Most requests that wait to be sent there; further ones are not sent"
    )
    shadow_timeout_ms: int = Field(
        10_000, ge=1, description="Longest wait for its answer, and the deadline of the requests sent there"
    )


@dataclass(frozen=True, slots=True)
class _Compared:
    """The differences from one checkpoint of the other service since it was first seen, and the time of a pair in each engine.

    Attributes:
        by_reading: the same differences by how each service read the note, the serving one first.
    """

    comparison: Comparison
    name: str = ""
    fingerprint: str | None = None
    grading_version: str | None = None
    since: float | None = None
    served_ms: RatioMean = field(default_factory=RatioMean)
    shadow_ms: RatioMean = field(default_factory=RatioMean)
    by_reading: dict[tuple[ReadingKind, ReadingKind], Comparison] = field(default_factory=dict)


class Shadow:
    """Mirrors requests and compares the answers. Start it once, close it once. Used from one event loop."""

    def __init__(
        self,
        target: Target,
        grades: int,
        options: ShadowOptions,
        metrics: Metrics,
        draw: Callable[[], float] = random.random,
        *,
        log_texts: bool = False,
    ) -> None:
        """`grades` is the number of grades of the serving checkpoint; `draw` gives a random number in [0, 1) per request."""
        self._target = target
        self._grades = grades
        self._rate = options.shadow_rate
        self._metrics = metrics
        self._draw = draw
        self._log_texts = log_texts
        self._queue: asyncio.Queue[Mirrored] = asyncio.Queue(options.shadow_queue)
        self._workers: list[asyncio.Task[None]] = []
        self._counts: dict[Outcome, int] = {"compared": 0, "failed": 0, "dropped": 0}
        self._compared = _Compared(Comparison(grades))
        self._is_failing = False
        initialize_series(metrics.shadow_requests, self._counts)

    def start(self) -> None:
        """Start the workers."""
        self._workers = [
            asyncio.create_task(run_forever("a shadow worker", self._mirror_next, log_texts=self._log_texts))
            for _ in range(WORKERS)
        ]

    async def close(self) -> None:
        """Stop the workers and close the connections. Requests that wait are not mirrored."""
        await cancel_and_wait(*self._workers)
        await self._target.close()

    def samples(self) -> bool:
        """Draw whether the next request is to be mirrored with `offer`."""
        return self._draw() < self._rate

    def offer(self, mirrored: Mirrored) -> None:
        """Queue the request to be mirrored; drop it while the queue is full."""
        try:
            self._queue.put_nowait(mirrored)
        except asyncio.QueueFull:
            self._count("dropped")

    def report(self) -> Mapping[str, Any]:
        """Return the comparison with the other service's checkpoint since it was first seen, as JSON-like data."""
        found = self._compared
        versions = {"fingerprint": found.fingerprint, "grading_version": found.grading_version}
        return {
            "shadow": {"name": found.name, **versions} if found.fingerprint else None,
            "since": found.since,
            "rate": self._rate,
            "mirrored": dict(self._counts),
            "comparison": found.comparison.to_json(),
            "by_reading": [
                {"served": served, "shadow": shadow, "comparison": comparison.to_json()}
                for (served, shadow), comparison in sorted(found.by_reading.items())
            ],
            "engine_ms_per_pair": {"served": found.served_ms.to_json(), "shadow": found.shadow_ms.to_json()},
        }

    async def _mirror_next(self) -> None:
        mirrored = await self._queue.get()
        try:
            self._compare(mirrored, await self._target.score(mirrored))
        except Exception as error:
            self._count("failed")
            if not isinstance(error, ShadowError):
                raise
            self._log_failure(str(error))
        else:
            self._is_failing = False
            self._count("compared")

    def _compare(self, mirrored: Mirrored, answer: TargetAnswer) -> None:
        if answer.grades not in (None, self._grades):
            raise ShadowError(
                f"the shadow has {answer.grades} grades and this checkpoint has {self._grades}: they cannot be compared"
            )
        versions = answer.fingerprint, answer.grading_version
        if (self._compared.fingerprint, self._compared.grading_version) != versions:
            # The other service has a new checkpoint: its figures start again.
            self._compared = _Compared(Comparison(self._grades), answer.name, *versions, time.time())
        scored_by_both: list[_Both] = []
        by_reading: dict[tuple[ReadingKind, ReadingKind], list[_Both]] = {}
        for note, other, reading in zip(mirrored.notes, answer.notes, answer.readings, strict=True):
            if note.served and other:
                scored_by_both.append((note.served, other))
                by_reading.setdefault((note.reading, reading), []).append((note.served, other))
        _add(self._compared.comparison, scored_by_both)
        for readings, both in by_reading.items():
            _add(self._compared.by_reading.setdefault(readings, Comparison(self._grades)), both)
        for served, other in scored_by_both:
            self._metrics.shadow_grades.labels(str(served.grade), str(other.grade)).inc()
            self._metrics.shadow_score_distance.observe(abs(other.score - served.score))
        # Only requests that both computed in full: an answer from a cache does not show what a checkpoint costs.
        if mirrored.engine_ms is not None and answer.engine_ms is not None:
            self._compared.served_ms.add(mirrored.engine_ms, len(mirrored.notes))
            self._compared.shadow_ms.add(answer.engine_ms, len(mirrored.notes))

    def _log_failure(self, why: str) -> None:
        if not self._is_failing:  # once per outage: the metric counts every failed request
            logger.warning("shadowing fails", extra={"detail": why})
        self._is_failing = True

    def _count(self, outcome: Outcome) -> None:
        self._counts[outcome] += 1
        self._metrics.shadow_requests.labels(outcome).inc()


def _add(comparison: Comparison, both: Sequence[_Both]) -> None:
    comparison.add([served for served, _ in both], [other for _, other in both])
