"""Starts three replicas of the service on one Redis, with a small checkpoint and with keys for callers."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import httpx

from service.explaining.mode import ModeName
from service.http.auth import hash_key
from tests.end_to_end.service_process import TINY_STUDENT, ServiceProcess, start_service
from tests.redis_server import RedisServer

ADMIN_KEY, OTHER_ADMIN_KEY, SCORE_KEY = "admin-key", "other-admin-key", "score-key"
KEYS = f"admin:{hash_key(ADMIN_KEY)}:ann,admin:{hash_key(OTHER_ADMIN_KEY)}:bob,score:{hash_key(SCORE_KEY)}:ranker"
MODE = "/admin/explanation-mode"
# The tiny model was trained on pairs like this one; for other pairs it generates no steps.
PAIR = {
    "query": "amber chair saturday",
    "title": "large chair",
    "body": "city paris . colour red . also amber chair saturday . day friday",
}
# A low limit, so that a test can breach the guard of one replica.
GUARDED_P99_MS = 20


@dataclass
class Replicas:
    """Holds the processes and their Redis. The second one mirrors requests to the first; the guard of the last one has the low limit."""

    processes: list[ServiceProcess]
    redis: RedisServer
    clients: list[httpx.Client]

    def mode(self, replica: int = 0) -> dict[str, Any]:
        response = self.clients[replica].get(MODE)
        return {**response.json(), "etag": response.headers["etag"]}

    def flip(self, mode: str, ttl_s: float | None = 60, replica: int = 0, **changes: Any) -> httpx.Response:
        body = {"mode": mode, "reason": "a test", **({} if mode == "off" else {"ttl_s": ttl_s}), **changes}
        etag = self.mode(replica)["etag"]
        return self.clients[replica].put(MODE, json=body, headers={"If-Match": etag})

    def follow(self, mode: str, *replicas: int) -> bool:
        """Return whether these replicas follow the mode and no other, by their metrics: GET would read Redis first."""
        return all(self._followed(replica) == [mode] for replica in replicas)

    def _followed(self, replica: int) -> list[str]:
        samples = self.processes[replica].metrics()
        return [
            mode
            for mode in get_args(ModeName)
            if samples[f'notegrade_explanation_mode{{mode="{mode}"}}'] == 1
        ]

    def score(self, replica: int = 0, **changes: Any) -> dict[str, Any]:
        body = {"query": "quiet cafes", "notes": [{"id": "n", "body": "A quiet cafe."}], **changes}
        response = self.clients[replica].post("/score", json={"deadline_ms": 60_000, **body})
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer


@contextmanager
def started_replicas(redis: RedisServer, logs: Path) -> Iterator[Replicas]:
    """Start all three replicas, which serve a student that writes well-formed traces, and wait until they are ready."""
    environment = {
        "NOTEGRADE_CHECKPOINT": str(TINY_STUDENT),
        "NOTEGRADE_REDIS_URL": redis.url,
        "NOTEGRADE_REDIS_TIMEOUT_MS": "5000",  # on a busy machine a healthy Redis may be slow
        "NOTEGRADE_KEYS": KEYS,
        "NOTEGRADE_HOST": "127.0.0.1",
        "NOTEGRADE_ENGINE_DTYPE": "float32",
        # Three engines on few cores: with more than one thread each, they would wait for one another.
        "OMP_NUM_THREADS": "1",
    }
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    with ExitStack() as running:

        def start(log: str, **own: str) -> ServiceProcess:
            return running.enter_context(start_service(logs / log, **environment, **own))

        first = start("replica-0.log")
        mirror = {"NOTEGRADE_SHADOW_URL": first.url, "NOTEGRADE_SHADOW_KEY": SCORE_KEY}
        second = start("replica-1.log", **mirror, NOTEGRADE_SHADOW_RATE="1")
        third = start("replica-2.log", NOTEGRADE_GUARD_P99_MS=str(GUARDED_P99_MS))
        clients = []
        for process in (first, second, third):
            process.wait_until_ready()
            client = httpx.Client(base_url=process.url, headers=headers, timeout=60)
            clients.append(running.enter_context(client))
        yield Replicas([first, second, third], redis, clients)
