"""Admission by token cost: what can't be worked off is refused at once, not queued."""

import math
from collections.abc import Callable

from service.metrics import Metrics

# How far back the measured rate looks, in seconds of work.
RATE_MEMORY_S = 10.0
RETRY_AFTER_RANGE_S = (1.0, 60.0)


class Admission:
    """The budget of tokens that may be under way at once, and the rate at which they get done."""

    def __init__(self, max_backlog_tokens: int, clock: Callable[[], float], metrics: Metrics) -> None:
        """`clock` gives monotonic seconds."""
        self._max_backlog_tokens = max_backlog_tokens
        self._clock = clock
        self._gauge = metrics.backlog_tokens
        self._backlog_tokens = 0
        self._done_tokens = 0.0
        self._busy_s = 0.0
        self._looked_at = clock()

    @property
    def backlog_tokens(self) -> int:
        """Tokens admitted and not yet released."""
        return self._backlog_tokens

    @property
    def backlog_share(self) -> float:
        """The same as a share of the budget; 0 when idle."""
        return self._backlog_tokens / self._max_backlog_tokens

    def can_admit(self, cost_tokens: int) -> bool:
        """Whether the budget has room. An idle engine admits anything: one huge pair must not starve for ever."""
        return self._backlog_tokens == 0 or self._backlog_tokens + cost_tokens <= self._max_backlog_tokens

    def admit(self, cost_tokens: int) -> None:
        """Take the cost out of the budget; give it back with `release`."""
        self._age()
        self._set_backlog(self._backlog_tokens + cost_tokens)

    def release(self, cost_tokens: int, *, done: bool) -> None:
        """Give the cost back; only work that was `done` (not aborted, not failed) counts for the rate."""
        self._age()
        self._set_backlog(self._backlog_tokens - cost_tokens)
        if done:
            self._done_tokens += cost_tokens

    def retry_after_s(self) -> float:
        """Measured backlog / measured rate, within RETRY_AFTER_RANGE_S; the upper end while nothing is measured."""
        shortest, longest = RETRY_AFTER_RANGE_S
        if not self._done_tokens or not self._busy_s:
            return longest if self._backlog_tokens else shortest
        wait_s = self._backlog_tokens / (self._done_tokens / self._busy_s)
        return min(longest, max(shortest, wait_s))

    def _age(self) -> None:
        # The rate is tokens per *busy* second: idle time says nothing about how fast the engine is.
        now = self._clock()
        elapsed_s, self._looked_at = now - self._looked_at, now
        if self._backlog_tokens and elapsed_s > 0:
            kept = math.exp(-elapsed_s / RATE_MEMORY_S)
            self._done_tokens *= kept
            self._busy_s = self._busy_s * kept + elapsed_s

    def _set_backlog(self, tokens: int) -> None:
        self._backlog_tokens = tokens
        self._gauge.set(tokens)
