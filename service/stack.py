"""What the application scores with, started and stopped as one."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from service.caches.tiered_cache import TieredCache
from service.contract.checkpoint import Checkpoint
from service.engines.base import Engine
from service.explaining.base import ModeStore, TraceStore
from service.explaining.explanations import Explanations
from service.observability.live import LiveFigures
from service.observability.metrics import Metrics
from service.scoring.readiness import Readiness, bring_up, watch
from service.scoring.scorer import Scorer
from service.shadowing.shadow import Shadow

ENGINE_WATCH_INTERVAL_S = 1.0


@dataclass(frozen=True, slots=True)
class ScoringStack:
    """Everything behind the door. Enter it to bring the engine up in the background; leaving it stops all of it."""

    checkpoint: Checkpoint
    engine: Engine
    cache: TieredCache
    scorer: Scorer
    readiness: Readiness
    metrics: Metrics
    live: LiveFigures
    explanations: Explanations
    stores: tuple[ModeStore, TraceStore]
    shadow: Shadow | None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["asyncio.Task[None]"]:
        """Yields the task that brings the engine up; readiness tells how it ended."""
        self.cache.start()
        self.explanations.start()
        if self.shadow:
            self.shadow.start()
        bringing_up = asyncio.create_task(bring_up(self.engine, self.checkpoint, self.readiness))
        watching = asyncio.create_task(watch(self.engine, self.readiness, ENGINE_WATCH_INTERVAL_S))
        try:
            yield bringing_up
        finally:
            self.readiness.set("draining", "the service is stopping")
            watching.cancel()
            await self.end_work()
            # The engine is told to close first: a load that is under way then ends early, and its task with it.
            await self.engine.close()
            await asyncio.gather(bringing_up, watching, return_exceptions=True)
            await self.cache.close()
            if self.shadow:
                await self.shadow.close()
            for store in self.stores:
                await store.close()

    async def end_work(self) -> None:
        """Have every request answered now: what is not scored yet has failed."""
        await self.explanations.close()
        await self.scorer.close()
