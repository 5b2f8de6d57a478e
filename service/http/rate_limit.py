"""How many pairs a key may ask for in a time. The only file that imports `limits`."""

import time

from limits import parse
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from service.errors import ConfigurationError, RateLimitedError


class PairsLimiter:
    """A sliding window of counts for each key, in this process: a caller gets that much of every replica."""

    def __init__(self, limit: str) -> None:
        """`limit` as in `600/second` or `20000/5 minutes`. Raises ConfigurationError for anything else."""
        try:
            self._limit = parse(limit)
        except ValueError as error:
            raise ConfigurationError(f"NOTEGRADE_RATE_LIMIT is {limit!r}: write `20000/minute`") from error
        # Bounded by the known keys: who has none is refused before.
        self._windows = SlidingWindowCounterRateLimiter(MemoryStorage())

    async def count(self, key_id: str, pairs: int) -> None:
        """Count them. Raises RateLimitedError, and counts none, when that would be too many."""
        if await self._windows.hit(self._limit, key_id, cost=pairs):
            return
        window = await self._windows.get_window_stats(self._limit, key_id)
        raise RateLimitedError(
            f"this key may ask for {self._limit.amount} pairs in {self._limit.get_expiry()} s here: retry later, "
            "or with fewer notes",
            max(1.0, window.reset_time - time.time()),
        )
