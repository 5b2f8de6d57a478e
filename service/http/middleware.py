"""Pure ASGI middleware: each request's context, log event, metric and trace; routes for operators on a separate port."""

import logging
import re
import time
import uuid
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import NotegradeError, NotServedError
from service.http.error_handlers import CLIENT_CLOSED_REQUEST, problem_response
from service.observability.metrics import Metrics
from service.observability.redaction import log_redacted
from service.observability.request_context import RequestContext, current_request
from service.observability.tracing import UNTRACED, Tracer, exemplar

logger = logging.getLogger("service.request")

# Machines and open consoles ask these every few seconds: their events would drown the others.
QUIET_ROUTES = frozenset({"/livez", "/readyz", "/metrics", "/admin/explanation-mode", "/admin/figures"})
ADMIN_ROUTES = re.compile(r"/(admin|metrics|console)(/|$)")
# The fields of a request's event that its trace shows as well: neither texts nor the key's id.
TRACED_FIELDS = ("notes", "deadline_ms", "priority", "criteria", "outcomes", "sources")


class RequestObserver:
    """Gives each request its context, and reports the request when it is over: one log event, one observed time, one span.

    It answers exceptions that no handler knows, here and not in Starlette's own outermost layer, because here the
    request's id is known and the exception can be logged once, without its text.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        tracer: Tracer | None = None,
        *,
        versions: Mapping[str, str],
        log_texts: bool = False,
    ) -> None:
        """`versions`, as `Manifest.versions`, become headers of each answer."""
        self._app = app
        self._version_headers = [
            (f"notegrade-{name.replace('_', '-')}".encode(), version.encode())
            for name, version in versions.items()
        ]
        self._seconds = metrics.request_seconds
        self._tracer = tracer
        self._log_texts = log_texts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        quiet = scope["path"] in QUIET_ROUTES and scope["method"] == "GET"
        trace = self._tracer.begin(scope["headers"]) if self._tracer and not quiet else UNTRACED
        request = RequestContext(uuid.uuid4().hex, trace)
        token = current_request.set(request)
        status: int | None = None

        async def send_observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message.setdefault("headers", [])
                headers += [(b"x-request-id", (request.request_id or "").encode()), *self._version_headers]
            await send(message)

        try:
            await self._app(scope, receive, send_observed)
        except Exception as error:
            log_redacted(logger, "unforeseen error", error, log_texts=self._log_texts)
            request.event["problem"] = NotegradeError.type
            # The server closes a connection whose response has started but does not end.
            if status is None:
                fault = NotegradeError("this is a fault of the service: report it with the request id")
                await problem_response(fault)(scope, receive, send_observed)
            status = 500
        finally:
            self._report(
                scope, request, status or CLIENT_CLOSED_REQUEST, time.perf_counter() - started, quiet=quiet
            )
            current_request.reset(token)

    def _report(
        self, scope: Scope, request: RequestContext, status: int, seconds: float, *, quiet: bool
    ) -> None:
        # The route's template, not the path: paths are the caller's text, and would be endless label values.
        route = getattr(scope.get("route"), "path", "unmatched")
        self._seconds.labels(route, str(status)).observe(seconds, exemplar(request.trace))
        event = {"route": route, "status": status, "ms": round(seconds * 1000, 2), **request.event}
        if request.trace.trace_id:
            event["trace_id"] = request.trace.trace_id
            attributes = _trace_attributes(scope["method"], event, request.request_id or "")
            request.trace.end(f"{scope['method']} {route}", attributes, failed=status >= 500)
        logger.log(logging.DEBUG if quiet else logging.INFO, "request", extra=event)


def _trace_attributes(
    method: str, event: Mapping[str, Any], request_id: str
) -> dict[str, str | int | float | bool]:
    # OpenTelemetry's names where it has them. The path is left out: it is the caller's own text.
    attributes = {
        "http.request.method": method,
        "http.route": event["route"],
        "http.response.status_code": event["status"],
        "notegrade.request_id": request_id,
    }
    if "problem" in event:
        attributes["error.type"] = event["problem"]
    for name in TRACED_FIELDS:
        value = event.get(name)
        if isinstance(value, Mapping):
            attributes |= {f"notegrade.{name}.{key}": count for key, count in value.items()}
        elif value is not None:
            attributes[f"notegrade.{name}"] = value
    return attributes


class AdminPort:
    """Serves the routes for operators only on connections to one port; on any other port they are not found."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        self._app = app
        self._port = port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The socket's port, which no header of the caller's can change.
        if scope["type"] == "http" and ADMIN_ROUTES.match(scope["path"]) and scope["server"][1] != self._port:
            error = NotServedError(scope["method"], scope["path"])
            current_request.get().event["problem"] = error.type
            await problem_response(error)(scope, receive, send)
        else:
            await self._app(scope, receive, send)
