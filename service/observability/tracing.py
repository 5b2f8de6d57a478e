"""What a request tells of itself to a tracer; `service.observability.otel_tracer` is the one that there is.

Times are seconds of `time.perf_counter`. What is told are names, times and counts: never a query or a note.
"""

import contextvars
from collections.abc import Iterable, Mapping
from typing import Protocol

Attributes = Mapping[str, str | int | float | bool]


class Trace(Protocol):
    """One request under way: a span, and one below it for each stage."""

    @property
    def trace_id(self) -> str | None:
        """32 hex digits (W3C Trace Context), where the request is recorded."""
        ...

    def add(self, stage: str, started: float, ended: float) -> None:
        """A stage that is over; it may outlive the request."""
        ...

    def end(self, name: str, attributes: Attributes, *, failed: bool) -> None:
        """The request is answered; its span gets name and attributes now that they are known."""
        ...


class Tracer(Protocol):
    """Begins traces."""

    def begin(self, headers: Iterable[tuple[bytes, bytes]]) -> Trace:
        """A request's trace: the caller's where its `traceparent` names one, else a new one."""
        ...

    def close(self) -> None:
        """Hand over what was recorded; blocks for a bounded time."""
        ...


class _Untraced:
    trace_id = None

    def add(self, stage: str, started: float, ended: float) -> None:
        pass

    def end(self, name: str, attributes: Attributes, *, failed: bool) -> None:
        pass


UNTRACED: Trace = _Untraced()
trace_var: contextvars.ContextVar[Trace] = contextvars.ContextVar("trace", default=UNTRACED)


def exemplar(trace: Trace) -> dict[str, str] | None:
    """What a histogram keeps beside a value, so that a slow bucket leads to a trace of such a request."""
    return {"trace_id": trace.trace_id} if trace.trace_id else None
