import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.parser import text_string_to_metric_families

from service.observability.metrics import Metrics

# Dashboards and alerts depend on these names.
NAMES = {
    "request_seconds", "stage_seconds", "pair_outcomes", "pair_source", "prompt_tokens", "backlog_tokens", "service_rate_tokens", "shed",
    "cache_operations", "cache_breaker_open", "grade", "score", "label_mass", "ready", "build_info",
    "explanation_mode", "explanations", "explanation_drops", "explanation_guard_trips", "explanation_agreement", "explanation_grounded",
    "explanation_seconds", "explanation_tokens", "explanation_queue", "shadow_requests", "shadow_grades", "shadow_score_distance", "tasks", "connections", "refused_connections",
    "engine_cpu_seconds", "engine_resident_bytes", "vector_lookups", "encoded_notes", "encoding_backlog", "encoding_oldest_seconds",
    "encoding_seconds",
}  # fmt: skip


def test_metric_names_are_stable() -> None:
    registry = CollectorRegistry()
    families = text_string_to_metric_families(Metrics(registry).render()[0].decode())
    names = {family.name for family in families if not family.name.endswith("_created")}
    assert names == {f"notegrade_{name}" for name in NAMES}


@pytest.mark.parametrize(
    "accept",
    ["", "application/openmetrics-text; version=1.0.0", "application/openmetrics-text; version=0.0.1"],
)
def test_the_engine_s_names_are_the_same_in_every_format(accept: str) -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    Gauge("vllm:num_requests_running", "As vLLM names it", ["engine"], registry=registry).labels("0").set(1)
    assert b'\nvllm:num_requests_running{engine="0"} 1.0\n' in metrics.render(accept)[0]


def test_a_scrape_reports_one_mode_even_while_it_changes() -> None:
    registry = CollectorRegistry()
    modes = iter(["all", "off"])  # the mode ends during the first scrape
    Metrics(registry).explanation_mode.follow(("off", "sample", "all"), lambda: next(modes))
    [family] = (each for each in registry.collect() if each.name == "notegrade_explanation_mode")
    assert [sample.value for sample in family.samples] == [0, 0, 1]
