"""Each request has a context and is logged and counted, whatever its result."""

from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.types import Message, Receive, Scope, Send

from service.http.middleware import RequestObserver
from service.observability.metrics import Metrics
from tests.service.http.conftest import REQUEST, Service, settings

CANARY = "a note that nobody may read"


def only_event(caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    [event] = [vars(record) for record in caplog.records if record.message == "request"]
    return event


@pytest.fixture(autouse=True)
def _log_of_requests(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")


async def test_other_protocols_pass_untouched() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    async def receive() -> Message:
        raise AssertionError

    async def send(_message: Message) -> None:
        raise AssertionError

    observer = RequestObserver(app, Metrics(CollectorRegistry()), versions={})
    await observer({"type": "lifespan"}, receive, send)
    assert seen == ["lifespan"]


@pytest.mark.parametrize("path", ["/rerank", "/v1/score", "/nowhere"])
async def test_each_answer_has_the_checkpoint_s_hashes(service: Service, path: str) -> None:
    answer = await service.client.post(path, json={"query": "quiet cafes", "documents": ["A cafe."]})
    manifest = service.stack.checkpoint.manifest
    assert answer.headers["notegrade-fingerprint"] == manifest.fingerprint
    assert answer.headers["notegrade-grading-version"] == manifest.grading_version


@settings(max_request_bytes=1_000)
async def test_a_too_large_body_is_logged_with_its_route_and_problem(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    await service.score(query="x" * 1_000)
    event = only_event(caplog)
    assert (event["route"], event["status"]) == ("/score", 413)
    assert event["problem"] == "urn:notegrade:problem:request-too-large"
    assert service.count("request_seconds_count", route="/score", status="413") == 1


@pytest.mark.parametrize(
    ("method", "path", "status", "problem"),
    [("GET", "/nowhere", 404, "not-found"), ("GET", "/score", 405, "method-not-allowed")],
)
async def test_routes_and_methods_that_do_not_exist_are_problems(
    service: Service, method: str, path: str, status: int, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    response = await service.client.request(method, path)
    assert (response.status_code, "allow" in response.headers) == (status, status == 405)
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["type"] == only_event(caplog)["problem"] == f"urn:notegrade:problem:{problem}"


@pytest.fixture
def exploding(service: Service, monkeypatch: pytest.MonkeyPatch) -> Service:
    """Make a service whose scorer has a bug: its exception quotes a note."""

    async def explode(*_: object) -> None:
        raise RuntimeError(CANARY)

    monkeypatch.setattr(type(service.stack.scorer), "score", explode)
    return service


async def test_an_unforeseen_error_keeps_the_request_id(
    exploding: Service, caplog: pytest.LogCaptureFixture
) -> None:
    response = await exploding.score(request_id="r-7")
    assert response.status_code == 500
    assert response.headers["x-request-id"] == response.json()["request_id"] == "r-7"
    assert response.headers["content-type"] == "application/problem+json"
    event = only_event(caplog)
    assert (event["route"], event["status"]) == ("/score", 500)
    assert event["problem"] == "urn:notegrade:problem:internal"


@settings(log_texts=True)
async def test_a_setting_allows_the_text_of_an_unforeseen_error(
    exploding: Service, caplog: pytest.LogCaptureFixture
) -> None:
    await exploding.score()
    assert CANARY in caplog.text


async def test_every_request_has_an_id_of_its_own(service: Service) -> None:
    bodies = [{**REQUEST, "request_id": None}] * 3
    ids = {(await service.client.post("/score", json=body)).headers["x-request-id"] for body in bodies}
    assert len(ids) == 3
