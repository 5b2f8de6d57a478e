"""One client's connection over uvicorn's HTTP protocol, bounded in time and size where uvicorn's is not.

uvicorn waits for ever for a request's headers and for a client that doesn't read, and takes headers of any size
(its setting for that is h11's alone).
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, ClassVar

from prometheus_client import Counter
from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.errors import (
    PROBLEM_PREFIX,
    HeadTimeoutError,
    HeadTooLargeError,
    MalformedHttpError,
    NotegradeError,
    TooManyConnectionsError,
)
from service.http.error_handlers import problem_response
from service.observability.metrics import initialize_series
from service.observability.redaction import without_text

# Closed with bytes unread, a connection is reset, and the client may lose what it was told: it gets a moment to read it.
LINGER_S = 1.0


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """`head` is a request's target and headers; `write_timeout_s` is how long a client may not read what it was sent."""

    connections: int = 1000
    head_bytes: int = 65_536
    head_timeout_s: float = 10.0
    write_timeout_s: float = 30.0


class Connection(HttpToolsProtocol):
    """Refuses, in a problem of its own, what goes over the limits. Make a class with `within`."""

    limits: ClassVar[ConnectionLimits]
    refused: ClassVar[Counter]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.app = _without_texts(self.app)
        self._head = _Timer(self.loop)
        self._writing = _Timer(self.loop)
        self._head_bytes = 0
        self._received_bytes = 0
        self._in_head = False
        self._refusal: NotegradeError | None = None

    @classmethod
    def within(cls, limits: ConnectionLimits, refused: Counter) -> "type[Connection]":
        """The class for these limits, which counts what it refuses: uvicorn makes the objects."""
        refusals = HeadTimeoutError, HeadTooLargeError, MalformedHttpError, TooManyConnectionsError
        initialize_series(refused, map(_problem, refusals))
        return type("Connection", (cls,), {"limits": limits, "refused": refused})

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._refuse(TooManyConnectionsError("too many connections are open: retry, or use fewer"))
        else:
            self._head.start(self.limits.head_timeout_s, self._give_up_head)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head.stop()
        self._writing.stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refusal:
            return
        # The parser tells of a header at its end: one that has none is seen by what arrives.
        self._received_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._received_bytes > self.limits.head_bytes:
            self._refuse(self._head_too_large())
        elif self._is_idle and not self._head.is_running:
            # Of bytes that begin no request (a stray line end, a body of which the answer has gone out) uvicorn
            # stops its keep-alive timer and starts none. Once, and not at each: they may trickle in for ever.
            self._head.start(self.limits.head_timeout_s, self._give_up_head)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes, self._received_bytes = True, 0, 0
        self._head.start(self.limits.head_timeout_s, self._give_up_head)

    def on_url(self, url: bytes) -> None:
        self._count_head(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(name, value)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head.stop()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():  # which waits for a client to read
            self._writing.start(self.limits.write_timeout_s, self.transport.abort)

    def pause_writing(self) -> None:
        self._writing.start(self.limits.write_timeout_s, self.transport.abort)
        super().pause_writing()

    def resume_writing(self) -> None:
        self._writing.stop()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's words
        self._refuse(MalformedHttpError("this is no HTTP/1.1 request: see RFC 9112"))

    @property
    def _is_answering(self) -> bool:
        cycle: Any = self.cycle  # None before the first request, whatever uvicorn's type says
        return bool(cycle) and not cycle.response_complete

    @property
    def _is_idle(self) -> bool:
        return not self._in_head and not self._is_answering

    def _count_head(self, *parts: bytes) -> None:
        self._head_bytes += sum(map(len, parts))
        if self._head_bytes > self.limits.head_bytes:
            error = self._head_too_large()
            self._refuse(error)
            raise error  # stops the parser

    def _head_too_large(self) -> HeadTooLargeError:
        return HeadTooLargeError(
            f"target and headers have more than {self.limits.head_bytes:,} bytes: send texts in the body"
        )

    def _give_up_head(self) -> None:
        if self._in_head:
            timeout_s = self.limits.head_timeout_s
            self._refuse(
                HeadTimeoutError(f"the headers did not arrive within {timeout_s:g} s: send it again")
            )
        else:
            self.timeout_keep_alive_handler()

    def _refuse(self, error: NotegradeError) -> None:
        if self._refusal or self.transport.is_closing():
            return
        self._refusal = error
        self.refused.labels(_problem(type(error))).inc()
        if self._is_answering:
            self.transport.abort()  # an answer is being written, into which this must not be mixed
            return
        response = problem_response(error)
        response.headers["Connection"] = "close"
        lines = [f"HTTP/1.1 {response.status_code} {HTTPStatus(response.status_code).phrase}".encode()]
        lines += [name + b": " + value for name, value in response.raw_headers]
        self.transport.write(b"\r\n".join([*lines, b"", bytes(response.body)]))
        self.transport.write_eof()
        self._head.start(LINGER_S, self.transport.abort)


def _without_texts(app: ASGI3Application) -> ASGI3Application:
    # Starlette raises what it has answered once more, for the server to log: uvicorn does, with the text.
    async def called(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        try:
            return await app(scope, receive, send)
        except Exception as error:
            shown = without_text(error)
        raise shown  # here, where the exception itself is not its context

    return called


def _problem(error: type[NotegradeError]) -> str:
    return error.type.removeprefix(PROBLEM_PREFIX)


class _Timer:
    """At most one call to come."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._handle: asyncio.TimerHandle | None = None

    @property
    def is_running(self) -> bool:
        return self._handle is not None

    def start(self, seconds: float, then: Callable[[], object]) -> None:
        self.stop()
        self._handle = self._loop.call_later(seconds, then)

    def stop(self) -> None:
        if self._handle:
            self._handle.cancel()
            self._handle = None
