"""When to try again."""

import random
from dataclasses import dataclass

from notegrade_client.errors import NotegradeError


@dataclass(frozen=True, slots=True)
class Retries:
    """At most so many tries; before each but the first, a pause of up to `first_pause_s`, doubled each time.

    Full jitter (https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/): clients that failed
    together must not come back together. A further try is sent only while `least_left_s` of the call is left: with less,
    the service would have no time to score.
    """

    tries: int = 3
    first_pause_s: float = 0.05
    longest_pause_s: float = 2.0
    least_left_s: float = 0.05

    def pause_s(self, tried: int, error: NotegradeError, left_s: float) -> float | None:
        """How long to wait after so many tries, or None to give up: it is not worth it, or would not be in time."""
        if tried >= self.tries or not error.retryable:
            return None
        jitter_s = random.uniform(0, min(self.longest_pause_s, self.first_pause_s * 2 ** (tried - 1)))
        pause_s = max(error.retry_after_s or 0.0, jitter_s)
        return pause_s if self.worth_a_try(left_s - pause_s) else None

    def worth_a_try(self, left_s: float) -> bool:
        """Whether so little time is enough for one more try."""
        return left_s >= self.least_left_s
