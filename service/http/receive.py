"""Read a request's body within its limits, discard bodies that are not read, and stop work when the client has left."""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodyTimeoutError, RequestTooLargeError
from service.observability.background import cancel_and_wait

T = TypeVar("T")

# The most that is read and discarded of a body that no route has read.
MAX_DISCARDED_BYTES = 64 * 2**20


class ClientLeftError(Exception):
    """The client closed its connection before it was answered."""


async def read_body(request: Request, max_bytes: int, timeout_s: float) -> bytes:
    """Return the whole body.

    Raises RequestTooLargeError, BodyTimeoutError if it does not end in time, and ClientLeftError.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    message = f"the body has more than {max_bytes:,} bytes: send fewer or shorter notes"
                    raise RequestTooLargeError(message)
    except ClientDisconnect:
        raise ClientLeftError from None
    except TimeoutError as error:
        raise BodyTimeoutError(f"the body did not arrive within {timeout_s:g} s: send it again") from error
    return bytes(body)


class BodyDiscarder:
    """Reads the rest of a body before its answer is sent, if the connection closes with the answer.

    A connection that is closed with unread bytes is reset, and its client may lose an answer such as 401 or 413. On a connection
    that stays open the server itself discards the rest.
    """

    def __init__(self, app: ASGIApp, timeout_s: float) -> None:
        self._app = app
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _closes_after_answer(scope):
            await self._app(scope, receive, send)
            return
        ended = False

        async def receive_until_end() -> Message:
            nonlocal ended
            message = await receive()
            ended = not message.get("more_body", False)
            return message

        async def send_after_end(message: Message) -> None:
            if message["type"] == "http.response.start" and not ended:
                await self._discard(receive_until_end)
            await send(message)

        await self._app(scope, receive_until_end, send_after_end)

    async def _discard(self, receive: Receive) -> None:
        discarded, more = 0, True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timeout_s):
                while more and discarded <= MAX_DISCARDED_BYTES:
                    message = await receive()
                    discarded += len(message.get("body", b""))
                    more = message.get("more_body", False)


def _closes_after_answer(scope: Scope) -> bool:
    asked = any(name == b"connection" and b"close" in value.lower() for name, value in scope["headers"])
    return asked or scope["http_version"] == "1.0"


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
        # Waited for, because the work's clean-up frees engine work, which must not outlive the request.
        await cancel_and_wait(working, leaving)


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
