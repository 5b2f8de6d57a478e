"""The cache in Redis: each query key is a hash, each note key is one of its fields, and the whole hash expires."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, cast

from service.caches.base import CacheEntries
from service.caches.redis_connection import RedisConnection
from service.errors import CacheUnavailableError

# One script a call, in one slot of a cluster, where redis-py has no transactions that keep the event loop free.
# Lua can't unpack 8,000 values at once. Comments are out here, as the text is sent with each call.
# KEYS: the query. ARGV: the notes. Returns the time left in ms, and the values.
# A value that is not ours goes: every lookup of its query would fail, and enough of them would open the breaker.
_GET = """
local values = {}
for first = 1, #ARGV, 4000 do
    local found = redis.pcall('HMGET', KEYS[1], unpack(ARGV, first, math.min(first + 3999, #ARGV)))
    if found.err then
        if not found.err:find('^WRONGTYPE') then return found end
        redis.call('UNLINK', KEYS[1])
        return {-2, {}}
    end
    for _, value in ipairs(found) do values[#values + 1] = value end
end
return {redis.call('PTTL', KEYS[1]), values}
"""

# KEYS: the query. ARGV: time to live in ms, notes and values.
# A script, because a connection lost between the commands would leave a hash that never expires.
_PUT = """
for first = 2, #ARGV, 4000 do
    redis.call('HSET', KEYS[1], unpack(ARGV, first, math.min(first + 3999, #ARGV)))
end
if redis.call('PTTL', KEYS[1]) < 0 then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
"""


class RedisCache:
    """A cache that all replicas share. Each call has a timeout and is not retried: the breaker decides about that.

    Raises ConfigurationError for an invalid URL.
    """

    def __init__(
        self, url: str, ttl_s: float, timeout_s: float, max_connections: int = 64, *, cluster: bool = False
    ) -> None:
        self._ttl_ms = max(1, round(ttl_s * 1000))
        self._connection = RedisConnection(
            url, timeout_s, max_connections, CacheUnavailableError, cluster=cluster
        )

    async def get_many(self, query_key: str, note_keys: Sequence[bytes]) -> CacheEntries:
        async with self._connection.call() as redis:
            if not note_keys:
                return CacheEntries([], self._ttl_ms / 1000)
            left_ms, values = await cast("Any", redis.eval(_GET, 1, query_key, *note_keys))
        # Negative: there is no hash.
        remaining_ms = left_ms if 0 <= left_ms < self._ttl_ms else self._ttl_ms
        return CacheEntries(values or [None] * len(note_keys), remaining_ms / 1000)

    async def put_many(self, query_key: str, entries: Mapping[bytes, bytes]) -> None:
        async with self._connection.call() as redis:
            if entries:
                arguments = chain.from_iterable(entries.items())
                await cast("Any", redis.eval(_PUT, 1, query_key, str(self._ttl_ms), *arguments))

    async def ping(self) -> None:
        await self._connection.ping()

    async def close(self) -> None:
        await self._connection.close()
