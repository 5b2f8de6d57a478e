"""The interface of every cache."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol


class CacheEntries(NamedTuple):
    """The value of each requested note, None where there is none, and how long they may still be kept."""

    values: list[bytes | None]
    remaining_s: float


class Cache(Protocol):
    """Stores bytes by query key and note key; the entries of one query expire together.

    An entry may disappear at any time. It lives at most the cache's `ttl_s`, counted from the first entry that
    was put under its query key: later puts never prolong it. Every call returns within the cache's own timeout
    or raises CacheUnavailableError. Cancelling a call leaves the cache usable; a cancelled put may or may not
    have stored its entries.
    """

    async def get_many(self, query_key: str, note_keys: Sequence[bytes]) -> CacheEntries:
        """Return the value of each note key in order, and the time that is left to them. Takes one round trip.

        The time is never longer than the cache's `ttl_s`.
        """
        ...

    async def put_many(self, query_key: str, entries: Mapping[bytes, bytes]) -> None:
        """Store the entries and replace older ones. An empty mapping does nothing."""
        ...

    async def ping(self) -> None:
        """Return if the cache answers, else raise CacheUnavailableError."""
        ...

    async def close(self) -> None:
        """Release connections and memory; later calls raise CacheUnavailableError. Closing twice is allowed."""
        ...
