from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from service.metrics import Metrics

# The names that dashboards and alerts are written against.
NAMES = {
    "request_seconds", "stage_seconds", "pair_outcomes", "pair_source", "prompt_tokens", "backlog_tokens", "service_rate_tokens", "shed",
    "cache_operations", "cache_breaker_open", "grade", "score", "label_mass", "ready", "build_info",
    "explanation_mode", "explanations", "explanation_drops", "explanation_agreement", "explanation_seconds",
    "explanation_tokens", "explanation_queue", "tasks", "connections", "refused_connections",
}  # fmt: skip


def test_names_are_those_of_the_contract() -> None:
    registry = CollectorRegistry()
    families = text_string_to_metric_families(Metrics(registry).render()[0].decode())
    names = {family.name for family in families if not family.name.endswith("_created")}
    assert names == {f"notegrade_{name}" for name in NAMES}
