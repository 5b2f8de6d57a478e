"""One call in flight per key: whoever asks for a pair that is being scored joins it."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Flight(Generic[K, V]):
    """A call in flight and how many wait on it.

    Join it through SingleFlight; await `task` through `asyncio.wait`, which never cancels it, and call
    `leave` exactly once. When the last one leaves an unfinished call, it is cancelled.
    """

    def __init__(self, key: K, task: "asyncio.Task[V]", forget: Callable[["Flight[K, V]"], None]) -> None:
        self.key = key
        self.task = task
        self._forget = forget
        # Touched on the event loop only, and never across an await: it needs no lock.
        self._waiters = 0
        self._claimed = False

    def claim(self) -> bool:
        """Whether the caller is the first to claim the result: one sharer does what must be done once."""
        first, self._claimed = not self._claimed, True
        return first

    def join(self) -> None:
        """Count one more waiter."""
        self._waiters += 1

    def leave(self) -> None:
        """Count one waiter less; cancel the call when nobody waits on it any more."""
        self._waiters -= 1
        if self._waiters == 0 and not self.task.done():
            # Forgotten at once: who asks from here on must not join a call that is being cancelled.
            self._forget(self)
            self.task.cancel()


class SingleFlight(Generic[K, V]):
    """The calls in flight, by key. A call is forgotten when it is done, whatever its result."""

    def __init__(self) -> None:
        self._flights: dict[K, Flight[K, V]] = {}
        # Cancelled calls are forgotten before they end; the loop alone would hold them weakly.
        self._tasks: set[asyncio.Task[V]] = set()

    def join(self, key: K) -> Flight[K, V] | None:
        """Join the call in flight for the key, or None when there is none."""
        flight = self._flights.get(key)
        if flight is not None:
            flight.join()
        return flight

    def start(self, key: K, call: Coroutine[Any, Any, V]) -> Flight[K, V]:
        """Start a call and join it. Every sharer sees its one result; the call should return failures, not raise."""
        task = asyncio.create_task(call)
        flight = Flight(key, task, self._forget)
        flight.join()
        self._flights[key] = flight
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._finish(flight, done))
        return flight

    async def close(self) -> None:
        """Cancel every call and wait until all have ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def __len__(self) -> int:
        return len(self._flights)

    def _finish(self, flight: Flight[K, V], task: "asyncio.Task[V]") -> None:
        self._tasks.discard(task)
        self._forget(flight)

    def _forget(self, flight: Flight[K, V]) -> None:
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
