"""An OTLP collector receives the traces of requests over real sockets."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open_metrics

from service.app import build_app, build_stack
from service.contract.checkpoint import Checkpoint
from service.errors import ConfigurationError
from service.observability import tracing
from service.observability.tracing import UNTRACED, Tracer, exemplar
from service.settings import Settings
from tests.checkpoints import fake_engine_for
from tests.collector import Collector, attributes, collector
from tests.served import Served, served

TRACE_ID, CALLER_SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = {"traceparent": f"00-{TRACE_ID}-{CALLER_SPAN_ID}-01"}
NOT_SAMPLED = {"traceparent": f"00-{TRACE_ID}-{CALLER_SPAN_ID}-00"}
BODY = {"request_id": "r-1", "query": "zebra cafes", "notes": [{"id": "n1", "body": "A quiet zebra."}]}
OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}
Tracing = Callable[..., AbstractContextManager[tuple[Served, Collector]]]


@pytest.fixture
def traced(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> Tracing:
    """Run a service that traces, and a collector that has its spans once the service has stopped."""

    @contextmanager
    def run(**settings: Any) -> Iterator[tuple[Served, Collector]]:
        with collector() as found:
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
            with served(checkpoint, tracing=True, **settings) as service:
                yield service, found

    return run


def score(service: Served, headers: dict[str, Any] | None = None, **changes: Any) -> httpx.Response:
    return httpx.post(f"{service.url}/score", json={**BODY, **changes}, headers=headers)


def test_a_request_is_a_span_of_the_caller_s_trace_with_a_child_for_each_stage(traced: Tracing) -> None:
    with traced() as (service, found):
        assert score(service, SAMPLED).status_code == 200
    request = found.named("POST /score")
    assert {span.trace_id.hex() for span in found.spans} == {TRACE_ID}
    assert (request.parent_span_id.hex(), request.kind) == (CALLER_SPAN_ID, Span.SPAN_KIND_SERVER)
    stages = [span for span in found.spans if span is not request]
    assert [span.name for span in stages] == ["render", "cache", "queue", "engine"]
    assert {span.parent_span_id for span in stages} == {request.span_id}
    for stage in stages:
        # Within a microsecond: times are floats of seconds since the machine started.
        assert request.start_time_unix_nano - 1000 <= stage.start_time_unix_nano <= stage.end_time_unix_nano
        assert stage.end_time_unix_nano <= request.end_time_unix_nano + 1000


def test_a_span_has_counts_and_never_a_text(traced: Tracing) -> None:
    with traced(log_texts=True) as (service, found):
        score(service)
    assert attributes(found.named("POST /score")) == {
        "http.request.method": "POST",
        "http.route": "/score",
        "http.response.status_code": 200,
        "notegrade.request_id": "r-1",
        "notegrade.notes": 1,
        "notegrade.deadline_ms": 10_000,
        "notegrade.priority": "online",
        "notegrade.criteria": "general-1",
        "notegrade.outcomes.scored": 1,
        "notegrade.sources.engine": 1,
    }
    assert b"zebra" not in b"".join(span.SerializeToString() for span in found.spans)


def test_cached_requests_have_no_engine_stages(traced: Tracing) -> None:
    with traced() as (service, found):
        score(service)
        found.spans.clear()
        score(service, SAMPLED)
    assert [span.name for span in found.spans if span.trace_id.hex() == TRACE_ID] == ["cache", "POST /score"]


def test_requests_that_the_caller_does_not_sample_are_not_traced(traced: Tracing) -> None:
    with traced() as (service, found):
        assert score(service, NOT_SAMPLED).status_code == 200
    assert found.spans == []


@pytest.mark.parametrize("traceparent", ["", "00-zz", f"00-{'0' * 32}-{CALLER_SPAN_ID}-01", b"\xff" * 55])
def test_a_malformed_traceparent_begins_a_new_trace(traced: Tracing, traceparent: str | bytes) -> None:
    with traced() as (service, found):
        assert score(service, {"traceparent": traceparent}).status_code == 200
    request = found.named("POST /score")
    assert request.parent_span_id == b""
    assert request.trace_id.hex() != "0" * 32


def test_server_errors_fail_the_span_and_name_the_problem(traced: Tracing) -> None:
    with traced() as (service, found):
        assert score(service, query="").status_code == 422
        service.engine.hold()
        assert score(service, deadline_ms=50).status_code == 504
    refused, failed = [span for span in found.spans if span.name == "POST /score"]
    assert refused.status.code == Status.STATUS_CODE_UNSET, (
        "an error of the caller is not an error of the server"
    )
    assert failed.status.code == Status.STATUS_CODE_ERROR
    assert str(attributes(refused)["error.type"]).endswith("invalid-request")
    assert str(attributes(failed)["error.type"]).endswith("deadline-exceeded")


def test_probes_and_scrapes_are_not_traced(traced: Tracing) -> None:
    with traced() as (service, found):
        for path in ("/livez", "/readyz", "/metrics"):
            assert httpx.get(f"{service.url}{path}").status_code == 200
        httpx.get(f"{service.url}/no/such/thing")
    assert found.names() == ["GET unmatched"]


def test_explaining_adds_stages_to_the_request_s_trace(traced: Tracing) -> None:
    with traced() as (service, found):
        mode = f"{service.url}/admin/explanation-mode"
        etag = httpx.get(mode).headers["etag"]
        flip = {"mode": "on_request", "reason": "a test", "ttl_s": 60}
        assert httpx.put(mode, json=flip, headers={"If-Match": etag}).status_code == 200
        assert score(service, SAMPLED, explain=True).status_code == 200
    stages = [span.name for span in found.spans if span.parent_span_id == found.named("POST /score").span_id]
    assert stages[-2:] == ["explanation queue", "explanation write"]


def test_the_resource_has_the_checkpoint_and_the_operator_s_attributes(
    traced: Tracing, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "grader")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=canary")
    with traced() as (service, found):
        score(service)
    assert found.resource["notegrade.fingerprint"] == checkpoint.manifest.fingerprint
    assert found.resource["notegrade.grading_version"] == checkpoint.manifest.grading_version
    assert found.resource["service.name"] == "grader"
    assert found.resource["deployment.environment.name"] == "canary"


def test_exemplars_link_buckets_to_traces(traced: Tracing) -> None:
    with traced() as (service, _):
        score(service, SAMPLED)
        plain = httpx.get(f"{service.url}/metrics")
        open_metrics = httpx.get(f"{service.url}/metrics", headers=OPENMETRICS)
    assert (plain.headers["content-type"].split(";")[0], "# {" in plain.text) == ("text/plain", False)
    assert open_metrics.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    found = {
        sample.labels.get("route") or sample.labels["stage"]: sample.exemplar.labels
        for family in parse_open_metrics(open_metrics.text)  # type: ignore[no-untyped-call]
        for sample in family.samples
        if sample.exemplar
    }
    assert set(found) == {"/score", "cache", "render", "queue", "engine"}
    assert all(labels == {"trace_id": TRACE_ID} for labels in found.values())


def test_the_log_event_has_the_trace_id(traced: Tracing, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "service.request")
    with traced() as (service, _):
        score(service, SAMPLED)
        score(service, NOT_SAMPLED)
    records = [record for record in caplog.records if record.name == "service.request"]
    assert [getattr(record, "trace_id", None) for record in records] == [TRACE_ID, None]


def test_an_unreachable_collector_does_not_affect_answers(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    # Less than CLOSE_TIMEOUT_S: an exporter that still retried after this test would call `random` while others run.
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with served(checkpoint, tracing=True) as service:
        assert [score(service).status_code for _ in range(3)] == [200, 200, 200]


class HangingExporter(SpanExporter):
    def __init__(self) -> None:
        self.asked, self.answer = threading.Event(), threading.Event()

    def export(self, spans: Any) -> SpanExportResult:
        self.asked.set()
        self.answer.wait()
        return SpanExportResult.SUCCESS


def test_a_hanging_collector_does_not_delay_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "CLOSE_TIMEOUT_S", 0.1)
    exporter = HangingExporter()
    tracer = Tracer("1", {}, exporter)
    tracer.begin([]).end("POST /score", {}, failed=False)
    tracer.close()
    assert exporter.asked.is_set()
    assert not exporter.answer.is_set(), "the exporter still hangs"
    exporter.answer.set()


def test_tracing_without_its_extra_is_refused(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    settings = Settings(tracing=True)
    stack = build_stack(settings, checkpoint, CollectorRegistry(), fake_engine_for(checkpoint))
    with pytest.raises(ConfigurationError, match="needs the extra `tracing`"):
        build_app(settings, stack)


def test_untraced_requests_have_no_exemplar() -> None:
    UNTRACED.add("cache", 0.0, 1.0)
    UNTRACED.end("POST /score", {}, failed=False)
    assert exemplar(UNTRACED) is None
