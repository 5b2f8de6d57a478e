"""Bodies that are too large, too slow, or never end."""

import asyncio

import pytest
from starlette.requests import Request
from starlette.types import Message

from service.errors import BodyTimeoutError, RequestTooLargeError
from service.http import receive
from service.http.receive import ClientLeftError, read_body


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


async def test_a_body_that_is_too_large_is_read_to_its_end_before_it_is_refused() -> None:
    asked, waiting = request(chunk(b"hello", more=True), chunk(b"world", more=True), chunk(b"!", more=False))
    with pytest.raises(RequestTooLargeError, match="more than 9 bytes"):
        await read_body(asked, 9, 5)
    assert waiting == []


async def test_reading_of_a_body_that_is_too_large_ends_at_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receive, "MAX_DISCARDED_BYTES", 10)
    asked, waiting = request(*[chunk(b"hello", more=True)] * 10)
    with pytest.raises(RequestTooLargeError):
        await read_body(asked, 5, 5)
    assert len(waiting) == 6


async def test_a_body_that_is_too_large_and_never_ends_is_refused_in_time() -> None:
    asked, _ = request(chunk(b"hello", more=True))
    with pytest.raises(RequestTooLargeError):
        await read_body(asked, 4, 0.02)


async def test_a_body_that_never_ends_is_refused_in_time() -> None:
    asked, _ = request(chunk(b"hello", more=True))
    with pytest.raises(BodyTimeoutError, match="did not arrive within"):
        await read_body(asked, 10, 0.02)


async def test_a_client_may_leave_before_the_end() -> None:
    asked, _ = request(chunk(b"hello", more=True), {"type": "http.disconnect"})
    with pytest.raises(ClientLeftError):
        await read_body(asked, 10, 5)
