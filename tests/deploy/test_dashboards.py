"""Every query of a dashboard and command of a runbook runs against a real Prometheus that scrapes a service on a fake engine."""

import re
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import ProcessCollector

from deploy.grafana.draw_dashboard import Window, draw
from deploy.grafana.make_dashboards import DASHBOARDS, FOLDER, text
from service.contract.checkpoint import Checkpoint
from service.contract.prompt import Note
from tests.checkpoints import load_tiny
from tests.deploy.dashboard_queries import (
    OF_VLLM,
    dashboard,
    empty_queries,
    queries,
    remember_yesterday,
    turn_on_explanations,
)
from tests.deploy.prometheus_metrics import our_metrics, process_metrics, unknown_labels, vllm_metrics
from tests.deploy.prometheus_rig import (
    Prometheus,
    metric_names,
    prometheus,
    read,
    rules,
    run_runbook,
    runbook_of,
)
from tests.processes import ROOT, output_of
from tests.redis_server import RedisServer
from tests.served import Served, served
from tests.waiting import wait_until

TRACE = 'topic: query "{cited}" => 3\nconstraints: nothing => {grade}\n'


@dataclass
class Rig:
    """Holds the service with traffic since `begun`, and the Prometheus that scrapes it."""

    service: Served
    watching: Prometheus
    begun: float


