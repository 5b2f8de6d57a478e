"""The interfaces of the stores: one for the mode, one for explanations that are finished after the answer."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Protocol

from service.explaining.mode import Flip, Mode

# The most traces that are kept for one request id: the default limit of notes per request.
MAX_TRACES = 256


@dataclass(frozen=True, slots=True)
class ModeReading:
    """The last flip, how long ago it was and how long it still holds, by the store's clock. `left_s` is None for `off`."""

    mode: Mode
    age_s: float
    left_s: float | None


def read_at(mode: Mode, now: float) -> ModeReading:
    """Read the mode at the moment `now` of the store's clock, in seconds since 1970."""
    return ModeReading(mode, now - mode.since, None if mode.expires is None else mode.expires - now)


class ModeStore(Protocol):
    """Stores one mode for all replicas, and its history. Every call ends in time or raises ExplanationStoreError."""

    async def read(self) -> ModeReading:
        """Return the last flip, even an expired one; NEVER_FLIPPED where there was none."""
        ...

    async def flip(self, flip: Flip, expected_revision: int) -> ModeReading:
        """Flip the mode and append to its history in one step; return the new state.

        Raises ModeConflictError when the last flip does not have the expected revision: then nothing changed. After
        ExplanationStoreError the caller cannot know whether the flip took place.
        """
        ...

    async def history(self, most: int) -> list[Mode]:
        """Return up to `most` of the last flips, newest first. The store forgets the oldest ones and changes none."""
        ...

    async def evicting_policy(self) -> str:
        """Return the store's policy by which it may delete the mode and its history when it is full; empty without one."""
        ...

    def changes(self) -> AsyncGenerator[None]:
        """Yield soon after each flip. This is a hint to read: a message may be lost. Ends with ExplanationStoreError."""
        ...

    async def close(self) -> None:
        """Close the connections; later calls raise ExplanationStoreError. Closing twice is harmless."""
        ...


class TraceStore(Protocol):
    """Stores traces by request id and field. The traces of one request expire together; the oldest requests make room.

    A caller may use one request id again and again, so the oldest traces of a request make room as well.
    """

    async def put(self, request_id: str, traces: Mapping[str, bytes]) -> None:
        """Store the traces; one with the same field is replaced. Raises ExplanationStoreError."""
        ...

    async def get(self, request_id: str) -> dict[str, bytes]:
        """Return the request's traces by field; empty for an unknown request. Raises ExplanationStoreError."""
        ...

    async def close(self) -> None:
        """Close the connections; later calls raise ExplanationStoreError. Closing twice is harmless."""
        ...
