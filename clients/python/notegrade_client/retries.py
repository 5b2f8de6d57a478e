"""Decide whether and when a call is retried."""

import random
from dataclasses import dataclass

from notegrade_client.errors import NotegradeError


@dataclass(frozen=True, slots=True)
class Retries:
    """Limits the number of tries, and pauses before each retry: for up to `first_pause_s`, doubled each time.

    Pauses are random (full jitter, https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/), so that
    clients that failed together do not retry together. A retry is sent only if `least_left_s` of the call is left, because
    the service would otherwise have no time to score.
    """

    tries: int = 3
    first_pause_s: float = 0.05
    longest_pause_s: float = 2.0
    least_left_s: float = 0.05

    def pause_s(self, tried: int, error: NotegradeError, left_s: float) -> float | None:
        """Return the pause before the next try, or None if the call should fail."""
        if tried >= self.tries or not error.retryable:
            return None
        jitter_s = random.uniform(0, min(self.longest_pause_s, self.first_pause_s * 2 ** (tried - 1)))
        pause_s = max(error.retry_after_s or 0.0, jitter_s)
        return pause_s if self.has_time(left_s - pause_s) else None

    def has_time(self, left_s: float) -> bool:
        """Return whether the remaining time is enough for another try."""
        return left_s >= self.least_left_s
