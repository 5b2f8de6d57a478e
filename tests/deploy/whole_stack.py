"""Runs the whole stack on one machine: three replicas with vLLM, Redis, HAProxy, Prometheus and Alertmanager."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from load_tests.processes import free_port
from tests.deploy.dashboard_queries import remember_yesterday
from tests.deploy.haproxy_rig import BY_QUERY, Router, hashed, replica_addresses, routed
from tests.deploy.prometheus_rig import (
    Prometheus,
    Webhook,
    alertmanager,
    prometheus,
    rules,
    webhook,
)
from tests.end_to_end.supervised import Supervised
from tests.redis_server import RedisServer
from tests.waiting import wait_until

QUERIES = [f"quiet cafes near station {number}" for number in range(40)]
SETTINGS = {
    "OMP_NUM_THREADS": "1",  # three engines on few cores: more threads would wait for each other
    "NOTEGRADE_ENGINE_DTYPE": "float32",
    "NOTEGRADE_ENGINE_MAX_BATCHED_TOKENS": "128",  # a small backlog fills the batch, so that a rate is measured
    "NOTEGRADE_MAX_BACKLOG_TOKENS": "5000",
    "NOTEGRADE_EXPLANATION_MAX_TOKENS": "16",
    "NOTEGRADE_EXPLANATION_QUEUE": "2",
    "NOTEGRADE_EXPLANATION_WORKERS": "1",
    # On a busy machine a healthy Redis may be slow, and so may scoring.
    "NOTEGRADE_REDIS_TIMEOUT_MS": "5000",
    "NOTEGRADE_GUARD_P99_MS": "600000",
    "NOTEGRADE_GUARD_BACKLOG_SHARE": "1",
}
# These alerts keep their deployed waiting time: they would fire because of the test itself (starts, explanation mode), a slow machine,
# or random weights, which put little probability on grades. All others wait only for WAIT, so their silence means something.
UNHURRIED = {
    *("NotegradeAbsent", "NotegradeNotReady", "NotegradeExplanationsOnLong"),
    *("NotegradeBacklogHigh", "NotegradeLabelMassLow"),
    *("NotegradeLatencyBurnFast", "NotegradeLatencyBurnMedium", "NotegradeLatencyBurnSlow"),
}
WAIT = "5s"


class Answer(NamedTuple):
    """Names the replica that answered, and the source of all its scores."""

    replica: str
    source: str


@dataclass
class Stack:
    """Holds the running parts, and what was sent through HAProxy since they run."""

    replicas: dict[str, Supervised]
    router: Router
    watching: Prometheus
    receiver: Webhook
    statuses: list[int] = field(default_factory=list)
    outcomes: list[str] = field(default_factory=list)
    fingerprints: set[str] = field(default_factory=set)

    def instance(self, replica: str) -> str:
        """Return the replica's `instance` label in Prometheus."""
        return f"127.0.0.1:{self.replicas[replica].port}"

    def score(self, query: str, notes: int = 2, **more: Any) -> httpx.Response:
        bodies = [{"id": str(number), "body": f"{number} cafes and {query}"} for number in range(notes)]
        body = {"query": query, "notes": bodies, "deadline_ms": 60_000, **more}
        response = self.router.client.post("/score", json=body, headers=hashed(query))
        self.statuses.append(response.status_code)
        if response.status_code == 200:
            answer = response.json()
            self.fingerprints.add(answer["model"]["fingerprint"])
            self.outcomes += [result["outcome"] for result in answer["results"]]
        return response

    def ask_all(self) -> dict[str, Answer]:
        """Send each query once."""
        return {query: self._answer(query) for query in QUERIES}

    def _answer(self, query: str) -> Answer:
        response = self.score(query)
        assert response.status_code == 200, response.text
        [source] = {result["source"] for result in response.json()["results"]}
        return Answer(response.headers["x-replica"], source)

    def counted(self, label: str) -> dict[str, int]:
        """Return the scoring requests that the replicas have counted since they started, by a label."""
        self.watching.wait_for_scrapes()
        query = f'sum by ({label}) (notegrade_request_seconds_count{{route="/score"}}) > 0'
        return {value: round(count) for value, count in self.watching.values(query, label).items()}

    def fired(self) -> set[str]:
        """Return all alerts that have fired."""
        return set(self.watching.values('max_over_time(ALERTS{alertstate="firing"}[1h])', "alertname"))


@contextmanager
def whole_stack(checkpoint: Path, redis: RedisServer, folder: Path) -> Iterator[Stack]:
    """Run the stack; it is ready and scraped when this yields."""
    with ExitStack() as running:
        replicas = running.enter_context(_replicas(checkpoint, redis.url, folder))
        addresses = [f"127.0.0.1:{replica.port}" for replica in replicas.values()]
        router = running.enter_context(routed(folder, BY_QUERY, replica_addresses(addresses)))
        router.wait_for()
        receiver = running.enter_context(webhook())
        alerts = running.enter_context(alertmanager(folder, receiver.url))
        remember_yesterday(folder, addresses[0])
        hurried = set(rules("alert")) - UNHURRIED
        watching = running.enter_context(
            prometheus(folder, *addresses, alertmanager=alerts, hurried=hurried, wait=WAIT)
        )
        wait_until(lambda: watching.value("sum(up)") == len(addresses))
        yield Stack(replicas, router, watching, receiver)


@contextmanager
def _replicas(checkpoint: Path, redis_url: str, folder: Path) -> Iterator[dict[str, Supervised]]:
    """Run three replicas until they are ready; yields them by their names in HAProxy."""
    environment = {**SETTINGS, "NOTEGRADE_CHECKPOINT": str(checkpoint), "NOTEGRADE_REDIS_URL": redis_url}
    replicas = {}
    for name in ("replica1", "replica2", "replica3"):
        (folder / name).mkdir()
        replicas[name] = Supervised(free_port(), folder / name, environment)
    try:
        with ThreadPoolExecutor(len(replicas)) as pool:
            list(pool.map(Supervised.running, replicas.values()))
        yield replicas
    finally:
        for replica in replicas.values():
            replica.kill()
