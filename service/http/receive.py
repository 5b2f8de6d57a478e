"""Read a request's body within its limits, and stop the work of a request whose client has left."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from service.errors import BodyTimeoutError, RequestTooLargeError

T = TypeVar("T")

# A body over its limit is read on and discarded up to here, because most clients read no answer before they have sent
# all of their body: a connection that is closed before that is reset, and the answer is lost.
MAX_DISCARDED_BYTES = 64 * 2**20


class ClientLeftError(Exception):
    """The client closed its connection before it was answered."""


async def read_body(request: Request, max_bytes: int, timeout_s: float) -> bytes:
    """Return the whole body.

    Raises RequestTooLargeError, BodyTimeoutError if it does not end in time, and ClientLeftError.
    """
    body, received = bytearray(), 0
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                received += len(chunk)
                if received <= max_bytes:
                    body += chunk
                elif received > max_bytes + MAX_DISCARDED_BYTES:
                    break
    except ClientDisconnect:
        raise ClientLeftError from None
    except TimeoutError as error:
        if received <= max_bytes:
            message = f"the body did not arrive within {timeout_s:g} s: send it again"
            raise BodyTimeoutError(message) from error
    if received > max_bytes:
        raise RequestTooLargeError(f"the body has more than {max_bytes:,} bytes: send fewer or shorter notes")
    return bytes(body)


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the work's result; if the client leaves first, cancel the work and raise ClientLeftError.

    FastAPI does not cancel a handler whose client has left (fastapi#3766). The body must have been read.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_wait_for_disconnect(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientLeftError
    finally:
        leaving.cancel()
        working.cancel()
        # Waited for, because its clean-up frees engine work, which must not outlive the request.
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
