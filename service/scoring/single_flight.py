"""Keeps one call in flight per key: a request for a pair that is being scored joins that call."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from service.observability.background import cancel_and_wait

K = TypeVar("K")
V = TypeVar("V")


class Flight(Generic[K, V]):
    """A call in flight, with the number of requests that are attached to it.

    Join it through SingleFlight, await `task` through `asyncio.wait`, which never cancels it, and call `detach`
    exactly once. When the last request detaches before the call is done, the call is cancelled.
    """

    def __init__(self, key: K, task: "asyncio.Task[V]", forget: Callable[["Flight[K, V]"], None]) -> None:
        self.key = key
        self.task = task
        self._forget = forget
        # These change only on the event loop, and never across an await: they need no lock.
        self.attached = 1
        self._claimed = False

    def claim(self) -> bool:
        """Return whether the caller is the first to claim the result, for work that only one request must do."""
        first, self._claimed = not self._claimed, True
        return first

    def detach(self) -> None:
        """Detach one request, and cancel the call when no request is attached to it any more."""
        self.attached -= 1
        if self.attached == 0 and not self.task.done():
            # Forgotten at once: later requests must not join a call that is being cancelled.
            self._forget(self)
            self.task.cancel()


class SingleFlight(Generic[K, V]):
    """Holds the calls in flight by key. It forgets a call when the call is done, whatever its result."""

    def __init__(self) -> None:
        self._flights: dict[K, Flight[K, V]] = {}
        # Cancelled calls are forgotten before they end, and the event loop holds tasks only weakly.
        self._tasks: set[asyncio.Task[V]] = set()

    def join(self, key: K) -> Flight[K, V] | None:
        """Join the call in flight for the key. Returns None when there is none."""
        flight = self._flights.get(key)
        if flight is not None:
            flight.attached += 1
        return flight

    def start(self, key: K, call: Coroutine[Any, Any, V]) -> Flight[K, V]:
        """Start a call and join it. Every attached request reads its result; the call should return errors, not raise."""
        task = asyncio.create_task(call)
        flight = Flight(key, task, self._forget)
        self._flights[key] = flight
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._finish(flight, done))
        return flight

    async def close(self) -> None:
        """Cancel every call and wait until all of them have ended."""
        await cancel_and_wait(*self._tasks)

    def __len__(self) -> int:
        return len(self._flights)

    def _finish(self, flight: Flight[K, V], task: "asyncio.Task[V]") -> None:
        self._tasks.discard(task)
        self._forget(flight)

    def _forget(self, flight: Flight[K, V]) -> None:
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
