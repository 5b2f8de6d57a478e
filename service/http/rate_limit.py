"""Limit how many pairs a key may ask for in a period. The only file that imports `limits`."""

import time

from limits import parse_many
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from service.errors import BadField, ConfigurationError, InvalidRequestError, RateLimitedError


class PairsLimiter:
    """Counts each key's pairs in a sliding window of this process: each replica allows a caller this much."""

    def __init__(self, limit: str) -> None:
        """Take a limit such as `600/second` or `20000/5 minutes`. Raises ConfigurationError for anything else."""
        try:
            [self._limit] = parse_many(limit)
            if self._limit.amount < 1:
                raise ValueError(limit)
        except ValueError as error:
            raise ConfigurationError(
                f"NOTEGRADE_RATE_LIMIT is {limit!r}: write for example `20000/minute`"
            ) from error
        # Its size is bounded by the number of known keys: requests without one are refused before.
        self._windows = SlidingWindowCounterRateLimiter(MemoryStorage())

    async def count(self, key_id: str, pairs: int) -> None:
        """Count the pairs. Raises RateLimitedError, and counts none, if they would exceed the limit.

        Raises InvalidRequestError if they exceed it alone, so that to retry would never help.
        """
        if pairs > self._limit.amount:
            message = f"this key may ask for at most {self._limit.amount:,} pairs at once: send fewer notes"
            raise InvalidRequestError(message, [BadField("notes", message)])
        if await self._windows.hit(self._limit, key_id, cost=pairs):
            return
        window = await self._windows.get_window_stats(self._limit, key_id)
        raise RateLimitedError(
            f"this key may ask for {self._limit.amount} pairs in {self._limit.get_expiry()} s here: retry later, "
            "or with fewer notes",
            max(1.0, window.reset_time - time.time()),
        )
