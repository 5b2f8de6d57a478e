"""The interfaces of the store of note vectors and of the encoder that makes them."""

from collections.abc import Mapping, Sequence
from typing import Protocol


class VectorStore(Protocol):
    """Stores bytes by key.

    An entry may disappear at any time. It lives at most the store's `ttl_s`, which starts anew at each put, not at a read.
    Every call returns within the store's own timeout or raises CacheUnavailableError. Cancelling a call leaves the store
    usable; a cancelled put may or may not have stored its entries.
    """

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the value of each key in order, None where there is none. Takes one round trip."""
        ...

    async def put_many(self, entries: Mapping[bytes, bytes]) -> None:
        """Store the entries and replace older ones. An empty mapping does nothing."""
        ...

    async def ping(self) -> None:
        """Return if the store answers, else raise CacheUnavailableError."""
        ...

    async def close(self) -> None:
        """Release connections and memory; later calls raise CacheUnavailableError. Closing twice is allowed."""
        ...


class NoteEncoder(Protocol):
    """Makes the vectors of notes. It is used from one event loop."""

    async def start(self) -> bool:
        """Load the model, unless it is loaded, and return whether it was loaded now; load it again after the encoder was lost.

        Raises EncoderError when it can't be loaded, or was lost too often.
        """
        ...

    async def encode(self, notes: Sequence[tuple[int, ...]]) -> list[bytes]:
        """Return the rows of each note's vectors, as in `NoteVectors`, from its token ids.

        Raises EncoderError when the encoder fails on these notes, does not run, or is lost meanwhile. A cancelled call
        may end the encoder: call `start` again.
        """
        ...

    async def close(self) -> None:
        """Stop the encoder; calls in flight fail with EncoderError. Closing twice is allowed."""
        ...
