"""Each alert is tested, documented and uses existing metrics; some are sent end to end."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from load_tests.processes import free_port
from service.contract.checkpoint import Checkpoint
from service.contract.prompt import Note
from tests.deploy.haproxy_rig import BY_QUERY, answered, replica_addresses, routed
from tests.deploy.prometheus_metrics import OF_HAPROXY, our_metrics, process_metrics, unknown_labels
from tests.deploy.prometheus_rig import (
    ALERTMANAGER_FILE,
    PROMETHEUS_FILES,
    RULES,
    RUNBOOK_PREFIX,
    RUNBOOKS,
    alertmanager,
    metric_names,
    prometheus,
    read,
    rules,
    run_runbook,
    run_tool,
    runbook_of,
    webhook,
)
from tests.processes import ROOT
from tests.redis_server import RedisServer
from tests.served import served
from tests.waiting import wait_until

RULE_TESTS = sorted((PROMETHEUS_FILES / "tests").glob("*.yaml"))
ALERTS = rules("alert")


def test_prometheus_accepts_its_files() -> None:
    run_tool("promtool", "check", "config", PROMETHEUS_FILES / "prometheus.yml")
    run_tool("promtool", "check", "rules", "--lint=all", "--lint-fatal", *RULES)


def test_alertmanager_accepts_its_file() -> None:
    run_tool("amtool", "check-config", ALERTMANAGER_FILE)


@pytest.mark.parametrize("path", RULE_TESTS, ids=lambda path: path.name)
def test_rules_fire_and_resolve_as_their_tests_say(path: Path) -> None:
    run_tool("promtool", "test", "rules", path)


def test_every_alert_has_a_test_that_sees_it_silent_firing_and_silent_again() -> None:
    seen = {}
    # Cases with other names are about several alerts.
    for case in [case for path in RULE_TESTS for case in read(path)["tests"] if case["name"] in ALERTS]:
        checks = [each for each in case["promql_expr_test"] if 'alertstate="firing"' in each["expr"]]
        seen[case["name"]] = [_expects(each, case["name"]) for each in checks]
    assert seen == {name: [False, True, False] for name in ALERTS}


def _expects(check: dict[str, Any], alert: str) -> bool:
    samples = check.get("exp_samples", [])
    return any(alert in check["expr"] or alert in sample["labels"] for sample in samples)


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_has_a_summary_and_a_runbook(name: str) -> None:
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in ("page", "ticket")
    assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
    assert "irst " in alert["annotations"]["description"], "it must say what to do first"
    runbook = (ROOT / runbook_of(alert)[0]).read_text(encoding="utf-8")
    assert f"`{name}`" in runbook
    assert "In Kubernetes: " in runbook
    assert "](README.md)" in runbook
    assert re.findall(r"^## (.*)$", runbook, re.MULTILINE) == ["Cause", "Check", "Action"]
    assert f"| `{name}` |" in (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def test_the_label_for_the_repository_is_dropped_from_alerts() -> None:
    label = RUNBOOK_PREFIX.strip("{} ").removeprefix("$externalLabels.")
    [dropped] = read(PROMETHEUS_FILES / "prometheus.yml")["alerting"]["alert_relabel_configs"]
    assert dropped == {"action": "labeldrop", "regex": label}
    assert f"`{label}`" in (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def test_every_aggregation_is_by_namespace() -> None:
    for path in RULES:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\b(sum|max|min|avg|count) ?\(", text), path.name
        sets = re.findall(r"\b(?:by|on) \(([^)]*)\)", text)
        assert all({"job", "namespace"} <= set(labels.split(", ")) for labels in sets), path.name


def test_runbooks_and_operations_name_only_existing_alerts() -> None:
    for path in [*RUNBOOKS.glob("*.md"), ROOT / "docs" / "operations.md"]:
        named = set(re.findall(r"`(Notegrade\w+)`", path.read_text(encoding="utf-8")))
        assert named <= set(ALERTS), path.name


def test_alertmanager_names_only_existing_alerts() -> None:
    text = ALERTMANAGER_FILE.read_text(encoding="utf-8")
    groups = re.findall(r"Notegrade\(([^)]*)\)", text)
    in_groups = {f"Notegrade{name}" for group in groups for name in group.split("|")}
    named = in_groups | set(re.findall(r"Notegrade\w+", text))
    assert len(named) > 10
    assert named <= set(ALERTS)


def test_the_objectives_are_recorded_in_every_window() -> None:
    """Burn-rate rules must differ only in their window."""
    for objective in ("errors", "slow"):
        shapes = {}
        for name, rule in rules("record").items():
            if window := re.fullmatch(rf"job:notegrade_{objective}:ratio_rate(\w+)", name):
                shapes[window[1]] = rule["expr"].replace(f"[{window[1]}]", "[]")
        assert set(shapes) == {"5m", "30m", "1h", "6h", "3d"}
        assert len(set(shapes.values())) == 1


@pytest.mark.parametrize(
    "rule", [*ALERTS.values(), *rules("record").values()], ids=lambda rule: next(iter(rule.values()))
)
def test_rules_use_existing_metrics(rule: dict[str, Any]) -> None:
    known = {*our_metrics(), *process_metrics(), *rules("record"), *OF_HAPROXY, "up"}
    names = metric_names(rule["expr"])
    assert names
    assert names <= known
    assert not unknown_labels(rule["expr"])


def test_inhibition_suppresses_consequences_and_never_what_callers_see(tmp_path: Path) -> None:
    """Send many alerts to a real Alertmanager at once, and compare which ones it suppresses."""
    sent = {
        "NotegradeNotReady": {"instance": "a"},
        "NotegradeLatencyBurnFast": {},
        "NotegradeErrorsBurnFast": {},
        "NotegradeErrorsBurnMedium": {},
        "NotegradeErrorsBurnSlow": {},
        "NotegradeShedding": {},
        "NotegradeTasksGrowing": {"instance": "a"},
    }
    alerts = [_alert(name, job="notegrade", **labels) for name, labels in sent.items()]
    # Other jobs, which the alerts above do not concern. In the job `late` one replica of many is down, yet all are slow.
    alerts += [
        _alert("NotegradeShedding", job="other"),
        _alert("NotegradeLatencyBurnFast", job="late"),
        _alert("NotegradeLatencyBurnSlow", job="late"),
        _alert("NotegradeTargetDown", job="late", instance="a"),
        _alert("NotegradeGuardTripped", job="guarded", instance="a"),
        _alert("NotegradeGuardBreached", job="guarded", instance="b"),
    ]
    alerts += [_alert("NotegradeEngineLost", job="third", instance="a")]
    alerts += [_alert("NotegradeNotReady", job="third", instance=instance) for instance in "ab"]
    # The same job in two namespaces.
    alerts += [
        _alert("NotegradeTargetDown", job="cluster", namespace="staging", instance="a"),
        _alert("NotegradeErrorsBurnFast", job="cluster", namespace="staging"),
        *(
            _alert(name, job="cluster", namespace=namespace)
            for name in ("NotegradeShedding", "NotegradeErrorsBurnSlow")
            for namespace in ("staging", "prod")
        ),
    ]
    with alertmanager(tmp_path) as address:
        url = f"http://{address}/api/v2/alerts"
        assert httpx.post(url, json=alerts).status_code == 200

        def suppressed() -> set[tuple[str, ...]]:
            return {
                tuple(each["labels"].get(name, "") for name in ("job", "alertname", "instance", "namespace"))
                for each in httpx.get(url).json()
                if each["status"]["state"] == "suppressed"
            }

        expected = {
            ("notegrade", "NotegradeErrorsBurnMedium", "", ""),
            ("notegrade", "NotegradeErrorsBurnSlow", "", ""),
            ("notegrade", "NotegradeShedding", "", ""),
            ("late", "NotegradeLatencyBurnSlow", "", ""),
            ("guarded", "NotegradeGuardBreached", "b", ""),
            ("third", "NotegradeNotReady", "a", ""),
            ("cluster", "NotegradeShedding", "", "staging"),
            ("cluster", "NotegradeErrorsBurnSlow", "", "staging"),
        }
        # Alertmanager processes alerts one by one, so its first answers may lack some.
        wait_until(lambda: suppressed() >= expected)
        assert suppressed() == expected


def _alert(name: str, **labels: str) -> dict[str, Any]:
    ends = datetime.now(UTC) + timedelta(hours=1)
    return {"labels": {"alertname": name, **ALERTS[name]["labels"], **labels}, "endsAt": ends.isoformat()}


@pytest.mark.redis
def test_a_real_fault_is_notified_and_resolved(
    checkpoint: Checkpoint, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Redis dies: Prometheus notices, and Alertmanager notifies the receiver of tickets; again when Redis is back."""
    settings: dict[str, Any] = {
        "redis_url": redis_server.url,
        "redis_timeout_ms": 5000,  # on a busy machine a healthy Redis may be slow
        "breaker_failures": 1,
        "breaker_open_s": 0.5,
    }
    with (
        webhook() as receiver,
        alertmanager(tmp_path, receiver.url) as address,
        served(checkpoint, engine_lost_exit_s=60, **settings) as service,
        prometheus(
            tmp_path,
            service.url.removeprefix("http://"),
            alertmanager=address,
            # The deployed rule waits five minutes, so as not to bother people.
            hurried=["NotegradeBreakerOpen"],
        ) as watching,
    ):
        wait_until(lambda: watching.value("notegrade_cache_breaker_open") == 0)
        redis_server.kill()
        wait_until(lambda: bool(receiver.has("firing", alertname="NotegradeBreakerOpen")))
        path, alert = receiver.has("firing", alertname="NotegradeBreakerOpen")[0]
        instance = service.url.removeprefix("http://")
        assert path == "/tickets"
        assert alert["annotations"]["summary"] == f"{instance} does not use Redis: its breaker is open"
        assert not receiver.has("resolved", alertname="NotegradeBreakerOpen")
        redis_server.start()
        wait_until(lambda: bool(receiver.has("resolved", alertname="NotegradeBreakerOpen")), within_s=60)
        # No other alert fires: the replica is otherwise healthy.
        assert {alert["labels"]["alertname"] for _, alert in receiver.received} == {"NotegradeBreakerOpen"}
        service.stack.readiness.set("engine_lost", "a test")
        wait_until(lambda: bool(receiver.has("firing", alertname="NotegradeEngineLost")))
        assert receiver.has("firing", alertname="NotegradeEngineLost")[0][0] == "/pager"


