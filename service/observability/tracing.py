"""Traces of requests over OpenTelemetry. The only file that imports `opentelemetry`.

Without an exporter, OpenTelemetry's API does nothing. Endpoint, headers, sampler, queue and resource are set by its own variables:
https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
Names of spans and attributes: https://opentelemetry.io/docs/specs/semconv/http/http-spans/

Times are seconds of `time.perf_counter`. A trace holds names, times and counts: never a query or a note.
"""

import threading
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from opentelemetry.trace import (
    INVALID_SPAN,
    NoOpTracer,
    Span,
    SpanKind,
    Status,
    StatusCode,
    format_trace_id,
    set_span_in_context,
)
from opentelemetry.trace import Tracer as OtelTracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.errors import ConfigurationError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

# An unreachable collector must not delay the end of the service; spans that it did not take by then are lost.
CLOSE_TIMEOUT_S = 2.0
_TRACE_HEADERS = (b"traceparent", b"tracestate")

Attributes = Mapping[str, str | int | float | bool]


class Trace:
    """One request's span, with a child span for each stage. It does nothing for a request that is not recorded."""

    def __init__(self, tracer: OtelTracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span
        self._clock_starts_ns = time.time_ns() - time.perf_counter_ns()
        # 32 hex digits, or None if the request is not recorded.
        self.trace_id = format_trace_id(span.get_span_context().trace_id) if span.is_recording() else None

    def add(self, stage: str, started: float, ended: float) -> None:
        """Add a stage that is over; it may end after the request."""
        if self.trace_id is None:
            return
        child = self._tracer.start_span(
            stage, set_span_in_context(self._span), start_time=self._unix_ns(started)
        )
        child.end(self._unix_ns(ended))

    def end(self, name: str, attributes: Attributes, *, failed: bool) -> None:
        """End the request's span, with the name and the attributes that are known by now."""
        self._span.update_name(name)
        self._span.set_attributes(attributes)
        if failed:
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()

    def _unix_ns(self, seconds: float) -> int:
        return self._clock_starts_ns + round(seconds * 1e9)


UNTRACED = Trace(NoOpTracer(), INVALID_SPAN)


class Tracer:
    """Records the requests that OpenTelemetry's sampler picks, and exports them from a thread over OTLP/HTTP.

    By default a caller's `traceparent` decides whether its request is recorded, and requests without one are recorded.
    """

    def __init__(
        self, version: str, resource: Mapping[str, str], exporter: "SpanExporter | None" = None
    ) -> None:
        """Raises ConfigurationError if the extra `tracing` is not installed."""
        self._provider = _build_provider({"service.version": version, **resource}, exporter)
        self._tracer = self._provider.get_tracer("notegrade", version)
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, headers: Iterable[tuple[bytes, bytes]]) -> Trace:
        """Begin a request's trace: the caller's if its `traceparent` names one, else a new one."""
        carrier = {
            name.decode(): value.decode("latin-1") for name, value in headers if name in _TRACE_HEADERS
        }
        span = self._tracer.start_span("request", self._propagator.extract(carrier), SpanKind.SERVER)
        return Trace(self._tracer, span) if span.is_recording() else UNTRACED

    def close(self) -> None:
        """Export the spans that wait; blocks for CLOSE_TIMEOUT_S at most."""
        # OpenTelemetry would wait 30 s for a collector that hangs. Its threads end with the process.
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSE_TIMEOUT_S)


def exemplar(trace: Trace) -> dict[str, str] | None:
    """Return the exemplar to store with a histogram's value: it leads from a slow bucket to such a request's trace."""
    return {"trace_id": trace.trace_id} if trace.trace_id else None


def _build_provider(resource: Mapping[str, str], exporter: "SpanExporter | None") -> "TracerProvider":
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigurationError(f"NOTEGRADE_TRACING needs the extra `tracing`: {error}") from error
    ours = Resource.create({"service.name": "notegrade", **resource})
    # Merged again, because OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES take precedence over our names.
    merged = ours.merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=merged, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
    return provider
