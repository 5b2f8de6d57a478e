"""The cache port."""

from collections.abc import Mapping, Sequence
from typing import Protocol


class Cache(Protocol):
    """Bytes by (query key, note key); entries of one query live and expire together.

    An entry may vanish at any time and lives at most the cache's `ttl_s`, counted from the first entry put
    under its query key: later puts never prolong it. Every call either answers within the cache's own timeout
    or raises CacheUnavailableError. Cancelling a call leaves the cache usable; a cancelled put may or may not
    have stored its entries.
    """

    async def get_many(self, query_key: str, note_keys: Sequence[bytes]) -> list[bytes | None]:
        """The value of each note key in order, None where there is none. One round trip."""
        ...

    async def put_many(self, query_key: str, entries: Mapping[bytes, bytes]) -> None:
        """Store the entries, over older ones. An empty mapping does nothing."""
        ...

    async def ping(self) -> None:
        """Return if the cache answers."""
        ...

    async def close(self) -> None:
        """Give up connections and memory; later calls raise CacheUnavailableError. Closing twice is fine."""
        ...
