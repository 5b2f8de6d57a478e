"""The budget that limits explanations to a number of tokens per second."""

from collections.abc import Callable


class TokenBudget:
    """A rate of tokens per second. A job may start while no tokens are owed; it may overdraw, and later jobs wait."""

    def __init__(self, tokens_per_s: float, clock: Callable[[], float]) -> None:
        self._rate = tokens_per_s
        self._clock = clock
        self._left = tokens_per_s
        self._updated_at = clock()

    def spend(self, tokens: int) -> None:
        """Take tokens from the budget, even if they overdraw it."""
        self._left = self._tokens_left() - tokens

    def wait_s(self) -> float:
        """Return the seconds until the budget is no longer overdrawn."""
        return max(0.0, -self._tokens_left() / self._rate)

    def _tokens_left(self) -> float:
        now = self._clock()
        # The budget saves up one second's tokens at most: a quiet hour must not pay for a burst.
        self._left = min(self._rate, self._left + (now - self._updated_at) * self._rate)
        self._updated_at = now
        return self._left
