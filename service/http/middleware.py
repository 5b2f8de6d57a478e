"""Pure ASGI middleware: request ids with one log event and one observation a request; bounded bodies."""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodyTimeoutError, RequestTooLargeError
from service.http.disconnects import CLIENT_CLOSED_REQUEST
from service.http.error_handlers import not_served, problem_response
from service.observability.logs import request_id_var
from service.observability.metrics import Metrics
from service.observability.tracing import UNTRACED, Trace, Tracer, exemplar, trace_var

logger = logging.getLogger("service.request")

# Asked every few seconds by machines, the last two by each open console; their events would drown the others.
QUIET_ROUTES = frozenset({"/livez", "/readyz", "/metrics", "/admin/explanation-mode", "/admin/figures"})
# What is for operators.
PRIVATE = re.compile(r"/(admin|metrics|console)(/|$)")
# Of a request's event, what a trace shows too: neither texts, which may be in it, nor whose key it was.
TRACED = ("notes", "deadline_ms", "priority", "criteria", "outcomes", "sources")


class RequestObserver:
    """Gives each request an id and a trace, and when it is over logs one event and observes its time."""

    def __init__(self, app: ASGIApp, metrics: Metrics, tracer: Tracer | None = None) -> None:
        self._app = app
        self._seconds = metrics.request_seconds
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        scope.setdefault("state", {})["event"] = {}
        trace = self._begin_trace(scope)
        tokens = request_id_var.set(uuid.uuid4().hex), trace_var.set(trace)
        status = CLIENT_CLOSED_REQUEST  # unless somebody is answered

        async def observed_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message.setdefault("headers", []).append(
                    (b"x-request-id", (request_id_var.get() or "").encode())
                )
            await send(message)

        try:
            await self._app(scope, receive, observed_send)
        except Exception:
            status = 500  # which is sent further out
            raise
        finally:
            self._report(scope, status, time.perf_counter() - started, trace)
            request_id_var.reset(tokens[0])
            trace_var.reset(tokens[1])

    def _begin_trace(self, scope: Scope) -> Trace:
        quiet = scope["method"] == "GET" and scope["path"] in QUIET_ROUTES
        return self._tracer.begin(scope["headers"]) if self._tracer and not quiet else UNTRACED

    def _report(self, scope: Scope, status: int, seconds: float, trace: Trace) -> None:
        # The template of the route, not the path: paths are the caller's, and would be endless label values.
        route = getattr(scope.get("route"), "path", "unmatched")
        self._seconds.labels(route, str(status)).observe(seconds, exemplar(trace))
        event = {"route": route, "status": status, "ms": round(seconds * 1000, 2), **scope["state"]["event"]}
        if trace.trace_id:
            event["trace_id"] = trace.trace_id
            _end_trace(trace, scope["method"], event)
        quiet = route in QUIET_ROUTES and scope["method"] == "GET"
        logger.log(logging.DEBUG if quiet else logging.INFO, "request", extra=event)


def _end_trace(trace: Trace, method: str, event: Mapping[str, Any]) -> None:
    # Names are OpenTelemetry's where it has one. Left out: the path, which is the caller's own text.
    attributes = {
        "http.request.method": method,
        "http.route": event["route"],
        "http.response.status_code": event["status"],
        "notegrade.request_id": request_id_var.get() or "",
    }
    if "problem" in event:
        attributes["error.type"] = event["problem"]
    for name in TRACED:
        value = event.get(name)
        if isinstance(value, Mapping):
            attributes |= {f"notegrade.{name}.{key}": count for key, count in value.items()}
        elif value is not None:
            attributes[f"notegrade.{name}"] = value
    trace.end(f"{method} {event['route']}", attributes, failed=event["status"] >= 500)


class PrivateRoutes:
    """Serves what is for operators on connections to one port alone; elsewhere it is not there."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        self._app = app
        self._port = port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The port of the socket, which no header of the caller's can change.
        if scope["type"] == "http" and PRIVATE.match(scope["path"]) and scope["server"][1] != self._port:
            await not_served(scope["method"], scope["path"])(scope, receive, send)
        else:
            await self._app(scope, receive, send)


class BodyLimiter:
    """Reads the body before the application sees the request, within a size and a time."""

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        try:
            body = await self._read(scope, receive)
        except (RequestTooLargeError, BodyTimeoutError) as error:
            response = problem_response(error)
            # What the client still sends of this body would be read as its next request.
            response.headers["Connection"] = "close"
            await response(scope, receive, send)
            return
        if body is None:
            return
        pending = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        await self._app(scope, replay, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body, or None when the client left before its end."""
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        if stated.isdigit() and int(stated) > self._max_bytes:
            raise self._too_large()
        chunks = bytearray()
        try:
            async with asyncio.timeout(self._timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    chunks += message.get("body", b"")
                    if len(chunks) > self._max_bytes:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        return bytes(chunks)
        except TimeoutError as error:
            raise BodyTimeoutError(
                f"the body did not arrive within {self._timeout_s:g} s: send it again"
            ) from error

    def _too_large(self) -> RequestTooLargeError:
        return RequestTooLargeError(
            f"the body has more than {self._max_bytes:,} bytes: send fewer or shorter notes"
        )
