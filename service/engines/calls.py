"""The calls that one engine is working on, which end together when it is lost."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from service.errors import EngineLostError


class EngineCalls:
    """Tracks the calls in one engine, fails all of them when it is lost, and detects that it hangs.

    vLLM notices when its process dies, not when it stops responding. An engine hangs when it had calls and finished
    none during more than `max_silent_checks` consecutive checks. Checks are counted, not seconds: when the whole
    process is suspended for a while, or its clock jumps, that is one check. Used from one event loop.
    """

    def __init__(self, max_silent_checks: int | None = None) -> None:
        """Without `max_silent_checks`, the engine may be silent for any time."""
        self._max_silent_checks = max_silent_checks
        self._silent_checks = 0
        self._timeouts: set[asyncio.Timeout] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._lost = ""

    def __len__(self) -> int:
        return len(self._timeouts)

    def check(self) -> None:
        """Count a check. Raises EngineLostError once the engine is lost or hangs."""
        self._silent_checks = self._silent_checks + 1 if self._timeouts else 0
        if self._max_silent_checks is not None and self._silent_checks > self._max_silent_checks:
            self.lose(
                f"the engine has not responded for {self._silent_checks} checks: the service must be restarted"
            )
        self._raise_if_lost()

    @asynccontextmanager
    async def until_lost(self) -> AsyncIterator[None]:
        """Run the block, which waits for one response of the engine.

        Raises EngineLostError when the engine is lost before or while the block runs; the block is then cancelled.
        """
        self._raise_if_lost()
        timeout = asyncio.timeout(None)
        try:
            async with timeout:
                self._timeouts.add(timeout)
                self._idle.clear()
                yield
                self._silent_checks = 0
        except TimeoutError:
            if not self._lost:
                raise  # a timeout inside the block
            raise EngineLostError(self._lost) from None
        finally:
            self._timeouts.discard(timeout)
            if not self._timeouts:
                self._idle.set()

    def lose(self, reason: str) -> None:
        """Fail all present and future calls with EngineLostError. Only the first reason is kept."""
        if self._lost:
            return
        self._lost = reason
        for timeout in self._timeouts:
            timeout.reschedule(asyncio.get_running_loop().time())

    async def wait_until_idle(self, timeout_s: float) -> None:
        """Wait until no call is in flight, or until the timeout."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_s)

    def _raise_if_lost(self) -> None:
        if self._lost:
            raise EngineLostError(self._lost)
