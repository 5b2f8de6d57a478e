import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], bool], within_s: float = 5) -> None:
    """Return once the condition holds. Raises TimeoutError when it never does."""
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.001)
