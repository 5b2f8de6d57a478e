"""This replica's copy of explanation mode: it follows the store, and expires without it."""

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
from service.observability.background import cancel_and_wait, run_forever
from service.observability.metrics import Metrics

logger = logging.getLogger(__name__)

# Replicas follow a flip within 2 s even when pub/sub loses every message: up to one second to poll, one to answer.
POLL_S = 1.0
# An operator may change the policy of a running Redis.
CHECK_EVICTION_S = 300.0


@dataclass(frozen=True, slots=True)
class ModeNow:
    """The mode that applies on this replica now.

    Attributes:
        name: the mode; `off` once the last flip has expired.
        last: the last flip that this replica knows.
        age_s: time since that flip.
        left_s: time until the mode expires; None where it does not.
        unread_s: how long the store has not answered; None while it answers.
    """

    name: ModeName
    last: Mode
    age_s: float
    left_s: float | None
    unread_s: float | None


class Switch:
    """Follows the mode store, by its messages and by polling every `poll_s`. Start it once, close it once.

    While the store does not answer, the last known mode applies until it expires. After that the mode is `off`:
    a replica that cannot read the mode explains nothing.
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
        self._evicting = ""
        self._hint = asyncio.Event()
        # Without it, a slow read could overwrite the newer mode of a flip that finished meanwhile.
        self._one_call_at_a_time = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        metrics.explanation_mode.follow(get_args(ModeName), lambda: self.now.name)

    def start(self) -> None:
        """Start to follow the store."""
        self._tasks = [
            asyncio.create_task(run_forever("the poll of explanation mode", self._poll)),
            asyncio.create_task(run_forever("the listener for flips", self._listen, every_s=self._poll_s)),
            asyncio.create_task(
                run_forever("the check of eviction", self._check_eviction, every_s=CHECK_EVICTION_S)
            ),
        ]

    async def close(self) -> None:
        """Stop following; the store stays open."""
        await cancel_and_wait(*self._tasks)

    @property
    def now(self) -> ModeNow:
        """Return the mode that applies now, without asking the store."""
        last, left_s = self._reading.mode, self._reading.left_s
        passed_s = self._clock() - self._read_at
        if left_s is not None:
            left_s = max(0.0, left_s - passed_s)
        name: ModeName = "off" if left_s == 0 or last.revision <= self._off_at_revision else last.mode
        unread_s = None if self._failing_since is None else self._clock() - self._failing_since
        age_s = self._reading.age_s + passed_s
        return ModeNow(name, last, age_s, None if name == "off" else left_s, unread_s)

    async def look(self) -> ModeNow:
        """Return the mode that applies, read from the store if that answers; otherwise the last known one."""
        async with self._one_call_at_a_time:
            with contextlib.suppress(ExplanationStoreError):  # logged by _note_failure
                await self._read()
        return self.now

    async def flip(self, flip: Flip, expected_revision: int) -> ModeNow:
        """Flip the mode for all replicas.

        Raises ModeConflictError, and ExplanationStoreError when the store did not answer: the flip may have taken place.
        """
        async with self._one_call_at_a_time:
            try:
                self._accept(await self._store.flip(flip, expected_revision))
            except ExplanationStoreError as error:
                await self._confirm(flip, expected_revision, error)
        return self.now

    def turn_off_here(self) -> None:
        """Turn the mode off on this replica until the next flip, for when the store does not answer."""
        self._off_at_revision = self._reading.mode.revision

    async def history(self, most: int) -> list[Mode]:
        """Return the last flips, newest first. Raises ExplanationStoreError."""
        return await self._store.history(most)

    async def _read(self) -> None:
        try:
            self._accept(await self._store.read())
        except ExplanationStoreError as error:
            self._note_failure(error)
            raise

    async def _confirm(self, flip: Flip, expected_revision: int, failure: ExplanationStoreError) -> None:
        """Read the mode back after a flip that got no answer; return only if that flip took place."""
        with contextlib.suppress(ExplanationStoreError):
            await self._read()
            last = self._reading.mode
            wanted = (expected_revision + 1, flip.mode, flip.owner, flip.reason, flip.rate)
            if (last.revision, last.mode, last.owner, last.reason, last.rate) == wanted:
                return
        # Not even an old mode that was read back proves that nothing happens: the command may still be on its way.
        raise ExplanationStoreError(
            f"{failure}. The flip may have taken place: read the mode again before you repeat it"
        ) from failure

    def _accept(self, reading: ModeReading) -> None:
        before, self._reading, self._read_at = self._reading.mode, reading, self._clock()
        if self._failing_since is not None:
            self._failing_since = None
            logger.info("explanation mode is followed again")
        if reading.mode.revision < self._off_at_revision:
            self._off_at_revision = -1  # the store was emptied, and its revisions start again at 0
        if before != reading.mode:
            last = reading.mode
            # A warning, since Redis may lose its history: the log keeps each flip at all but the highest levels.
            logger.warning(
                "explanation mode changed",
                extra={
                    "mode": last.mode,
                    "rate": last.rate,
                    "left_s": reading.left_s,
                    "owner": last.owner,
                    "reason": last.reason,
                    "revision": last.revision,
                },
            )

    def _note_failure(self, error: ExplanationStoreError) -> None:
        if self._failing_since is None:
            self._failing_since = self._clock()
            logger.warning(
                "explanation mode can't be followed: the last known one applies until it expires",
                extra={"detail": str(error)},
            )

    async def _poll(self) -> None:
        self._hint.clear()
        await self.look()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._poll_s):
                await self._hint.wait()

    async def _listen(self) -> None:
        with contextlib.suppress(ExplanationStoreError):  # the poll goes on, and logs the failure
            async for _ in self._store.changes():
                self._hint.set()

    async def _check_eviction(self) -> None:
        with contextlib.suppress(ExplanationStoreError):  # the poll logs that the store does not answer
            before, self._evicting = self._evicting, await self._store.evicting_policy()
            if self._evicting and self._evicting != before:
                logger.warning(
                    "Redis may delete explanation mode and its history when it is full: set maxmemory-policy to volatile-lru",
                    extra={"maxmemory_policy": self._evicting},
                )
