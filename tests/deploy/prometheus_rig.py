"""Runs a real Prometheus and a real Alertmanager on free ports, with the files in deploy/."""

import json
import os
import re
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import yaml  # type: ignore[import-untyped]  # it comes with vLLM, its stubs don't

from load_tests.processes import free_port
from tests.http_server import receiving
from tests.processes import ROOT, output_of, run
from tests.tools import CURL, PROMETHEUS, require
from tests.waiting import is_ready, wait_until

PROMETHEUS_FILES = ROOT / "deploy" / "prometheus"
RULES = sorted((PROMETHEUS_FILES / "rules").glob("*.yaml"))
ALERTMANAGER_FILE = ROOT / "deploy" / "alertmanager" / "alertmanager.yml"
RUNBOOKS = ROOT / "deploy" / "runbooks"
OFTEN = "500ms"
# The prefix of a runbook's path in `runbook_url`: an external label of Prometheus, empty where it is not set.
RUNBOOK_PREFIX = "{{ $externalLabels.notegrade_repository }}"


@cache
def tools() -> Path:
    """Return the folder with prometheus, promtool, alertmanager and amtool."""
    return Path(require(PROMETHEUS)).parent


def run_tool(tool: str, *arguments: str | Path) -> str:
    """Run the tool and return its output. Fails unless it exits with 0."""
    return output_of(tools() / tool, *arguments)


def query_case(query: str, series: Mapping[str, str], *expected: tuple[str, float]) -> dict[str, Any]:
    """Make a test of the query's values, by labels, after ten minutes with four scrapes per minute of these series."""
    samples = [{"labels": labels, "value": value} for labels, value in expected]
    return {
        "interval": "15s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": query, "eval_time": "10m", "exp_samples": samples}],
    }


def run_query_cases(folder: Path, *cases: dict[str, Any]) -> None:
    """Evaluate the cases by promtool; the folder gets its file."""
    (folder / "queries.test.yaml").write_text(yaml.safe_dump({"tests": cases}))
    run_tool("promtool", "test", "rules", folder / "queries.test.yaml")


def read(path: Path) -> Any:
    """Load a YAML file."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def rules(kind: str) -> dict[str, dict[str, Any]]:
    """Return all rules of the kind, `alert` or `record`, by name."""
    found = [rule for path in RULES for group in read(path)["groups"] for rule in group["rules"]]
    named = [rule for rule in found if kind in rule]
    assert len({rule[kind] for rule in named}) == len(named), "two rules have the same name"
    return {rule[kind]: rule for rule in named}


def runbook_of(alert: dict[str, Any]) -> tuple[str, str]:
    """Return the path of the alert's runbook in the repository, and the anchor, which may be empty."""
    url: str = alert["annotations"]["runbook_url"]
    assert url.startswith(RUNBOOK_PREFIX), url
    path, _, anchor = url.removeprefix(RUNBOOK_PREFIX).partition("#")
    return path, anchor


def commands_of(page: Path) -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def run_runbook(page: Path, **environment: str) -> None:
    """Run the page's commands exactly as written. Each must print something, because there is something to find."""
    found = commands_of(page)
    assert found, page.name
    require(CURL)
    environment |= {"PATH": f"{tools()}:{os.environ['PATH']}"}
    with ThreadPoolExecutor(2) as pool:
        ran = pool.map(lambda command: run("bash", "-euc", command, within_s=60, **environment), found)
        for command, done in zip(found, ran, strict=True):
            assert done.returncode == 0, f"{page.name}: {command}{done.stderr}"
            assert done.stdout.strip(), f"{page.name}: {command}printed nothing"


def metric_names(query: str) -> set[str]:
    """Return the metrics that a query reads: its words except keywords, functions, labels, strings and durations."""
    query = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^\]]*\]', " ", query)
    query = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", query)
    words = re.findall(r"(?<![\w:.$])[a-zA-Z_:][\w:]*+(?!\s*\()", query)
    return set(words) - {"and", "or", "unless", "offset", "bool", "group_left", "group_right", "by", "on"}


