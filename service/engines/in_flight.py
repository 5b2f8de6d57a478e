"""Calls to an engine that is lost end at once, whatever it does with them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from service.errors import EngineLostError


class CallsInFlight:
    """What waits for one engine. Used from one event loop."""

    def __init__(self) -> None:
        self._leashes: set[asyncio.Timeout] = set()
        self._none = asyncio.Event()
        self._none.set()
        self._lost = ""

    def __len__(self) -> int:
        return len(self._leashes)

    def check(self) -> None:
        """Raise EngineLostError once the engine is lost."""
        if self._lost:
            raise EngineLostError(self._lost)

    @asynccontextmanager
    async def until_lost(self) -> AsyncIterator[None]:
        """Around what waits for the engine. Raises EngineLostError when it is lost, before or meanwhile; what waits is cancelled."""
        self.check()
        leash = asyncio.timeout(None)
        try:
            async with leash:
                self._leashes.add(leash)
                self._none.clear()
                yield
        except TimeoutError:
            if not self._lost:
                raise  # of what waited
            raise EngineLostError(self._lost) from None
        finally:
            self._leashes.discard(leash)
            if not self._leashes:
                self._none.set()

    def lose(self, why: str) -> None:
        """Have all calls fail with EngineLostError, now and from now on. The first reason stays."""
        if self._lost:
            return
        self._lost = why
        now = asyncio.get_running_loop().time()
        for leash in self._leashes:
            leash.reschedule(now)

    async def ended(self, within_s: float) -> None:
        """Wait until none is in flight, so long at the most."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._none.wait(), within_s)
