"""Stop working for a client that has left."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

T = TypeVar("T")

# nginx's code for "client closed request"; nobody reads the answer, metrics and logs do.
CLIENT_CLOSED_REQUEST = 499


class ClientLeftError(Exception):
    """The client closed its connection before the answer."""


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The work's result; cancels it and raises ClientLeftError when the client leaves first.

    FastAPI doesn't cancel a handler whose client is gone (fastapi#3766). The body must have been read.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientLeftError
    finally:
        leaving.cancel()
        working.cancel()
        # Waited for: its cleaning up frees engine work, which must not outlive the request.
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
