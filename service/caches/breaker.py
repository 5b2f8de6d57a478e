"""A circuit breaker: after consecutive failures, calls are skipped until a trial call succeeds."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.errors import CacheUnavailableError


class Breaker:
    """Decides whether to make a call from the results of the previous ones. Used from one event loop.

    While closed it admits every call; `failures_to_open` consecutive failures open it. While open it admits one
    trial call at a time, `open_for_s` after it opened or after the previous trial failed; a successful trial closes it.
    """

    def __init__(
        self, failures_to_open: int, open_for_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._failures_to_open = failures_to_open
        self._open_for_s = open_for_s
        self._clock = clock
        self._consecutive_failures = 0
        self._next_trial_at: float | None = None  # None while closed
        self._is_trial_running = False

    @property
    def is_open(self) -> bool:
        return self._next_trial_at is not None

    @contextmanager
    def attempt(self) -> Iterator[bool]:
        """Yield whether the block may make the call.

        A CacheUnavailableError raised in the block counts as a failure and is re-raised; a block that ends normally
        counts as a success. Anything else, such as cancellation, counts as neither and lets another trial start.
        """
        is_trial = self.is_open
        if self._next_trial_at is not None and (
            self._is_trial_running or self._clock() < self._next_trial_at
        ):
            yield False
            return
        self._is_trial_running = is_trial
        try:
            yield True
        except CacheUnavailableError:
            self._record(succeeded=False, is_trial=is_trial)
            raise
        else:
            self._record(succeeded=True, is_trial=is_trial)
        finally:
            if is_trial:
                self._is_trial_running = False

    def _record(self, *, succeeded: bool, is_trial: bool) -> None:
        if self.is_open and not is_trial:
            return  # the call began before the breaker opened: only a trial decides
        self._consecutive_failures = 0 if succeeded else self._consecutive_failures + 1
        if succeeded:
            self._next_trial_at = None
        elif self._consecutive_failures >= self._failures_to_open:
            self._next_trial_at = self._clock() + self._open_for_s
