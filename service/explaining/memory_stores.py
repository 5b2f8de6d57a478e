"""In-memory stores of explanation mode, for a single replica without Redis and for tests."""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping

from cachetools import TTLCache

from service.errors import ExplanationStoreError
from service.explaining.base import MAX_TRACES, ModeReading
from service.explaining.mode import NEVER_FLIPPED, Flip, Mode, conflict


class MemoryModeStore:
    """Keeps the mode in this process: after a restart it is `off`."""

    def __init__(
        self,
        max_history: int = 1000,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock` gives monotonic seconds and decides when the mode expires; `wall_clock` gives the seconds since 1970 that people see."""
        self._clock = clock
        self._wall_clock = wall_clock
        self._flipped_at = -math.inf
        self._ends_at: float | None = None
        self._history: deque[Mode] = deque(maxlen=max_history)
        self._changed = asyncio.Condition()
        self._closed = False

    async def read(self) -> ModeReading:
        self._check_open()
        mode = self._history[-1] if self._history else NEVER_FLIPPED
        # Not computed from `since` and `expires`: the wall clock may have leapt meanwhile.
        now = self._clock()
        return ModeReading(
            mode, now - self._flipped_at, None if self._ends_at is None else self._ends_at - now
        )

    async def flip(self, flip: Flip, expected_revision: int) -> ModeReading:
        before = (await self.read()).mode
        if before.revision != expected_revision:
            raise conflict(before, expected_revision)
        self._flipped_at = self._clock()
        self._ends_at = None if flip.ttl_s is None else self._flipped_at + flip.ttl_s
        since = self._wall_clock()
        expires = None if flip.ttl_s is None else since + flip.ttl_s
        self._history.append(
            Mode(before.revision + 1, flip.mode, flip.owner, flip.reason, since, expires, flip.rate)
        )
        async with self._changed:
            self._changed.notify_all()
        return await self.read()

    async def history(self, most: int) -> list[Mode]:
        self._check_open()
        return list(reversed(self._history))[:most]

    async def evicting_policy(self) -> str:
        self._check_open()
        return ""

    async def changes(self) -> AsyncGenerator[None]:
        while True:
            async with self._changed:
                self._check_open()
                await self._changed.wait()
            yield

    async def close(self) -> None:
        self._closed = True
        async with self._changed:
            self._changed.notify_all()

    def _check_open(self) -> None:
        if self._closed:
            raise ExplanationStoreError("the mode store is closed")


class MemoryTraceStore:
    """Keeps up to `max_traces` traces for each of up to `max_requests` requests, until `ttl_s` after a request's last trace."""

    def __init__(
        self,
        ttl_s: float,
        max_requests: int,
        clock: Callable[[], float] = time.monotonic,
        max_traces: int = MAX_TRACES,
    ) -> None:
        self._requests: TTLCache[str, dict[str, bytes]] = TTLCache(max_requests, ttl_s, clock)
        self._max_traces = max_traces
        self._closed = False

    async def put(self, request_id: str, traces: Mapping[str, bytes]) -> None:
        self._check_open()
        if not traces:
            return
        # Removed first, here and below: a replaced entry keeps its old place and would make room before older ones.
        kept = self._requests.pop(request_id, {})
        for field, trace in traces.items():
            kept.pop(field, None)
            kept[field] = trace
        for field in list(kept)[: max(0, len(kept) - self._max_traces)]:
            del kept[field]
        self._requests[request_id] = kept

    async def get(self, request_id: str) -> dict[str, bytes]:
        self._check_open()
        return dict(self._requests.get(request_id, {}))

    async def close(self) -> None:
        self._closed = True
        self._requests.clear()

    def _check_open(self) -> None:
        if self._closed:
            raise ExplanationStoreError("the trace store is closed")