@pytest.fixture(scope="module")
def rig(checkpoint: Checkpoint, redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Run some rounds of everything that the dashboards draw: a counter needs two scrapes to have a rate."""
    folder = tmp_path_factory.mktemp("prometheus")
    # The fake engine's grades depend on the prompt, so these differ.
    criteria = [{"name": "general-1", "text": "Grade it otherwise."}]
    candidate = load_tiny(folder / "candidate", criteria=criteria)
    redis = RedisServer(redis_binary)
    settings: dict[str, Any] = {
        "redis_url": redis.url,
        # As in Kubernetes, operators have their own port; the runbooks' commands use it.
        "admin_port": 0,
        "engine_max_batched_tokens": 32,  # a small backlog fills the batch, so that a rate is measured
        "max_backlog_tokens": 1000,
        "explanation_queue": 2,
        "explanation_workers": 1,
        "explanation_tokens_per_s": 1e6,
        "guard_backlog_share": 1.0,  # explanation mode stays on, however slow this machine is
        "guard_p99_ms": 600_000,
    }
    with (
        redis,
        served(candidate) as shadow,
        served(checkpoint, shadow_url=shadow.url, shadow_rate=1.0, **settings) as service,
    ):
        # `notegrade serve` has process metrics; this registry starts empty.
        ProcessCollector(registry=service.registry)
        target = service.private_url.removeprefix("http://")
        remember_yesterday(folder, target)
        with prometheus(folder, target) as watching, ThreadPoolExecutor(16) as pool:
            wait_until(lambda: watching.value("up") == 1)
            begun = time.time()
            turn_on_explanations(service.private_url, "all")
            for number in range(3):
                _round(service, pool, number)
                watching.wait_for_scrapes()
            yield Rig(service, watching, begun)


def _round(service: Served, pool: ThreadPoolExecutor, number: int) -> None:
    """Send requests that are scored, cached, shed, failed and refused, reranks, and explanations that are made and dropped."""

    def ask(query: str, notes: int, **more: Any) -> httpx.Response:
        bodies = [{"id": str(note), "body": f"{note} quiet cafes"} for note in range(notes)]
        body = {"query": f"{query} {number}", "notes": bodies, "deadline_ms": 60_000, **more}
        return httpx.post(f"{service.url}/score", json=body, timeout=60)

    engine, renderer = service.engine, service.stack.checkpoint.renderer
    served_grade = ask("cafes", 1).json()["results"][0]["grade"]
    for grade, cited in ((served_grade, "cafes"), ((served_grade + 1) % 4, "bars")):
        trace = service.stack.checkpoint.tokenizer.encode_user_texts([TRACE.format(cited=cited, grade=grade)])
        engine.trace = trace[0].token_ids
        [result] = ask("cafes", 1, explain=True).json()["results"]
        assert result["explanation"]["agrees"] is (grade == served_grade)
        assert result["explanation"]["grounded"] is (cited == "cafes")
    assert ask("cafes", 6, explain=True).status_code == 200  # more explanations than the queue holds
    documents = {"query": f"bars {number}", "documents": ["A quiet cafe.", "A loud bar."]}
    assert httpx.post(f"{service.url}/rerank", json=documents).status_code == 200
    assert ask("cafes", 1, criteria="none of these").status_code == 422
    [prompt] = renderer.render(f"a bad one {number}", [Note("", "0 quiet cafes")], renderer.default_criteria)
    engine.fail_on(prompt.token_ids)
    assert ask("a bad one", 1).status_code == 500

    engine.hold()
    full = pool.submit(ask, "too much", 64)
    wait_until(lambda: engine.in_flight > 4)
    # Longer pairs, so that none of them fits into the rest of the backlog.
    assert ask("one more of them, and a long one at that", 8).status_code == 503
    time.sleep(0.6)  # a rate is measured only after this long under load
    engine.let_go()
    assert full.result().status_code == 200


def test_the_files_match_the_script() -> None:
    for name in DASHBOARDS:
        assert (FOLDER / f"{name}.json").read_text(encoding="utf-8") == text(name)
    assert {path.stem for path in FOLDER.glob("*.json")} == set(DASHBOARDS)


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_have_unique_ids_and_do_not_overlap(name: str) -> None:
    panels = dashboard(name)["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_queries_use_existing_metrics() -> None:
    known = {*our_metrics(), *process_metrics(), *rules("record"), *OF_VLLM}
    for query in queries():
        names = metric_names(query.filled_in)
        assert names, query
        assert names <= known, query
        assert not unknown_labels(query.filled_in), query


def test_the_engine_s_metrics_exist_in_vllm() -> None:
    assert vllm_metrics() >= OF_VLLM


def test_every_metric_of_ours_is_on_a_dashboard() -> None:
    drawn = set().union(*(metric_names(query.filled_in) for query in queries()))
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in our_metrics()}
    assert families <= {re.sub(r"_(bucket|sum|count)$", "", name) for name in drawn}


def test_provisioning_matches_prometheus_and_the_docs() -> None:
    provisioning = ROOT / "deploy" / "grafana" / "provisioning"
    [source] = read(provisioning / "datasources" / "prometheus.yaml")["datasources"]
    scraped = read(ROOT / "deploy" / "prometheus" / "prometheus.yml")["global"]["scrape_interval"]
    assert (source["type"], source["jsonData"]["timeInterval"]) == ("prometheus", scraped)
    [provider] = read(provisioning / "dashboards" / "notegrade.yaml")["providers"]
    assert provider["options"]["path"] in (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


@pytest.mark.redis
@pytest.mark.parametrize("name", DASHBOARDS)
def test_no_panel_is_empty(rig: Rig, name: str) -> None:
    # The fake engine has none of vLLM's metrics: their queries must at least be valid PromQL.
    of_vllm = [query for query in queries() if query.dashboard == name and query.is_of_vllm]
    assert empty_queries(name, rig.watching, rig.begun, time.time()) == of_vllm


@pytest.mark.redis
def test_panels_draw_the_generated_traffic(rig: Rig) -> None:
    """Check each label value of the legends: a total would look right even with half of them missing."""

    def legends(panel: str, label: str) -> set[str]:
        [query] = [query for query in queries() if query.panel == panel]
        return {
            each["metric"][label] for each in rig.watching.series(query.filled_in, rig.begun, time.time())
        }

    assert legends("Scoring requests by status", "status") == {"200", "422", "500", "503", "504"}
    assert legends("Pairs by outcome", "outcome") == {"scored", "shed", "failed", "deadline_exceeded"}
    assert legends("Pairs by source", "source") >= {"engine", "local"}
    assert legends("Pairs shed by reason", "reason") >= {"backlog"}
    assert legends("Errors: share of the scoring requests", "status") == {"500", "503", "504"}
    assert legends("Stages: p99", "stage") == {"cache", "render", "queue", "engine"}
    assert legends("Hits: share of the pairs looked up", "tier") == {"local", "redis"}
    assert legends("Explanations by outcome", "outcome") >= {"well_formed", "dropped"}
    assert legends("Dropped explanations by reason", "reason") >= {"queue_full"}
    assert legends("Agreement with the served grade", "agrees") == {"true", "false"}
    assert legends("Truth of the citations", "grounded") == {"true", "false"}
    assert legends("Mirrored requests by outcome", "outcome") == {"compared", "failed", "dropped"}
    changes = legends("Pairs whose grade changes", "served"), legends("Pairs whose grade changes", "shadow")
    assert all(len(grades) > 1 for grades in changes)
    # Yesterday all grades were 0, today they are not.
    drift = rig.watching.value("job:notegrade_grade:drift1d")
    assert drift is not None
    assert 0 < drift <= 1


@pytest.mark.redis
def test_the_share_of_kept_grades_equals_the_service_s_own_figure(rig: Rig) -> None:
    rig.watching.wait_for_scrapes()
    [query] = [query for query in queries() if query.panel == "Pairs that keep their grade"]
    since_the_start = re.sub(r"rate\((.*?)\[5s\]\)", r"\1", query.filled_in)
    counted = httpx.get(f"{rig.service.private_url}/admin/shadow").json()["comparison"]["same_grade"]["mean"]
    assert 0 < counted < 1
    assert rig.watching.value(since_the_start) == pytest.approx(counted)


@pytest.mark.redis
def test_a_replica_s_first_burst_of_errors_has_a_rate(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Even if the burst came between two scrapes: Prometheus does not count a series' first value as an increase."""
    refused = 'sum(increase(notegrade_request_seconds_count{route="/score", status=~"5.."}[1m]))'
    with served(checkpoint) as service, prometheus(tmp_path, service.url.removeprefix("http://")) as watching:
        wait_until(lambda: watching.value("up") == 1)
        watching.wait_for_scrapes()
        service.stack.readiness.set("probe_mismatch", "a test")
        body = {"query": "cafes", "notes": [{"id": "n", "body": "A quiet cafe."}]}
        for _ in range(20):
            assert httpx.post(f"{service.url}/score", json=body, timeout=60).status_code == 503
        watching.wait_for_scrapes()
        assert (watching.value(refused) or 0) > 15  # extrapolated from the scrapes, so not exactly 20


@pytest.mark.redis
@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_s_picture_shows_every_panel(rig: Rig, name: str) -> None:
    window = Window(rig.begun, time.time(), "5s")
    figure = draw(dashboard(name), rig.watching.url, window)
    panels = [panel for panel in dashboard(name)["panels"] if panel["type"] != "row"]
    assert [axes.get_title(loc="left") for axes in figure.axes] == [panel["title"] for panel in panels]
    empty = {query.panel for query in queries() if query.is_of_vllm}
    for axes in figure.axes:
        if axes.get_title(loc="left") not in empty:
            assert [words.get_text() for words in axes.texts] == []
            assert axes.lines or axes.collections
    if name == "scoring":
        [by_status] = [a for a in figure.axes if a.get_title(loc="left") == "Scoring requests by status"]
        assert {"200", "422", "500", "503", "504"} == set(by_status.get_legend_handles_labels()[1])


@pytest.mark.redis
def test_the_script_draws_a_picture(rig: Rig, tmp_path: Path) -> None:
    out = tmp_path / "scoring.png"
    options = ["--prometheus", rig.watching.url, "--minutes", "2", "--rate", "5s", "--out", str(out)]
    output_of(sys.executable, "deploy/grafana/draw_dashboard.py", "scoring", *options, within_s=120)
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.redis
@pytest.mark.parametrize("name", DASHBOARDS)
def test_variables_list_jobs_and_instances(rig: Rig, name: str) -> None:
    asked = [each["query"] for each in dashboard(name)["templating"]["list"] if each["type"] == "query"]
    found = {}
    for query in asked:
        matched = re.fullmatch(r"label_values\((.*), (\w+)\)", query)
        assert matched, query
        series = rig.watching.ask("series", **{"match[]": matched[1].replace("$job", ".+")})
        found[matched[2]] = {each[matched[2]] for each in series}
    assert found == {"job": {"notegrade"}, "instance": {rig.service.private_url.removeprefix("http://")}}


@pytest.mark.redis
def test_the_commands_of_the_alerts_runbooks_print_results(rig: Rig) -> None:
    """test_alerts.py runs router.md beside a router, end_to_end/test_runbooks.py runs explanations.md."""
    for name in sorted({runbook_of(alert)[0] for alert in rules("alert").values()}):
        if not name.endswith("/router.md"):
            run_runbook(ROOT / name, NOTEGRADE_URL=rig.service.private_url, PROMETHEUS_URL=rig.watching.url)
