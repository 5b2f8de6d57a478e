"""Haystack's unmodified integration for Cohere's rerank works with the service: the example script runs as a user runs it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest

from service.contract.checkpoint import Checkpoint
from service.http.auth import hash_key
from tests.processes import ROOT
from tests.served import Served, served
from tests.waiting import wait_until

EXAMPLE = ROOT / "examples" / "rerank_with_haystack.py"
NOTES = ROOT / "examples" / "notes.jsonl"
QUERY = "quiet cafes with good light"


KEYS = f"score:{hash_key('key')}:ranker"


@pytest.fixture
def service(checkpoint: Checkpoint) -> Iterator[Served]:
    with served(checkpoint, keys=KEYS) as service:
        yield service


@dataclass(frozen=True)
class Ran:
    """Holds the example's exit code, the scores and ids that it printed, and its stderr."""

    code: int
    scores: list[float]
    ids: list[str]
    stderr: str


def start(service: Served, key: str = "key") -> "subprocess.Popen[str]":
    ours = {"NOTEGRADE_URL": service.url, "NOTEGRADE_KEY": key}
    # Haystack must not report usage from a test.
    environment = {**os.environ, **ours, "HAYSTACK_TELEMETRY_ENABLED": "false"}
    command = [sys.executable, str(EXAMPLE), QUERY]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(example: "subprocess.Popen[str]") -> Ran:
    with example:
        try:
            out, err = example.communicate(timeout=100)
        finally:
            example.kill()
    lines = [line.split("  ", 2) for line in out.splitlines()]
    return Ran(example.returncode, [float(line[0]) for line in lines], [line[1] for line in lines], err)


def answers(service: Served, status: int) -> float:
    return service.count("request_seconds_count", route="/v2/rerank", status=str(status))


@pytest.fixture(scope="module")
def not_ready(checkpoint: Checkpoint) -> tuple[Ran, float]:
    """Run the example against a service that stays not ready; return the run and the number of its requests."""
    with served(checkpoint, keys=KEYS) as service:
        service.stack.readiness.set("probing", "a test")
        return finish(start(service)), answers(service, 503)


def score(url: str, ids: list[str]) -> dict[str, float]:
    """Score these notes by /score, in Haystack's form: the title is the first line of the body."""
    notes = [json.loads(line) for line in NOTES.read_text(encoding="utf-8").splitlines()]
    bodies = {note["id"]: "\n".join(filter(None, [note["title"], note["body"]])) for note in notes}
    body = {"query": QUERY, "notes": [{"id": each, "body": bodies[each]} for each in ids]}
    headers = {"Authorization": "Bearer key"}
    answer = httpx.post(f"{url}/score", json=body, headers=headers, timeout=60)
    return {result["id"]: result["score"] for result in answer.json()["results"]}


def test_the_ranking_is_that_of_the_scores(service: Served, not_ready: tuple[Ran, float]) -> None:
    ran = finish(start(service))
    assert ran.code == 0, ran.stderr
    retrieved = not_ready[0].ids
    scores = score(service.url, retrieved)
    best = sorted(retrieved, key=lambda document: -scores[document])[:3]
    assert best != retrieved[:3], "the retriever's order is the same: the test would prove nothing"
    assert ran.ids == best
    assert ran.scores == pytest.approx([scores[each] for each in best], abs=1e-4)


def test_a_wrong_key_is_reported(service: Served) -> None:
    ran = finish(start(service, key="wrong"))
    assert (ran.code, ran.ids) == (1, [])
    message = ran.stderr.splitlines()[-1]
    assert message.startswith("cohere.errors.unauthorized_error.UnauthorizedError")
    assert "'detail': 'this key is not known here'" in message
    assert answers(service, 401) == 1


def test_the_retriever_s_order_stays_while_the_service_is_not_ready(not_ready: tuple[Ran, float]) -> None:
    ran, asked = not_ready
    assert (ran.code, ran.stderr) == (0, "not reranked: ServiceUnavailableError\n")
    assert len(ran.ids) == 8
    assert ran.scores == sorted(ran.scores, reverse=True)
    assert asked == 3  # the SDK's number of tries


def test_the_sdk_retries_when_the_service_was_not_ready(service: Served) -> None:
    service.stack.readiness.set("probing", "a test")
    example = start(service)
    try:
        wait_until(lambda: answers(service, 503) >= 1, within_s=60)
    finally:
        service.stack.readiness.set("ok", "a test")
        ran = finish(example)
    assert (ran.code, len(ran.ids), ran.stderr) == (0, 3, "")
