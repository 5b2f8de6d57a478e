"""Injects faults of random kind and duration, one at a time."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import cast

import psutil
from redis.asyncio import Redis as Client
from redis.exceptions import RedisError

from load_tests.soak.processes import Redis, ServiceProcess

Fault = Callable[[float], Awaitable[None]]


async def _suspend(process: psutil.Process, seconds: float) -> None:
    """Suspend a process: its connections stay open and nothing is answered."""
    process.suspend()
    try:
        await asyncio.sleep(seconds)
    finally:
        process.resume()


class Faults:
    """Injects faults into Redis and the engine until cancelled, and counts them."""

    def __init__(self, redis: Redis, service: ServiceProcess, seed: int) -> None:
        self._redis = redis
        self._rng = random.Random(seed)
        self._client = Client.from_url(redis.url)
        self._kinds: dict[str, Fault] = {
            "Redis killed, started empty": self._killed,
            "Redis hangs": lambda seconds: _suspend(redis.process, seconds),
            "Redis slow": self._slow,
            "Redis flaps": self._flapping,
            "Redis out of memory": self._full,
            "Redis holds damaged values": self._damaged,
            # Shorter than the hang timeout, which would end the service and its counts.
            "engine suspended": lambda seconds: _suspend(service.engine_core(), seconds),
        }
        self.injected: Counter[str] = Counter()

    async def run(self) -> None:
        """Inject faults until cancelled, then end the current one. Durations are far below NOTEGRADE_ENGINE_HANG_S."""
        try:
            while True:
                # Each kind once, in another order each time.
                for name in self._rng.sample(list(self._kinds), len(self._kinds)):
                    await asyncio.sleep(self._rng.uniform(2.0, 6.0))
                    self.injected[name] += 1
                    await self._kinds[name](self._rng.uniform(1.0, 4.0))
        finally:
            await self._client.aclose()

    async def _killed(self, seconds: float) -> None:
        self._redis.kill()
        try:
            await asyncio.sleep(seconds)
        finally:
            self._redis.start()

    async def _slow(self, seconds: float) -> None:
        for _ in range(int(seconds / 0.25)):
            with contextlib.suppress(RedisError, OSError):
                await self._client.client_pause(self._rng.randint(20, 200))
            await asyncio.sleep(0.25)

    async def _flapping(self, seconds: float) -> None:
        for _ in range(int(seconds / 0.1)):
            with contextlib.suppress(RedisError, OSError):
                await self._client.client_kill_filter(_type="normal", skipme=True)
            await asyncio.sleep(0.1)

    async def _full(self, seconds: float) -> None:
        with contextlib.suppress(RedisError, OSError):
            await self._client.config_set("maxmemory", "1mb")
        try:
            await asyncio.sleep(seconds)
        finally:
            with contextlib.suppress(RedisError, OSError):
                await self._client.config_set("maxmemory", "0")

    async def _damaged(self, seconds: float) -> None:
        with contextlib.suppress(RedisError, OSError):
            keys = [key async for key in self._client.scan_iter("ng:*")]
            for key in keys:
                if self._rng.random() < 0.1:
                    await self._client.set(key, "no hash")
                    continue
                values = cast("dict[bytes, bytes]", await self._client.hgetall(key))
                for field, value in values.items():
                    await self._client.hset(key, field, self._damage(value))
        await asyncio.sleep(seconds)

    def _damage(self, value: bytes) -> bytes:
        if not value:  # already damaged
            return b"foreign"
        position = self._rng.randrange(len(value))
        flipped = bytes([value[position] ^ 1 << self._rng.randrange(8)])
        return self._rng.choice(
            [
                value[:position],
                value + b"\0",
                b"",
                self._rng.randbytes(50),
                value[:position] + flipped + value[position + 1 :],
            ]
        )
