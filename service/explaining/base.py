"""The ports of explanation mode: where the mode lives, and where traces made after the answer are kept."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Protocol

from service.explaining.mode import Flip, Mode

# Most traces that are kept of one request id: as many as a request may have notes by default.
MAX_TRACES = 256


@dataclass(frozen=True, slots=True)
class ModeReading:
    """The last flip, and by the store's clock how long ago it was and how long it still holds (None: it has no end)."""

    mode: Mode
    age_s: float
    left_s: float | None


def read_at(mode: Mode, now: float) -> ModeReading:
    """The mode as it stands at that moment of the store's clock, in seconds since 1970."""
    return ModeReading(mode, now - mode.since, None if mode.expires is None else mode.expires - now)


class ModeStore(Protocol):
    """One mode for all replicas, with its history. Every call ends in time or raises ExplanationStoreError."""

    async def read(self) -> ModeReading:
        """The last flip, an expired one too; NEVER_FLIPPED where there was none."""
        ...

    async def flip(self, flip: Flip, expected_revision: int) -> ModeReading:
        """Flip and append to the history, as one step; what there is now.

        Raises ModeConflictError when the last flip's revision is not the expected one.
        """
        ...

    async def history(self, most: int) -> list[Mode]:
        """The last flips, newest first. Older ones than the store keeps are gone; none ever changes."""
        ...

    def changes(self) -> AsyncGenerator[None]:
        """Yields soon after each flip, maybe never: a hint to read, no promise. Ends with ExplanationStoreError."""
        ...

    async def close(self) -> None:
        """Give up connections; later calls raise ExplanationStoreError. Closing twice is fine."""
        ...


class TraceStore(Protocol):
    """Traces by request id, one a field; all of a request expire together, and the oldest requests make room.

    So do the oldest traces of a request that has too many: callers may use an id again, and it would never end.
    """

    async def put(self, request_id: str, traces: Mapping[str, bytes]) -> None:
        """Store the traces, over older ones of the same field. Raises ExplanationStoreError."""
        ...

    async def get(self, request_id: str) -> dict[str, bytes]:
        """The traces of the request by field; none where it is not known. Raises ExplanationStoreError."""
        ...

    async def close(self) -> None:
        """As for ModeStore."""
        ...
