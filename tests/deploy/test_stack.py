"""The whole stack runs on one machine with real parts, and loses little when one part is killed."""

import json
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from deploy.grafana.make_dashboards import DASHBOARDS
from tests.deploy.dashboard_queries import empty_queries, turn_on_explanations
from tests.deploy.prometheus_rig import tools
from tests.deploy.whole_stack import QUERIES, Answer, Stack, whole_stack
from tests.end_to_end.supervised import engine_core, exit_code
from tests.processes import ROOT
from tests.redis_server import RedisServer
from tests.tiny_base import make_tiny_checkpoint
from tests.tools import HAPROXY, require
from tests.waiting import wait_until

pytestmark = [pytest.mark.engine, pytest.mark.redis, pytest.mark.timeout(900)]

VICTIM = "replica2"
# Random weights generate no steps, so no trace can agree with a grade or cite anything. test_dashboards.py draws these panels on
# the fake engine.
UNDRAWN = {
    "Agreement with the served grade",
    "Traces whose last grade equals the served grade",
    "Truth of the citations",
    "Traces whose citations are all true",
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def stack(checkpoint: Path, redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    tools()  # skips before anything starts
    require(HAPROXY)
    with (
        RedisServer(redis_binary) as redis,
        whole_stack(checkpoint, redis, tmp_path_factory.mktemp("stack")) as stack,
    ):
        yield stack


@dataclass(frozen=True)
class Healthy:
    """Holds the answers while every part was healthy, and the outcomes of explanations."""

    begun: float
    first: dict[str, Answer]
    again: dict[str, Answer]
    explained: list[str]


@pytest.fixture(scope="module")
def healthy(stack: Stack) -> Healthy:
    """Send each query three times, some with explanations, and some requests that are refused."""
    begun = time.time()
    first, again = stack.ask_all(), stack.ask_all()
    turn_on_explanations(str(stack.router.client.base_url), "on_request")
    on = 'notegrade_explanation_mode{mode="on_request"}'
    wait_until(lambda: stack.watching.value(f"sum({on})") == len(stack.replicas))
    explained = explain(stack)
    assert stack.ask_all() == again
    for bad in ({"criteria": "none of these"}, {"notes": 0}, {"deadline_ms": "soon"}):
        assert stack.score(QUERIES[0], **bad).status_code == 422
    return Healthy(begun, first, again, explained)


def explain(stack: Stack) -> list[str]:
    """Ask for some explanations; return their outcomes."""
    answers = [stack.score(query, 1, explain=True).json() for query in QUERIES[:12]]
    return [answer["results"][0]["explanation"]["outcome"] for answer in answers]


@dataclass(frozen=True)
class ReplicaLoss:
    """Holds what was observed while one of three replicas was down, and after it came back."""

    open_on_it: list[int | None]
    at_once: dict[str, Answer]
    settled: dict[str, Answer]
    back: dict[str, Answer]
    counted: int
    answered: int
    alerts: list[tuple[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def replica_loss(stack: Stack, healthy: Healthy) -> ReplicaLoss:
    """Kill one replica with requests open on it; its supervisor restarts it slowly."""
    counted_before = stack.counted("instance")[stack.instance(VICTIM)]
    open_on_it = kill_with_open_requests(
        stack, [q for q in QUERIES if healthy.first[q].replica == VICTIM][:3]
    )
    at_once = stack.ask_all()  # before any of HAProxy's checks has failed
    stack.router.wait_for(down=VICTIM)
    settled = stack.ask_all()
    wait_until(lambda: bool(stack.receiver.has("firing", instance=stack.instance(VICTIM))), within_s=120)
    stack.replicas[VICTIM].running()
    stack.router.wait_for()
    wait_until(lambda: bool(stack.receiver.has("resolved", instance=stack.instance(VICTIM))), within_s=120)
    back = stack.ask_all()
    counted = sum(stack.counted("instance").values()) + counted_before
    answered = sum(status != 502 for status in stack.statuses)
    return ReplicaLoss(open_on_it, at_once, settled, back, counted, answered, list(stack.receiver.received))


def kill_with_open_requests(stack: Stack, queries: list[str]) -> list[int | None]:
    """Kill the victim while it has requests open; return their statuses."""
    service = stack.replicas[VICTIM].running()
    core = engine_core(service)
    with ThreadPoolExecutor(len(queries)) as pool:
        service.process.send_signal(signal.SIGSTOP)  # otherwise it might answer before it is killed
        statuses = [pool.submit(status_of, stack, query) for query in queries]
        wait_until(lambda: stack.router.open_on(VICTIM) == len(queries))
        service.process.kill()
        service.process.wait(30)
    wait_until(lambda: not core.is_running() or core.status() == psutil.STATUS_ZOMBIE)
    return [each.result() for each in statuses]


def status_of(stack: Stack, query: str) -> int | None:
    """Return None where there is no answer: on a reused connection HAProxy leaves the retry to the caller."""
    try:
        return stack.score(query).status_code
    except httpx.RemoteProtocolError:
        return None


@pytest.fixture(scope="module")
def strained(stack: Stack, replica_loss: ReplicaLoss) -> float:
    """Cause errors, dropped explanations and a full backlog; return the time afterwards."""
    explain(stack)  # a second time: the first value of a counter is not an increase
    assert stack.score("one without time", deadline_ms=1).status_code in (503, 504)
    assert stack.score("one with too much to explain", 8, explain=True).status_code == 200
    numbers = count()

    def measured() -> bool:
        assert stack.score(f"one of those lists {next(numbers)}", 200).status_code == 200
        return (stack.watching.value("max(notegrade_service_rate_tokens)") or 0) > 0

    wait_until(measured, within_s=120)
    stack.ask_all()
    stack.watching.wait_for_scrapes()
    return time.time()


def test_equal_queries_reach_one_replica_and_its_cache(healthy: Healthy, stack: Stack) -> None:
    assert {answer.replica for answer in healthy.first.values()} == set(stack.replicas)
    assert healthy.again == {
        query: Answer(answer.replica, "local") for query, answer in healthy.first.items()
    }
    assert {answer.source for answer in healthy.first.values()} == {"engine"}


def test_explanations_are_made_on_every_replica(healthy: Healthy) -> None:
    """The mode was turned on through HAProxy, at one replica."""
    assert set(healthy.explained) == {"made"}


def test_the_replicas_count_every_request(healthy: Healthy, stack: Stack) -> None:
    assert stack.counted("status") == Counter(map(str, stack.statuses))
    pairs = stack.watching.values("sum by (outcome) (notegrade_pair_outcomes_total) > 0", "outcome")
    assert pairs == Counter(stack.outcomes)


def test_no_alert_fires_while_every_part_is_healthy(healthy: Healthy, stack: Stack) -> None:
    """It must run before the tests of a lost replica."""
    assert stack.fired() == set()


def test_every_answer_names_the_checkpoint(stack: Stack, replica_loss: ReplicaLoss, checkpoint: Path) -> None:
    fingerprint = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))["fingerprint"]
    assert stack.fingerprints == {fingerprint}
    query = "count by (fingerprint) (notegrade_build_info)"
    assert stack.watching.values(query, "fingerprint") == {fingerprint: len(stack.replicas)}


def test_only_requests_open_on_the_killed_replica_are_lost(replica_loss: ReplicaLoss) -> None:
    assert len(replica_loss.open_on_it) == 3
    assert set(replica_loss.open_on_it) <= {502, None}
    # Every other request was answered, by exactly one replica.
    assert replica_loss.counted == replica_loss.answered


def test_the_killed_replica_s_queries_move_and_are_found_in_redis(
    healthy: Healthy, replica_loss: ReplicaLoss
) -> None:
    for query, (replica, source) in replica_loss.at_once.items():
        if healthy.first[query].replica == VICTIM:
            assert replica != VICTIM
            assert source == "redis"
        else:
            assert (replica, source) == healthy.again[query]
    for query, (replica, source) in replica_loss.settled.items():
        # Before a check has failed, HAProxy may choose another replica than afterwards.
        assert source == ("local" if replica == replica_loss.at_once[query].replica else "redis")


def test_the_queries_return_to_the_replica_when_it_is_back(
    healthy: Healthy, replica_loss: ReplicaLoss
) -> None:
    assert replica_loss.back == {
        query: Answer(VICTIM, "redis") if answer.replica == VICTIM else answer
        for query, answer in healthy.again.items()
    }


def test_the_pager_is_notified_of_the_loss_and_of_its_end(stack: Stack, replica_loss: ReplicaLoss) -> None:
    """It receives no other alert."""
    seen = [
        (path, alert["status"], alert["labels"]["alertname"], alert["labels"]["instance"])
        for path, alert in replica_loss.alerts
    ]
    instance = stack.instance(VICTIM)
    assert set(seen) == {
        ("/pager", status, "NotegradeTargetDown", instance) for status in ("firing", "resolved")
    }
    _, alert = replica_loss.alerts[0]
    assert alert["annotations"]["summary"] == f"Prometheus cannot scrape {instance}"
    runbook = (ROOT / alert["annotations"]["runbook_url"]).read_text(encoding="utf-8")
    assert runbook.startswith("# A replica can't be scraped")


# There is no shadow here: test_dashboards.py draws that dashboard.
@pytest.mark.parametrize("name", [name for name in DASHBOARDS if name != "shadow"])
def test_panels_have_data(stack: Stack, healthy: Healthy, strained: float, name: str) -> None:
    empty = {query.panel for query in empty_queries(name, stack.watching, healthy.begun, strained)}
    assert empty <= UNDRAWN


def test_an_overload_is_notified_and_resolved(stack: Stack, strained: float) -> None:
    """Callers get scores, or a 503 with Retry-After. Then only cached requests are sent, until the alert is resolved."""
    alert, numbers = {"alertname": "NotegradeShedding"}, count()
    statuses: set[int] = set()

    def alert_fires() -> bool:
        with ThreadPoolExecutor(8) as pool:
            queries = [f"one of a flood {next(numbers)}" for _ in range(8)]
            statuses.update(pool.map(lambda query: stack.score(query, 200).status_code, queries))
        return bool(stack.receiver.has("firing", **alert))

    def alert_is_resolved() -> bool:
        answers.append(stack.score(QUERIES[0], 200).json()["results"])
        return bool(stack.receiver.has("resolved", **alert))

    answers: list[list[dict[str, Any]]] = []
    wait_until(alert_fires, within_s=120)
    wait_until(alert_is_resolved, within_s=120)
    assert statuses <= {200, 503}
    assert {result["source"] for result in answers[-1]} == {"local"}
    for status in ("firing", "resolved"):
        [(path, notification)] = stack.receiver.has(status, **alert)
        assert path == "/tickets"
        assert "overload.md" in notification["annotations"]["runbook_url"]


def test_the_pager_is_notified_of_a_killed_engine(stack: Stack, replica_loss: ReplicaLoss) -> None:
    """The alert names the replica, whose queries the router sends to the others."""
    service = stack.replicas[VICTIM].running()
    engine_core(service).kill()
    alert = {"alertname": "NotegradeEngineLost", "instance": stack.instance(VICTIM)}
    wait_until(lambda: bool(stack.receiver.has("firing", **alert)), within_s=120)
    assert exit_code(service, within_s=120) == 1
    stack.router.wait_for(down=VICTIM)
    for path, notification in stack.receiver.has("firing", **alert):
        assert path == "/pager"
        assert notification["annotations"]["summary"] == f"{stack.instance(VICTIM)} lost its engine"
    assert stack.ask_all().keys() == set(QUERIES)
