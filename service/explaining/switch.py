"""This replica's copy of explanation mode: follows the store, and ends by itself."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

from service.errors import ExplanationStoreError
from service.explaining.base import ModeReading, ModeStore, read_at
from service.explaining.mode import NEVER_FLIPPED, Flip, Mode, ModeName
from service.observability.metrics import Metrics

logger = logging.getLogger(__name__)

# Replicas follow within 2 s even when every message of pub/sub is lost: one second to look, one to be told.
POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class ModeNow:
    """What applies on this replica at this moment.

    Attributes:
        name: the mode that applies; `off` where the last flip's time is over.
        last: the last flip that this replica knows of.
        age_s: how long ago it was.
        left_s: how long the mode still holds; None where it has no end.
        unread_s: how long the store hasn't answered; None while it answers.
    """

    name: ModeName
    last: Mode
    age_s: float
    left_s: float | None
    unread_s: float | None


class Switch:
    """Follows the store by its messages, and by looking every `poll_s`. Start it once, close it once.

    While the store doesn't answer, the copy holds until its time is over. It then is `off`: a replica that
    knows nothing explains nothing.
    """

    def __init__(
        self,
        store: ModeStore,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        poll_s: float = POLL_S,
    ) -> None:
        """`clock` gives monotonic seconds."""
        self._store = store
        self._clock = clock
        self._poll_s = poll_s
        self._reading = read_at(NEVER_FLIPPED, 0.0)
        self._read_at = clock()
        self._failing_since: float | None = None
        self._off_at_revision = -1
        self._hint = asyncio.Event()
        # A slow look must not put an older mode over the one that a flip has just brought.
        self._one_at_a_time = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        metrics.explanation_mode.follow(get_args(ModeName), lambda: self.now.name)

    def start(self) -> None:
        """Begin to follow the store."""
        self._tasks = [asyncio.create_task(self._look()), asyncio.create_task(self._listen())]

    async def close(self) -> None:
        """Stop following; the store stays open."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def now(self) -> ModeNow:
        """What applies now."""
        last, left_s = self._reading.mode, self._reading.left_s
        passed_s = self._clock() - self._read_at
        if left_s is not None:
            left_s = max(0.0, left_s - passed_s)
        name: ModeName = "off" if left_s == 0 or last.revision <= self._off_at_revision else last.mode
        unread_s = None if self._failing_since is None else self._clock() - self._failing_since
        age_s = self._reading.age_s + passed_s
        return ModeNow(name, last, age_s, None if name == "off" else left_s, unread_s)

    async def look(self) -> ModeNow:
        """Read the store. Raises ExplanationStoreError."""
        async with self._one_at_a_time:
            try:
                self._take(await self._store.read())
            except ExplanationStoreError as error:
                self._fail(error)
                raise
        return self.now

    async def flip(self, flip: Flip, expected_revision: int) -> ModeNow:
        """Flip it for all replicas. Raises ModeConflictError, ExplanationStoreError."""
        async with self._one_at_a_time:
            self._take(await self._store.flip(flip, expected_revision))
        return self.now

    def turn_off_here(self) -> None:
        """Off on this replica until the next flip: for when the store can't be told."""
        self._off_at_revision = self._reading.mode.revision

    async def history(self, most: int) -> list[Mode]:
        """The last flips, newest first. Raises ExplanationStoreError."""
        return await self._store.history(most)

    def _take(self, reading: ModeReading) -> None:
        before, self._reading, self._read_at = self._reading.mode, reading, self._clock()
        if self._failing_since is not None:
            self._failing_since = None
            logger.info("explanation mode is followed again")
        if reading.mode.revision < self._off_at_revision:
            self._off_at_revision = -1  # the store was emptied, and counts from the start again
        if before != reading.mode:
            last = reading.mode
            logger.info(
                "explanation mode", extra={"mode": last.mode, "owner": last.owner, "revision": last.revision}
            )

    def _fail(self, error: ExplanationStoreError) -> None:
        if self._failing_since is None:
            self._failing_since = self._clock()
            logger.warning(
                "explanation mode can't be followed: the last one known holds until its time is over",
                extra={"detail": str(error)},
            )

    async def _look(self) -> None:
        while True:
            self._hint.clear()
            with contextlib.suppress(ExplanationStoreError):  # told by _fail
                await self.look()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._poll_s):
                    await self._hint.wait()

    async def _listen(self) -> None:
        while True:
            with contextlib.suppress(ExplanationStoreError):  # looking goes on, and tells
                async for _ in self._store.changes():
                    self._hint.set()
            await asyncio.sleep(self._poll_s)