def test_the_router_s_own_errors_are_notified_and_those_of_replicas_are_not(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """HAProxy has one replica: first it fails a request, then it is down. The runbook's commands must then find something."""
    firing = 'ALERTS{alertname="NotegradeRouterErrors", alertstate="firing"}'
    with served(checkpoint) as service:
        replica = service.url.removeprefix("http://")
        where = replica_addresses([replica, *(f"127.0.0.1:{free_port()}" for _ in range(2))])
        with (
            routed(tmp_path, BY_QUERY, where) as router,
            prometheus(
                tmp_path,
                replica,
                router=httpx.URL(router.metrics_url).netloc.decode(),
                hurried=["NotegradeRouterErrors"],
            ) as watching,
        ):
            assert set(re.findall(r"^(\w+)", httpx.get(router.metrics_url).text, re.MULTILINE)) >= OF_HAPROXY
            wait_until(lambda: router.is_up("replica1"))
            watching.wait_for_scrapes()
            answered(router.score("bars"))
            renderer = service.stack.checkpoint.renderer
            [prompt] = renderer.render("a bad one", [Note("", "Note 0.")], renderer.default_criteria)
            service.engine.fail_on(prompt.token_ids)
            assert router.score("a bad one").status_code == 500
            of_replicas = 'sum(increase(haproxy_server_http_responses_total{code="5xx"}[1m]))'
            wait_until(lambda: (watching.value(of_replicas) or 0) > 0)
            watching.wait_for_scrapes()
            assert watching.value("job_proxy:notegrade_router_errors:ratio_rate5m") == 0
            assert watching.value(firing) is None

            service.stack.readiness.set("draining", "a test")
            wait_until(lambda: not router.is_up("replica1"))
            assert router.score("bars").status_code == 503
            wait_until(lambda: watching.value(firing) == 1, within_s=60)
            assert set(watching.values(firing, "proxy")) == {"replicas"}
            run_runbook(RUNBOOKS / "router.md", PROMETHEUS_URL=watching.url)
