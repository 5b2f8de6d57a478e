"""The guard puts scoring first: it turns explanation mode off while scoring is slow or its backlog is long."""

import asyncio
import logging
import time
from collections.abc import Callable

from service.errors import ExplanationStoreError, ModeConflictError, ModeRefusedError
from service.explaining.limits import ExplanationLimits
from service.explaining.mode import GUARD, Flip
from service.explaining.switch import Switch
from service.observability.background import cancel_and_wait, run_forever
from service.observability.live import LiveFigures
from service.observability.metrics import Metrics

logger = logging.getLogger(__name__)

CHECK_EVERY_S = 1.0
WINDOW_S = 10
# With fewer requests, one slow request alone would decide the 99th percentile.
FEWEST_REQUESTS = 20
# Breached checks in a row that turn the mode off: one slow second is not an overload.
BREACHES_TO_TRIP = 3
# After a breach the mode cannot be turned on for this long: otherwise it would go on, breach and go off again and again.
CALM_S = 60.0


class Guard:
    """Checks scoring against its limits once a second. Start it once, close it once."""

    def __init__(
        self,
        switch: Switch,
        live: LiveFigures,
        backlog_share: Callable[[], float],
        limits: ExplanationLimits,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`backlog_share` returns the share of the largest backlog in use now; `clock` gives monotonic seconds."""
        self._switch = switch
        self._live = live
        self._backlog_share = backlog_share
        self._limits = limits
        self._trips = metrics.explanation_guard_trips
        self._clock = clock
        self._breaches_in_a_row = 0
        self._calm_at = clock()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start to check."""
        checking = run_forever("the guard of explanation mode", self.check, every_s=CHECK_EVERY_S)
        self._task = asyncio.create_task(checking)

    async def close(self) -> None:
        """Stop checking."""
        if self._task:
            await cancel_and_wait(self._task)

    @property
    def is_breached(self) -> bool:
        """Return whether the last check found a breached limit. During a breach no explanation starts."""
        return self._breaches_in_a_row > 0

    def require_calm(self) -> None:
        """Raise ModeRefusedError during a breach, and for CALM_S after one or after any replica's guard turned the mode off."""
        now = self._switch.now
        waits_s = [CALM_S if self.is_breached else self._calm_at - self._clock()]
        if now.last.owner == GUARD:  # perhaps the guard of another replica
            waits_s.append(CALM_S - now.age_s)
        if max(waits_s) > 0:
            when = "is" if self.is_breached else f"was within the last {CALM_S:g} s"
            why = (
                now.last.reason
                if now.last.owner == GUARD
                else f"scoring {when} over its limits: now {self._figures()}"
            )
            raise ModeRefusedError(
                f"{why}. Explanations can be turned on once scoring has stayed within its limits for {CALM_S:g} s",
                max(waits_s),
            )

    async def check(self) -> None:
        """Check once; turn the mode off at the third breach in a row."""
        if not self._is_over_a_limit():
            self._breaches_in_a_row = 0
            return
        self._breaches_in_a_row += 1
        self._calm_at = self._clock() + CALM_S
        if self._breaches_in_a_row >= BREACHES_TO_TRIP and self._switch.now.name != "off":
            await self._turn_off()

    async def _turn_off(self) -> None:
        reason = f"scoring is over its limits: {self._figures()}"
        logger.warning("the guard turns explanation mode off", extra={"figures": self._figures()})
        try:
            await self._switch.flip(Flip("off", GUARD, reason), self._switch.now.last.revision)
        except ModeConflictError:
            return  # somebody flipped the mode meanwhile: the next check sees the new one
        except ExplanationStoreError:
            self._switch.turn_off_here()
        self._trips.inc()

    def _is_over_a_limit(self) -> bool:
        found = self._live.over(WINDOW_S)
        is_slow = found.requests >= FEWEST_REQUESTS and (found.p99_ms or 0) > self._limits.guard_p99_ms
        return is_slow or self._backlog_share() > self._limits.guard_backlog_share

    def _figures(self) -> str:
        found = self._live.over(WINDOW_S)
        p99 = "none" if found.p99_ms is None else f"{found.p99_ms:.0f} ms"
        return (
            f"p99 {p99} of {found.requests} requests in {WINDOW_S} s (limit {self._limits.guard_p99_ms} ms), "
            f"backlog {self._backlog_share():.0%} of the largest (limit {self._limits.guard_backlog_share:.0%})"
        )