@dataclass
class Prometheus:
    """Asks a running Prometheus."""

    url: str

    def ask(self, path: str, **parameters: Any) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=30).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def series(self, query: str, start: float, end: float) -> list[dict[str, Any]]:
        """Return the query's series over the time, with labels and values; NaN is left out."""
        found = self.ask("query_range", query=query, start=start, end=end, step=1)["result"]
        for each in found:
            each["values"] = [value for _, value in each["values"] if value != "NaN"]
        return [each for each in found if each["values"]]

    def value(self, query: str) -> float | None:
        found = self.ask("query", query=query)["result"]
        return float(found[0]["value"][1]) if found else None

    def values(self, query: str, label: str) -> dict[str, float]:
        """Return the current value of each of the query's series, by a label."""
        found = self.ask("query", query=query)["result"]
        return {each["metric"][label]: float(each["value"][1]) for each in found}

    def wait_for_scrapes(self) -> None:
        """Wait until every target that is up was scraped twice from now on, and the rules were evaluated."""
        for _ in range(3):
            now = time.time()
            wait_until(lambda now=now: (self.value("min(timestamp(notegrade_tasks))") or 0) > now)  # type: ignore[misc]


@contextmanager
def prometheus(
    folder: Path,
    *targets: str,
    router: str | None = None,
    alertmanager: str = "127.0.0.1:9",
    hurried: Collection[str] = (),
    wait: str = "1s",
) -> Iterator[Prometheus]:
    """Run a Prometheus on the targets, and HAProxy's exporter at `router`, with the deployed configuration but short intervals.

    The `for` of the hurried alerts is shortened to `wait`.
    """
    config = read(PROMETHEUS_FILES / "prometheus.yml")
    config["global"] |= {"scrape_interval": OFTEN, "scrape_timeout": OFTEN, "evaluation_interval": OFTEN}
    for job, found in (("notegrade", list(targets)), ("notegrade-router", [router] if router else [])):
        [scraped] = [each for each in config["scrape_configs"] if each["job_name"] == job]
        scraped["static_configs"][0]["targets"] = found
    config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [alertmanager]
    (folder / "rules").mkdir()
    for path in RULES:
        rules = _hurry(read(path), hurried, wait)
        (folder / "rules" / path.name).write_text(yaml.safe_dump(rules), encoding="utf-8")
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    url = f"127.0.0.1:{free_port()}"
    files = (f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}")
    with _running("prometheus", url, folder, *files, "--storage.tsdb.retention.time=15d"):
        yield Prometheus(f"http://{url}")


def _hurry(content: dict[str, Any], alerts: Collection[str], wait: str) -> dict[str, Any]:
    for rule in [rule for group in content["groups"] for rule in group["rules"]]:
        if "for" in rule and rule["alert"] in alerts:
            rule["for"] = wait
    return content


@contextmanager
def alertmanager(folder: Path, receiver_url: str | None = None) -> Iterator[str]:
    """Run an Alertmanager; yields its address. It posts to the receiver, if any, without waiting for more alerts."""
    content = ALERTMANAGER_FILE.read_text(encoding="utf-8")
    if receiver_url:
        content = re.sub(r"\b(group_wait|group_interval): \w+", r"\1: 1s", content)
        content = content.replace("http://127.0.0.1:9095", receiver_url)
    config = folder / "alertmanager.yml"
    config.write_text(content, encoding="utf-8")
    url = f"127.0.0.1:{free_port()}"
    files = (f"--config.file={config}", f"--storage.path={folder / 'alertmanager'}")
    with _running("alertmanager", url, folder, *files, "--cluster.listen-address="):
        yield url


@contextmanager
def _running(tool: str, address: str, folder: Path, *options: str) -> Iterator[None]:
    log = folder / f"{tool}.log"
    command = [str(tools() / tool), f"--web.listen-address={address}", *options]
    with log.open("w") as written, subprocess.Popen(command, stdout=written, stderr=written) as process:
        try:
            wait_until(lambda: process.poll() is not None or is_ready(f"http://{address}/-/ready"))
            assert process.poll() is None, log.read_text(encoding="utf-8")
            yield
        finally:
            process.terminate()


@dataclass
class Webhook:
    """Receives what Alertmanager posts: `received` holds each alert with the path that it was posted to."""

    url: str
    received: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def has(self, status: str, **labels: str) -> list[tuple[str, dict[str, Any]]]:
        """Return the received alerts with that status and at least these labels."""
        return [
            (path, alert)
            for path, alert in list(self.received)
            if alert["status"] == status and labels.items() <= alert["labels"].items()
        ]


@contextmanager
def webhook() -> Iterator[Webhook]:
    def receive(path: str, body: bytes) -> int:
        receiver.received += [(path, alert) for alert in json.loads(body)["alerts"]]
        return 200

    with receiving(receive) as url:
        receiver = Webhook(url)
        yield receiver
