"""Explanation mode in Redis, shared by all replicas. All times are Redis's: the clocks of replicas may differ."""

import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, cast, get_args

from service.caches.redis_connection import RedisConnection
from service.errors import ExplanationStoreError
from service.explaining.base import MAX_TRACES, ModeReading, read_at
from service.explaining.mode import NEVER_FLIPPED, Flip, Mode, ModeName, conflict

# The braces are a Redis Cluster hash tag: all keys of one script are in one slot.
_MODE_KEY, _HISTORY_KEY, _CHANNEL = "ng:{mode}", "ng:{mode}:history", "ng:{mode}:changes"
_TRACES_KEY, _ORDER_KEY, _TRACES_INDEX = "ng:{traces}:", "ng:{traces}order:", "ng:{traces}"

# KEYS: mode, here and below so that a cluster asks the node that has it. Returns the time and the mode.
_READ = "return {redis.call('TIME'), redis.call('HGETALL', KEYS[1])}"

# Returns the policy by which a full Redis may delete the mode, else an empty text.
_EVICTING_POLICY = """
local memory = redis.call('INFO', 'memory')
if memory:match('maxmemory:(%d+)') == '0' then return '' end
return memory:match('maxmemory_policy:(allkeys%S+)') or ''
"""

# KEYS: mode, history. ARGV: expected revision, time to live in ms or "", channel, longest history, fields and values.
# Returns whether it flipped, the time, and the mode as it is now: a second call to read it could fail after the flip.
_FLIP = """
local time = redis.call('TIME')
local revision = tonumber(redis.call('HGET', KEYS[1], 'revision') or '0')
if revision ~= tonumber(ARGV[1]) then return {0, time, redis.call('HGETALL', KEYS[1])} end
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local fields = {'revision', string.format('%d', revision + 1), 'since_ms', string.format('%.0f', now_ms)}
if ARGV[2] ~= '' then
    fields[#fields + 1] = 'expires_ms'
    fields[#fields + 1] = string.format('%.0f', now_ms + tonumber(ARGV[2]))
end
for i = 5, #ARGV do fields[#fields + 1] = ARGV[i] end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], unpack(fields))
redis.call('XADD', KEYS[2], 'MAXLEN', ARGV[4], '*', unpack(fields))
redis.call('PUBLISH', ARGV[3], revision + 1)
return {1, time, redis.call('HGETALL', KEYS[1])}
"""

# KEYS: this request's traces, their order, the index. ARGV: time to live in ms, most requests, most traces of one request,
# request id, prefixes of the first two keys, fields and values.
_PUT_TRACES = """
-- Ordered by a counter, not by the time: after a clock leaps back, the newest entry would be taken for the oldest.
local function put_last(key, member)
    local last = redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')
    redis.call('ZADD', key, (last[2] or 0) + 1, member)
end
local function take_oldest(key, most)
    local over = redis.call('ZCARD', key) - tonumber(most)
    if over <= 0 then return {} end
    local oldest = redis.call('ZRANGE', key, 0, over - 1)
    redis.call('ZREMRANGEBYRANK', key, 0, over - 1)
    return oldest
end
for i = 7, #ARGV, 2 do
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
    put_last(KEYS[2], ARGV[i])
end
for _, field in ipairs(take_oldest(KEYS[2], ARGV[3])) do redis.call('HDEL', KEYS[1], field) end
put_last(KEYS[3], ARGV[4])
for _, id in ipairs(take_oldest(KEYS[3], ARGV[2])) do redis.call('DEL', ARGV[5] .. id, ARGV[6] .. id) end
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[1]) end
"""


