"""The calls that one engine is working on, which end together when it is lost."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from service.errors import EngineError, EngineLostError


class EngineCalls:
    """Tracks the calls in one engine, fails all of them when it is lost, and detects that it hangs.

    vLLM notices when its process dies, not when it stops responding. An engine hangs when it had calls and finished
    none during more than `max_silent_checks` consecutive checks. Checks are counted, not seconds: when the whole
    process is suspended for a while, or its clock jumps, that is one check. Used from one event loop.

    The calls of a slow engine may all be cancelled at their deadlines before it finishes one. So after half of the checks it is
    asked something that has no deadline.
    """

    def __init__(self, ask: Callable[[], Awaitable[object]], max_silent_checks: int | None = None) -> None:
        """Create it for an engine, which `ask` calls. Without `max_silent_checks`, it may be silent for any time."""
        self._ask = ask
        self._asking: asyncio.Task[None] | None = None
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
        if self._max_silent_checks is not None:
            self._suspect(self._max_silent_checks)
        self._raise_if_lost()

    def _suspect(self, max_silent_checks: int) -> None:
        if self._silent_checks > max_silent_checks:
            self.lose(
                f"the engine has not responded for {self._silent_checks} checks: the service must be restarted"
            )
        elif self._silent_checks > max_silent_checks // 2 and (self._asking is None or self._asking.done()):
            # It ends with an answer, or when the engine is lost.
            self._asking = asyncio.create_task(self._hear())

    async def _hear(self) -> None:
        with suppress(EngineError):
            await self._ask()

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
