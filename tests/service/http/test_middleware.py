"""The door against bodies that are too large, too slow, or never end."""

import asyncio
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry
from starlette.types import Message, Receive, Scope, Send

from service.http.middleware import BodyLimiter, RequestObserver
from service.observability.metrics import Metrics

SCOPE: Scope = {"type": "http", "method": "POST", "path": "/score", "headers": []}


class App:
    """Reads its whole body, as an application does, and remembers it."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        self.bodies.append(message["body"])
        assert not message.get("more_body")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


async def call(app: Any, messages: list[Message], scope: Scope = SCOPE) -> list[Message]:
    """What was sent; once the messages have been received, nothing more comes."""
    arriving: Iterator[Message] = iter(messages)
    sent: list[Message] = []

    async def receive() -> Message:
        for message in arriving:
            return message
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    await app(dict(scope), receive, send)
    return sent


def chunk(body: bytes, *, more: bool) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


async def test_chunks_reach_the_application_as_one_body() -> None:
    app = App()
    await call(BodyLimiter(app, 10, 5), [chunk(b"hello", more=True), chunk(b"world", more=False)])
    assert app.bodies == [b"helloworld"]


async def test_body_that_grows_too_large_is_refused_before_its_end() -> None:
    app = App()
    sent = await call(BodyLimiter(app, 9, 5), [chunk(b"hello", more=True), chunk(b"world", more=True)])
    assert sent[0]["status"] == 413
    assert (b"connection", b"close") in sent[0]["headers"]
    assert app.bodies == []


async def test_stated_length_over_the_limit_is_refused_unread() -> None:
    scope = {**SCOPE, "headers": [(b"content-length", b"10")]}
    sent = await call(BodyLimiter(App(), 9, 5), [], scope)
    assert sent[0]["status"] == 413


async def test_body_that_never_ends_is_refused_in_time() -> None:
    app = App()
    sent = await call(BodyLimiter(app, 10, 0.02), [chunk(b"hello", more=True)])
    assert sent[0]["status"] == 408
    assert app.bodies == []


async def test_client_that_leaves_before_the_end_gets_nothing() -> None:
    app = App()
    sent = await call(BodyLimiter(app, 10, 5), [chunk(b"hello", more=True), {"type": "http.disconnect"}])
    assert (sent, app.bodies) == ([], [])


async def test_what_is_no_http_passes_untouched() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    layers = RequestObserver(BodyLimiter(app, 10, 5), Metrics(CollectorRegistry()))
    await call(layers, [], {"type": "lifespan"})
    assert seen == ["lifespan"]
