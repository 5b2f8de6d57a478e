"""Bodies that are too large, too slow, or never end are refused."""

import asyncio

import pytest
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from service.errors import BodyTimeoutError, RequestTooLargeError
from service.http import receive
from service.http.receive import BodyDiscarder, ClientLeftError, read_body


def chunk(body: bytes, *, more: bool) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


def request(*messages: Message) -> tuple[Request, list[Message]]:
    """Make a request that receives these messages and then waits forever, and the list of those not received yet."""
    waiting = list(messages)

    async def receive() -> Message:
        if waiting:
            return waiting.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    return Request({"type": "http", "method": "POST", "path": "/score", "headers": []}, receive), waiting


async def test_chunks_are_one_body() -> None:
    asked, _ = request(chunk(b"hello", more=True), chunk(b"world", more=False))
    assert await read_body(asked, 10, 5) == b"helloworld"


async def test_a_body_that_grows_too_large_is_refused_before_its_end() -> None:
    asked, waiting = request(chunk(b"hello", more=True), chunk(b"world", more=True), chunk(b"!", more=False))
    with pytest.raises(RequestTooLargeError, match="more than 9 bytes"):
        await read_body(asked, 9, 5)
    assert len(waiting) == 1


async def test_a_body_that_never_ends_is_refused_in_time() -> None:
    asked, _ = request(chunk(b"hello", more=True))
    with pytest.raises(BodyTimeoutError, match="did not arrive within"):
        await read_body(asked, 10, 0.02)


async def test_a_client_may_leave_before_the_end() -> None:
    asked, _ = request(chunk(b"hello", more=True), {"type": "http.disconnect"})
    with pytest.raises(ClientLeftError):
        await read_body(asked, 10, 5)


async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer without reading the body."""
    await send({"type": "http.response.start", "status": 401, "headers": []})


async def left_after_answer(
    *messages: Message, headers: list[tuple[bytes, bytes]], timeout_s: float = 5
) -> int:
    """Have a request refused unread; return how many of its messages are left when the answer is sent."""
    asked, waiting = request(*messages)
    left: list[int] = []

    async def send(_message: Message) -> None:
        left.append(len(waiting))

    scope = {"type": "http", "http_version": "1.1", "headers": headers}
    await BodyDiscarder(refuse, timeout_s)(scope, asked.receive, send)
    [found] = left
    return found


BODY = [chunk(b"hello", more=True)] * 9 + [chunk(b"hello", more=False)]
CLOSE = [(b"connection", b"Close")]


async def test_an_unread_body_is_discarded_before_the_connection_closes() -> None:
    assert await left_after_answer(*BODY, headers=CLOSE) == 0


async def test_an_unread_body_is_left_to_the_server_if_the_connection_stays_open() -> None:
    assert await left_after_answer(*BODY, headers=[]) == len(BODY)


async def test_discarding_ends_at_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receive, "MAX_DISCARDED_BYTES", 12)
    assert await left_after_answer(*BODY, headers=CLOSE) == len(BODY) - 3


async def test_discarding_ends_in_time_and_when_the_client_leaves() -> None:
    assert await left_after_answer(chunk(b"hello", more=True), headers=CLOSE, timeout_s=0.02) == 0
    assert await left_after_answer({"type": "http.disconnect"}, *BODY, headers=CLOSE) == len(BODY)
