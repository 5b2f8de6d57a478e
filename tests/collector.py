"""Runs a trace collector: it receives OTLP over HTTP, like OpenTelemetry's own collector, and keeps the spans."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.http_server import receiving


@dataclass
class Collector:
    """Holds the received spans in the order in which they ended, and the resource of the last ones."""

    url: str
    spans: list[Span] = field(default_factory=list)
    resource: dict[str, str] = field(default_factory=dict)

    def take(self, _path: str, body: bytes) -> int:
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resource = {each.key: each.value.string_value for each in group.resource.attributes}
            self.spans += [span for scope in group.scope_spans for span in scope.spans]
        return 200

    def named(self, name: str) -> Span:
        """Return the only span of this name."""
        [found] = [span for span in self.spans if span.name == name]
        return found

    def names(self) -> list[str]:
        return sorted(span.name for span in self.spans)


def attributes(span: Span) -> dict[str, str | int | float | bool]:
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value") or "string_value")
        for each in span.attributes
    }


@contextmanager
def collector() -> Iterator[Collector]:
    found = Collector("")
    with receiving(found.take) as found.url:
        yield found
