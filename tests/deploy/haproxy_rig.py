"""Runs a real HAProxy on free ports, with the files in deploy/routing."""

import hashlib
import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from load_tests.processes import free_port
from tests.processes import ROOT
from tests.tools import HAPROXY, require
from tests.waiting import is_ready, wait_until

ROUTING = ROOT / "deploy" / "routing"
BY_QUERY = (ROUTING / "by_query.cfg").read_text(encoding="utf-8")
EXPERIMENT = (ROUTING / "experiment.cfg").read_text(encoding="utf-8")


@dataclass
class Router:
    """Sends requests through a running HAProxy."""

    client: httpx.Client
    metrics_url: str
    servers: tuple[str, ...]

    def score(
        self, query: str, notes: int = 1, padding: int = 0, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        texts = [f"Note {number}." + "x" * padding for number in range(notes)]
        bodies = [{"id": str(number), "body": text} for number, text in enumerate(texts)]
        body = {"query": query, "notes": bodies, "deadline_ms": 60_000}
        return self.client.post("/score", json=body, headers=headers)

    def replica_of(self, query: str, notes: int = 1) -> str:
        """Return the replica that scores the query when the caller sends its hash."""
        return answered(self.score(query, notes, headers=hashed(query))).headers["x-replica"]

    def is_up(self, server: str) -> bool:
        is_up = rf'^haproxy_server_status{{proxy="\w+",server="{server}",state="UP"}} 1'
        return re.search(is_up, httpx.get(self.metrics_url).text, re.MULTILINE) is not None

    def open_on(self, server: str) -> int:
        """Return the number of requests that the server has not answered yet."""
        sessions = rf'^haproxy_server_current_sessions{{proxy="\w+",server="{server}"}} (\d+)'
        [found] = re.findall(sessions, httpx.get(self.metrics_url).text, re.MULTILINE)
        return int(found)

    def wait_for(self, *, down: str | None = None) -> None:
        """Wait until all servers are up, except one."""
        wait_until(lambda: all(self.is_up(server) == (server != down) for server in self.servers))


def hashed(query: str) -> dict[str, str]:
    """Return the header that routes equal queries to one replica."""
    return {"X-Query-Hash": hashlib.sha256(query.encode()).hexdigest()}


def answered(response: httpx.Response) -> httpx.Response:
    assert response.status_code == 200, response.text
    assert all(result["outcome"] == "scored" for result in response.json()["results"])
    return response


def replica_addresses(addresses: Iterable[str]) -> dict[str, str]:
    """Return the variables that tell by_query.cfg where the replicas are."""
    return {f"REPLICA_{number}": address for number, address in enumerate(addresses, 1)}


@contextmanager
def routed(folder: Path, config: str, environment: Mapping[str, str]) -> Iterator[Router]:
    """Run HAProxy with defaults.cfg and that configuration."""
    port, metrics_port = free_port(), free_port()
    (folder / "routing.cfg").write_text(config)
    command = [
        require(HAPROXY),
        "-db",
        "-f",
        str(ROUTING / "defaults.cfg"),
        "-f",
        str(folder / "routing.cfg"),
    ]
    listening = {"LISTEN": f"127.0.0.1:{port}", "METRICS_LISTEN": f"127.0.0.1:{metrics_port}"}
    with (folder / "haproxy.log").open("wb") as log:
        process = subprocess.Popen(
            command, env={**os.environ, **environment, **listening}, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        metrics_url = f"http://127.0.0.1:{metrics_port}/metrics"
        wait_until(lambda: process.poll() is not None or is_ready(metrics_url))
        assert process.poll() is None, "HAProxy has exited"
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            servers = tuple(re.findall(r"^ +server (\S+)", config, re.MULTILINE))
            yield Router(client, metrics_url, servers)
    finally:
        process.kill()
        process.wait()
    written = (folder / "haproxy.log").read_text()
    assert "cafes" not in written, "queries are private"
