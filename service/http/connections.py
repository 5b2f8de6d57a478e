"""Limit each client's connection in time and size.

uvicorn waits without a limit for a request's headers and for a client that does not read, and limits the size of headers for
its h11 parser only, not for the faster httptools. A proxy in front can do all of this; the service must also be safe without one. uvicorn
offers no other way to do so than a protocol class of its own, so this file extends uvicorn's, which is not a public API:
tests/service/http/test_connections.py holds each limit over real sockets.
"""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, ClassVar

from prometheus_client import Counter
from pydantic import BaseModel, ConfigDict, Field
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

# A connection that is closed with unread bytes is reset, and the client may lose its answer: it gets this long to read it.
LINGER_S = 1.0


class ConnectionLimits(BaseModel):
    """The settings that limit connections. A head is a request's target and headers."""

    model_config = ConfigDict(frozen=True)

    max_connections: int = Field(
        1000, ge=1, le=100_000, description="Most connections of clients; more are refused with a 503"
    )
    max_head_bytes: int = Field(
        65_536, ge=1_000, description="Largest request target and headers together, in bytes"
    )
    request_head_timeout_s: float = Field(
        10.0, gt=0, description="Longest wait for a request's headers to arrive"
    )
    response_timeout_s: float = Field(
        30.0, gt=0, description="How long a client may not read its answer before the connection is cut"
    )


class Connection(HttpToolsProtocol):
    """One client's connection, which refuses with a problem whatever goes over the limits. Make the class with `within`."""

    limits: ClassVar[ConnectionLimits]
    refused: ClassVar[Counter]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._read_timer = _Timer(self.loop)
        self._write_timer = _Timer(self.loop)
        self._head_bytes = 0
        self._received_bytes = 0
        self._in_head = False
        self._refusal: NotegradeError | None = None

    @classmethod
    def within(cls, limits: ConnectionLimits, refused: Counter) -> "type[Connection]":
        """Make the class for these limits, which counts its refusals; uvicorn makes the objects."""
        refusals = HeadTimeoutError, HeadTooLargeError, MalformedHttpError, TooManyConnectionsError
        initialize_series(refused, map(_problem_name, refusals))
        return type("Connection", (cls,), {"limits": limits, "refused": refused})

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            self._refuse(TooManyConnectionsError("too many connections are open: retry, or use fewer"))
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._read_timer.stop()
        self._write_timer.stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refusal:
            return
        # The parser reports a header when it ends, so the size of one without an end is counted here.
        self._received_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._received_bytes > self.limits.max_head_bytes:
            self._refuse(self._head_too_large())
        elif self._is_idle and not self._read_timer.is_running:
            # For bytes that begin no request (a stray line end, the rest of a body whose answer was sent) uvicorn stops
            # its keep-alive timer and starts none. Start ours once, not for each of them: they may trickle in forever.
            self._await_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes, self._received_bytes = True, 0, 0
        self._await_head()

    def on_url(self, url: bytes) -> None:
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._read_timer.stop()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():  # it closes once the client has read its answer
            self._await_reader()

    def pause_writing(self) -> None:
        self._await_reader()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._write_timer.stop()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's message is plain text
        self._refuse(MalformedHttpError("this is no HTTP/1.1 request: see RFC 9112"))

    @property
    def _is_answering(self) -> bool:
        cycle: Any = self.cycle  # None before the first request, whatever uvicorn's type says
        return bool(cycle) and not cycle.response_complete

    @property
    def _is_idle(self) -> bool:
        return not self._in_head and not self._is_answering

    def _await_head(self) -> None:
        self._read_timer.start(self.limits.request_head_timeout_s, self._give_up_head)

    def _await_reader(self) -> None:
        self._write_timer.start(self.limits.response_timeout_s, self.transport.abort)

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self.limits.max_head_bytes:
            error = self._head_too_large()
            self._refuse(error)
            raise error  # stops the parser

    def _head_too_large(self) -> HeadTooLargeError:
        return HeadTooLargeError(
            f"target and headers have more than {self.limits.max_head_bytes:,} bytes: send texts in the body"
        )

    def _give_up_head(self) -> None:
        if self._in_head:
            timeout_s = self.limits.request_head_timeout_s
            self._refuse(
                HeadTimeoutError(f"the headers did not arrive within {timeout_s:g} s: send it again")
            )
        else:
            self.timeout_keep_alive_handler()

    def _refuse(self, error: NotegradeError) -> None:
        if self._refusal or self.transport.is_closing():
            return
        self._refusal = error
        self.refused.labels(_problem_name(type(error))).inc()
        # It is closed within LINGER_S; counted until then, it would take the place of a client that is served.
        self.connections.discard(self)
        if self._is_answering:
            self.transport.abort()  # the refusal must not be mixed into the answer that is being written
            return
        response = problem_response(error)
        response.headers["Connection"] = "close"
        lines = [f"HTTP/1.1 {response.status_code} {HTTPStatus(response.status_code).phrase}".encode()]
        lines += [name + b": " + value for name, value in response.raw_headers]
        self.transport.write(b"\r\n".join([*lines, b"", bytes(response.body)]))
        self.transport.write_eof()
        self._read_timer.start(LINGER_S, self.transport.abort)


def _problem_name(error: type[NotegradeError]) -> str:
    return error.type.removeprefix(PROBLEM_PREFIX)


class _Timer:
    """Schedules at most one call; starting it again replaces that call."""

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
