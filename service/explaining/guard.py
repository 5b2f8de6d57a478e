"""Scoring comes first: explanation mode is turned off while scoring is late or piles up."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from service.errors import ExplanationStoreError, ModeConflictError, ModeRefusedError
from service.explaining.mode import GUARD, Flip
from service.explaining.switch import Switch
from service.observability.live import LiveFigures
from service.observability.metrics import Metrics

logger = logging.getLogger(__name__)

CHECK_EVERY_S = 1.0
WINDOW_S = 10
# A percentile of fewer requests is one slow request.
FEWEST_REQUESTS = 20
# One slow second is no breach: three in a row are.
BREACHES_TO_TRIP = 3
# After a breach the mode can't be turned on for so long: otherwise it would go on, breach, and go off for ever.
CALM_S = 60.0


@dataclass(frozen=True, slots=True)
class GuardLimits:
    """What scoring may reach: p99 of online requests over the window, in seconds, and the share of the backlog."""

    p99_s: float
    backlog_share: float = 0.5


class Guard:
    """Looks once a second. Start it once, close it once; `check` is one look."""

    def __init__(
        self,
        switch: Switch,
        live: LiveFigures,
        backlog_share: Callable[[], float],
        limits: GuardLimits,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`backlog_share` tells how much of the largest backlog there is now; `clock` gives monotonic seconds."""
        self._switch = switch
        self._live = live
        self._backlog_share = backlog_share
        self._limits = limits
        self._trips = metrics.explanation_guard_trips
        self._clock = clock
        self._in_a_row = 0
        self._calm_at = clock()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Stop looking."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def is_breached(self) -> bool:
        """Whether the last look found a limit breached: then nothing new is explained."""
        return self._in_a_row > 0

    def require_calm(self) -> None:
        """Raises ModeRefusedError while a limit is breached here, and for CALM_S after that or after any guard's flip."""
        now = self._switch.now
        waits_s = [CALM_S if self.is_breached else self._calm_at - self._clock()]
        if now.last.owner == GUARD:  # on another replica, maybe
            waits_s.append(CALM_S - now.age_s)
        if max(waits_s) > 0:
            when = "is" if self.is_breached else f"was within the last {CALM_S:g} s"
            why = (
                now.last.reason
                if now.last.owner == GUARD
                else f"scoring {when} over its limits: now {self._figures()}"
            )
            raise ModeRefusedError(
                f"{why}. Explanations can be turned on when it has been calm for {CALM_S:g} s", max(waits_s)
            )

    async def check(self) -> None:
        """One look: counts a breach, and at the third in a row turns the mode off."""
        if not self._breached():
            self._in_a_row = 0
            return
        self._in_a_row += 1
        self._calm_at = self._clock() + CALM_S
        if self._in_a_row >= BREACHES_TO_TRIP and self._switch.now.name != "off":
            await self._turn_off()

    async def _turn_off(self) -> None:
        reason = f"scoring is over its limits: {self._figures()}"
        logger.warning("the guard turns explanation mode off", extra={"figures": self._figures()})
        try:
            await self._switch.flip(Flip("off", GUARD, reason), self._switch.now.last.revision)
        except ModeConflictError:
            return  # somebody flipped it meanwhile: the next look sees to what
        except ExplanationStoreError:
            self._switch.turn_off_here()
        self._trips.inc()

    def _breached(self) -> bool:
        found = self._live.over(WINDOW_S)
        late = found.requests >= FEWEST_REQUESTS and (found.p99_s or 0) > self._limits.p99_s
        return late or self._backlog_share() > self._limits.backlog_share

    def _figures(self) -> str:
        found = self._live.over(WINDOW_S)
        p99 = "none" if found.p99_s is None else f"{found.p99_s * 1000:.0f} ms"
        return (
            f"p99 {p99} of {found.requests} requests in {WINDOW_S} s (limit {self._limits.p99_s * 1000:g} ms), "
            f"backlog {self._backlog_share():.0%} of the largest (limit {self._limits.backlog_share:.0%})"
        )

    async def _watch(self) -> None:
        while True:
            await self.check()
            await asyncio.sleep(CHECK_EVERY_S)
