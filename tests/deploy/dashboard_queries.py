"""Reads the queries of the dashboards in deploy/grafana, and makes the data that they need."""

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from deploy.grafana.make_dashboards import DASHBOARDS, FOLDER
from tests.deploy.prometheus_rig import Prometheus, run_tool

# The fake engine has none of these. Tests with it check their names against vLLM's source only.
OF_VLLM = {
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:prefix_cache_hits_total",
    "vllm:prefix_cache_queries_total",
}
DAY_S = 86_400


@dataclass(frozen=True)
class Query:
    """Holds a panel's query, with Grafana's variables."""

    dashboard: str
    panel: str
    text: str
    legend: str

    @property
    def is_of_vllm(self) -> bool:
        return "vllm:" in self.text

    @property
    def filled_in(self) -> str:
        chosen = {"$__rate_interval": "5s", "$job": "notegrade", "$instance": ".+"}
        filled = self.text
        for variable, value in chosen.items():
            filled = filled.replace(variable, value)
        assert "$" not in filled, "the query has a variable that this test does not set"
        return filled


def dashboard(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return found


def queries() -> list[Query]:
    return [
        Query(name, panel["title"], target["expr"], target["legendFormat"])
        for name in DASHBOARDS
        for panel in dashboard(name)["panels"]
        for target in panel.get("targets", [])
    ]


def empty_queries(name: str, watching: Prometheus, start: float, end: float) -> list[Query]:
    """Return the dashboard's queries without data. Fails if one is not PromQL or lacks a label of its legend."""
    empty = []
    for query in [query for query in queries() if query.dashboard == name]:
        found = watching.series(query.filled_in, start, end)
        for label in re.findall(r"{{(\w+)}}", query.legend):
            assert all(label in each["metric"] for each in found), query
        if not found:
            empty.append(query)
    return empty


def remember_yesterday(folder: Path, target: str) -> None:
    """Import an hour of grades from a day ago, all of them 0, to measure drift from."""
    now = time.time()
    lines = [
        f'notegrade_grade_total{{job="notegrade",instance="{target}",grade="0"}} {second // 60} {now - DAY_S - 3600 + second}'
        for second in range(0, 7200, 60)
    ]
    (folder / "yesterday").write_text(
        "\n".join(["# TYPE notegrade_grade counter", *lines, "# EOF", ""]), encoding="utf-8"
    )
    run_tool("promtool", "tsdb", "create-blocks-from", "openmetrics", folder / "yesterday", folder / "data")


def turn_on_explanations(url: str, mode: str) -> None:
    """Flip the mode of the service, and of all replicas that share its Redis."""
    mode_url = f"{url}/admin/explanation-mode"
    etag = httpx.get(mode_url).headers["etag"]
    body = {"mode": mode, "ttl_s": 600, "reason": "to have explanations to draw"}
    assert httpx.put(mode_url, json=body, headers={"If-Match": etag}).status_code == 200
