"""A circuit breaker: after failures in a row, calls are passed over until a trial succeeds."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.errors import CacheUnavailableError


class Breaker:
    """Says whether a call is worth making, from how the last ones went. For one event loop.

    Closed, it admits every call; `failures_to_open` failures in a row open it. Open, it admits one trial at a
    time, `open_for_s` after it opened or a trial failed; a trial that succeeds closes it.
    """

    def __init__(
        self, failures_to_open: int, open_for_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._failures_to_open = failures_to_open
        self._open_for_s = open_for_s
        self._clock = clock
        self._failures_in_a_row = 0
        self._next_trial_at: float | None = None  # None while closed
        self._trial_runs = False

    @property
    def is_open(self) -> bool:
        return self._next_trial_at is not None

    @contextmanager
    def attempt(self) -> Iterator[bool]:
        """Whether to make the call, which is then made in the block.

        A CacheUnavailableError out of the block is a failure and goes on to the caller; its plain end is a
        success; anything else, such as cancellation, says nothing, and frees the place of a trial.
        """
        is_trial = self.is_open
        if self._next_trial_at is not None and (self._trial_runs or self._clock() < self._next_trial_at):
            yield False
            return
        self._trial_runs = is_trial
        try:
            yield True
        except CacheUnavailableError:
            self._record(succeeded=False, is_trial=is_trial)
            raise
        else:
            self._record(succeeded=True, is_trial=is_trial)
        finally:
            if is_trial:
                self._trial_runs = False

    def _record(self, *, succeeded: bool, is_trial: bool) -> None:
        if self.is_open and not is_trial:
            return  # a straggler from before it opened: only the trial decides
        self._failures_in_a_row = 0 if succeeded else self._failures_in_a_row + 1
        if succeeded:
            self._next_trial_at = None
        elif self._failures_in_a_row >= self._failures_to_open:
            self._next_trial_at = self._clock() + self._open_for_s