class RedisModeStore:
    """Keeps the mode in a hash and its history in a stream. A script flips it, and pub/sub announces each flip."""

    def __init__(self, connection: RedisConnection, max_history: int = 1000) -> None:
        self._connection = connection
        self._max_history = max_history

    async def read(self) -> ModeReading:
        async with self._connection.call() as redis:
            time, fields = await cast("Any", redis.eval(_READ, 1, _MODE_KEY))
        return _to_reading(fields, time)

    async def flip(self, flip: Flip, expected_revision: int) -> ModeReading:
        fields: dict[str, str | float] = {"mode": flip.mode, "owner": flip.owner, "reason": flip.reason}
        if flip.rate is not None:
            fields["rate"] = flip.rate
        ttl_ms = "" if flip.ttl_s is None else math.ceil(flip.ttl_s * 1000)
        arguments = (expected_revision, ttl_ms, _CHANNEL, self._max_history, *_flat(fields))
        async with self._connection.call() as redis:
            script = cast("Any", redis.eval(_FLIP, 2, _MODE_KEY, _HISTORY_KEY, *arguments))
            flipped, time, found = await script
        reading = _to_reading(found, time)
        if not flipped:
            raise conflict(reading.mode, expected_revision)
        return reading

    async def history(self, most: int) -> list[Mode]:
        async with self._connection.call() as redis:
            entries = cast("Any", await redis.xrevrange(_HISTORY_KEY, count=most))
        return [_to_mode(fields) for _, fields in entries]

    async def evicting_policy(self) -> str:
        # https://redis.io/docs/latest/develop/reference/eviction/: the volatile policies evict only keys with a time to
        # live, which cached pairs and traces have. The mode and its history have none.
        async with self._connection.call() as redis:
            policy: bytes = await cast("Any", redis.eval(_EVICTING_POLICY, 1, _MODE_KEY))
        return policy.decode()

    async def changes(self) -> AsyncGenerator[None]:
        async with self._connection.listen() as redis, redis.pubsub() as channel:
            await channel.subscribe(_CHANNEL)
            async for message in channel.listen():
                if message["type"] == "message":
                    yield

    async def close(self) -> None:
        await self._connection.close()


class RedisTraceStore:
    """Keeps each request's traces in a hash, their order in a sorted set, and all requests in an index by their last trace."""

    def __init__(
        self, connection: RedisConnection, ttl_s: float, max_requests: int, max_traces: int = MAX_TRACES
    ) -> None:
        self._connection = connection
        self._limits = (max(1, round(ttl_s * 1000)), max_requests, max_traces)

    async def put(self, request_id: str, traces: Mapping[str, bytes]) -> None:
        if not traces:
            return
        keys = (_TRACES_KEY + request_id, _ORDER_KEY + request_id, _TRACES_INDEX)
        arguments = (*self._limits, request_id, _TRACES_KEY, _ORDER_KEY, *_flat(traces))
        async with self._connection.call() as redis:
            await cast("Any", redis.eval(_PUT_TRACES, len(keys), *keys, *arguments))

    async def get(self, request_id: str) -> dict[str, bytes]:
        async with self._connection.call() as redis:
            found = await cast("Any", redis.hgetall(_TRACES_KEY + request_id))
        return {field.decode(errors="replace"): value for field, value in found.items()}

    async def close(self) -> None:
        await self._connection.close()


def _flat(fields: Mapping[str, Any]) -> list[Any]:
    return [part for item in fields.items() for part in item]


def _to_reading(flat: Sequence[bytes], time: Sequence[bytes | int]) -> ModeReading:
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    seconds, microseconds = map(int, time)
    return read_at(_to_mode(fields) if fields else NEVER_FLIPPED, seconds + microseconds / 1e6)


def _to_mode(raw: Mapping[bytes, bytes]) -> Mode:
    try:
        fields = {name.decode(): value.decode() for name, value in raw.items()}
        if fields["mode"] not in get_args(ModeName):
            raise ValueError(fields["mode"])
        expires, rate = fields.get("expires_ms"), fields.get("rate")
        return Mode(
            revision=int(fields["revision"]),
            mode=cast("ModeName", fields["mode"]),
            owner=fields["owner"],
            reason=fields["reason"],
            since=int(fields["since_ms"]) / 1000,
            expires=int(expires) / 1000 if expires else None,
            rate=float(rate) if rate else None,
        )
    except (KeyError, ValueError) as error:
        raise ExplanationStoreError(
            f"the value of {_MODE_KEY} in Redis is not an explanation mode"
        ) from error
