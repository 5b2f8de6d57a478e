import asyncio
import time
from collections.abc import Callable

import httpx


async def until(condition: Callable[[], bool], within_s: float = 30) -> None:
    """Return once the condition holds. Raises TimeoutError when it never does."""
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.001)


def wait_until(condition: Callable[[], bool], within_s: float = 30) -> float:
    """Wait for the condition without an event loop, and return the seconds it took. Fails when it never holds."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < within_s, "it did not come about in time"
        time.sleep(0.02)
    return time.monotonic() - started


def is_ready(url: str) -> bool:
    """Return whether the URL is answered with 200."""
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False
