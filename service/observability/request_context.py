"""The request at hand: made by the outermost middleware, read by everything that handles, logs or traces the request."""

import contextvars
from dataclasses import dataclass, field
from typing import Any

from service.observability.tracing import UNTRACED, Trace


@dataclass(slots=True)
class RequestContext:
    """The context of one HTTP request.

    Attributes:
        request_id: a new id, replaced by the caller's own once its body is read; None outside of requests.
        trace: the request's trace.
        event: fields of the log event that is written when the request is over.
    """

    request_id: str | None = None
    trace: Trace = UNTRACED
    event: dict[str, Any] = field(default_factory=dict)


# Background tasks and commands run outside of requests: their log lines have no id, and their work has no trace.
NO_REQUEST = RequestContext()
current_request: contextvars.ContextVar[RequestContext] = contextvars.ContextVar(
    "current_request", default=NO_REQUEST
)
