"""OpenTelemetry behind the tracing port. The only file that imports `opentelemetry` (extra `tracing`).

Endpoint, headers, sampler, queue and resource are OpenTelemetry's own variables:
https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
Names of spans and attributes: https://opentelemetry.io/docs/specs/semconv/http/http-spans/
"""

import threading
import time
from collections.abc import Iterable, Mapping

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import (
    Span,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    format_trace_id,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.observability.tracing import UNTRACED, Attributes, Trace

# An unreachable collector must not hold up the end of the service; what it did not take by then is lost.
CLOSE_TIMEOUT_S = 2.0
_CARRIED = (b"traceparent", b"tracestate")


class OtelTrace:
    """A span that is recorded."""

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span
        self._clock_starts_ns = time.time_ns() - time.perf_counter_ns()

    @property
    def trace_id(self) -> str:
        """32 hex digits."""
        return format_trace_id(self._span.get_span_context().trace_id)

    def add(self, stage: str, started: float, ended: float) -> None:
        """A child span."""
        child = self._tracer.start_span(
            stage, set_span_in_context(self._span), start_time=self._unix_ns(started)
        )
        child.end(self._unix_ns(ended))

    def end(self, name: str, attributes: Attributes, *, failed: bool) -> None:
        """Name the span and end it."""
        self._span.update_name(name)
        self._span.set_attributes(attributes)
        if failed:
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()

    def _unix_ns(self, seconds: float) -> int:
        return self._clock_starts_ns + round(seconds * 1e9)


class OtelTracer:
    """Records what OpenTelemetry's sampler picks, and exports it from a thread of its own over OTLP/HTTP.

    By default that is what the caller of a request samples, and each request of a caller that traces nothing.
    """

    def __init__(
        self, version: str, resource: Mapping[str, str], exporter: SpanExporter | None = None
    ) -> None:
        named = Resource.create({"service.name": "notegrade", "service.version": version, **resource})
        # Once more, so that OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES go before our names.
        described = named.merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=described, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("notegrade", version)
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, headers: Iterable[tuple[bytes, bytes]]) -> Trace:
        """A trace that is recorded, or `UNTRACED`."""
        carried = {name.decode(): value.decode("latin-1") for name, value in headers if name in _CARRIED}
        span = self._tracer.start_span("request", self._propagator.extract(carried), SpanKind.SERVER)
        return OtelTrace(self._tracer, span) if span.is_recording() else UNTRACED

    def close(self) -> None:
        """Export what waits, for CLOSE_TIMEOUT_S at most."""
        # OpenTelemetry would take half a minute where the collector hangs, and its threads end with the process.
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSE_TIMEOUT_S)
