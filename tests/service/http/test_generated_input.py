"""The service answers 20,000 generated requests over real sockets correctly: `make test` sends a quarter of them, `make test-slow` the rest.

The OpenAPI document says how a request may be refused. No request may be answered with a 500, with silence, or with text of another
request. Half of them are sent to a service that explains nothing, half to one that explains everything.
"""

import json
from collections.abc import Iterator
from typing import Any, cast

import httpx
import pytest
import requests
import schemathesis
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service.contract.checkpoint import Checkpoint
from tests.service.http.hostile import ADMIN, CANARY, MODE, WHOLE, Attacked, attacked
from tests.waiting import wait_until

MODES = ["off", "all"]
PROMISED = 20_000
# Cases of each test in each mode. Each test checks that this many were answered.
CASES = {
    "test_any_value_in_any_field": 1_250,
    "test_any_json": 1_000,
    "test_any_bytes": 1_750,
    "test_valid_bodies_cut_and_corrupted": 1_500,
    "test_any_text_is_scored_under_its_id": 1_250,
    "test_any_text_is_explained_in_a_stream": 400,
    "test_any_flip_is_made_or_refused": 400,
    "test_any_method_header_and_query": 1_500,
}
# Valid cases of each operation of the document in each mode, and as many invalid cases.
CASES_OF_AN_OPERATION = 125
# Not `negative_data_rejection` and `positive_data_acceptance`: a blank query is refused, which a schema can't say.
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
WITH_A_BODY = [
    "POST /explain",
    "POST /notes",
    "POST /rerank",
    "POST /score",
    "POST /v1/score",
    "PUT /admin/explanation-mode",
]
WITH_PARAMETERS = [
    "GET /admin/explanation-mode",
    "GET /admin/explanation-mode/history",
    "GET /admin/figures",
    "GET /admin/shadow",
    "GET /explanations/{request_id}",
    "GET /notes/encoding",
]
# These take no input.
WITHOUT_INPUT = ["GET /livez", "GET /metrics", "GET /readyz", "GET /version"]


@pytest.fixture(
    scope="module",
    params=[
        *(pytest.param((mode, 0.25), id=mode) for mode in MODES),
        *(pytest.param((mode, 0.75), id=f"{mode}, the rest", marks=pytest.mark.slow) for mode in MODES),
    ],
)
def under_attack(checkpoint: Checkpoint, request: pytest.FixtureRequest) -> Iterator[Attacked]:
    """Attack a service in a mode, with a share of all cases."""
    mode, share = request.param
    with attacked(checkpoint, mode) as service:
        service.share = share
        yield service


@pytest.fixture
def service(under_attack: Attacked) -> Iterator[Attacked]:
    with under_attack.meanwhile():
        yield under_attack


@pytest.fixture
def cases(request: pytest.FixtureRequest) -> int:
    return CASES[request.node.originalname]


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


@pytest.fixture(scope="module")
def operations(under_attack: Attacked) -> dict[str, Any]:
    document = schemathesis.openapi.from_url(f"{under_attack.service.url}/openapi.json")
    found = [cast("Any", each).ok() for each in document.get_all_operations()]
    return {operation.label: operation for operation in found}


def test_the_promised_number_of_cases_is_planned() -> None:
    assert CASES.keys() <= globals().keys()
    of_operations = len(WITH_A_BODY) * len(GenerationMode) * CASES_OF_AN_OPERATION
    assert len(MODES) * (sum(CASES.values()) + of_operations) >= PROMISED


def test_every_operation_of_the_document_is_tested(operations: dict[str, Any]) -> None:
    assert sorted(operations) == sorted([*WITH_A_BODY, *WITH_PARAMETERS, *WITHOUT_INPUT])


@pytest.mark.parametrize("generation", list(GenerationMode))
@pytest.mark.parametrize("label", [*WITH_A_BODY, *WITH_PARAMETERS])
def test_whatever_the_document_allows_and_forbids(
    service: Attacked,
    session: requests.Session,
    operations: dict[str, Any],
    label: str,
    generation: GenerationMode,
) -> None:
    # Operations without a body may have fewer possible cases.
    at_least = CASES_OF_AN_OPERATION if label in WITH_A_BODY else 1
    try_operation(service, session, operations[label], generation, at_least)


@pytest.mark.parametrize("label", WITHOUT_INPUT)
def test_operations_without_input_are_answered(
    service: Attacked, session: requests.Session, operations: dict[str, Any], label: str
) -> None:
    try_operation(service, session, operations[label], GenerationMode.POSITIVE, at_least=1)


def try_operation(
    service: Attacked, session: requests.Session, operation: Any, generation: GenerationMode, at_least: int
) -> None:
    def check(case: "schemathesis.Case[Any]") -> None:
        give_time(case.body)
        response = case.call(session=session, headers=ADMIN, timeout=20)
        service.check(response.status_code, cast("Any", response.headers), response.text)
        case.validate_response(response, checks=checks_of(response))

    cases = operation.as_strategy(generation_mode=generation)
    service.run(check, CASES_OF_AN_OPERATION, at_least, case=cases)


def checks_of(response: schemathesis.Response) -> list[Any]:
    """Return all checks but, for a stream, that of its schema: the document declares text, the check needs a schema of each event."""
    is_stream = response.headers["content-type"][0].startswith("text/event-stream")
    return [check for check in CHECKS if not (is_stream and check is response_schema_conformance)]


def give_time(body: Any) -> None:
    """Raise short deadlines: a deadline of a few milliseconds may correctly be answered with a 504."""
    asked = body.get("deadline_ms") if isinstance(body, dict) else None
    if type(asked) is int and 0 < asked < 5000:
        body["deadline_ms"] = 5000


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats()  # includes NaN and infinities, which json.dumps writes as JavaScript does
    | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
texts = st.text(st.characters(codec="utf-8"), max_size=60)
paths = st.sampled_from(list(WHOLE))


@st.composite
def with_another_value(draw: st.DrawFn) -> tuple[str, bytes]:
    """Draw a path and its valid body with one value replaced or added."""
    path = draw(paths)
    body = json.loads(json.dumps(WHOLE[path]))
    places: list[Any] = [body, *(v for v in body.values() if isinstance(v, dict)), *body.get("notes", [])]
    place = draw(st.sampled_from(places))
    place[draw(st.sampled_from([*place, "more"]))] = draw(json_values)
    give_time(body)
    return path, json.dumps(body).encode()


def test_any_value_in_any_field(service: Attacked, cases: int) -> None:
    def check(sent: tuple[str, bytes]) -> None:
        service.send(*sent)

    service.run(check, cases, sent=with_another_value())


def test_any_json(service: Attacked, cases: int) -> None:
    def check(path: str, value: Any) -> None:
        service.send(path, json.dumps(value).encode())

    service.run(check, cases, path=paths, value=json_values)


def test_any_bytes(service: Attacked, cases: int) -> None:
    def check(path: str, body: bytes) -> None:
        service.send(path, body)

    service.run(check, cases, path=paths, body=st.binary(max_size=200))


def test_valid_bodies_cut_and_corrupted(service: Attacked, cases: int) -> None:
    def check(path: str, cut: int, noise: bytes) -> None:
        whole = json.dumps(WHOLE[path]).encode()
        service.send(path, whole[:cut] + noise + whole[cut + len(noise) :])

    service.run(check, cases, path=paths, cut=st.integers(0, 300), noise=st.binary(max_size=3))


def test_any_text_is_scored_under_its_id(service: Attacked, cases: int) -> None:
    def check(text: str, title: str | None, explain: bool) -> None:
        notes = [{"id": "n", "title": title, "body": text}]
        body = {"query": f"q {text[:20]}", "notes": notes, "explain": explain}
        response = service.send("/score", json.dumps(body).encode())
        if is_query_too_long(response):
            return
        [result] = response.json()["results"]
        assert (result["id"], result["outcome"]) == ("n", "scored")
        explanation = result["explanation"]
        assert (explanation and explanation["outcome"]) == outcome_of_explaining(service.mode, explain)

    service.run(check, cases, text=texts, title=st.none() | texts, explain=st.booleans())


def is_query_too_long(response: httpx.Response) -> bool:
    """Return whether the query has too many tokens for the checkpoint, which twenty characters may have."""
    if response.status_code != 422:
        return False
    return [bad["field"] for bad in response.json()["errors"]] == ["query"]


def outcome_of_explaining(mode: str, asked: bool) -> str | None:
    if mode == "off":
        return "off" if asked else None
    return "made" if asked else "deferred"


def test_any_text_is_explained_in_a_stream(service: Attacked, cases: int) -> None:
    def check(text: str, title: str | None) -> None:
        body = {"query": f"q {text[:20]}", "note": {"title": title, "body": text}}
        response = service.send("/explain", json.dumps(body).encode())
        if is_query_too_long(response):
            return
        if service.mode == "off":
            assert response.json()["type"] == "urn:notegrade:problem:explanations-off"
            return
        events = [block.split("\n") for block in response.text.strip().split("\n\n")]
        assert [events[0][0], events[-1][0]] == ["event: score", "event: explanation"]
        assert json.loads(events[-1][1].removeprefix("data: "))["outcome"] == "made"

    service.run(check, cases, text=texts, title=st.none() | texts)


def test_any_flip_is_made_or_refused(service: Attacked, cases: int) -> None:
    """Flips name the right ETag, so that only the body decides."""
    modes = st.sampled_from(["off", "on_request", "sample", "all"])
    numbers = st.none() | st.floats() | st.integers(1, 14_400) | json_values
    flips = st.fixed_dictionaries(
        {"mode": modes, "reason": texts}, optional={"ttl_s": numbers, "rate": numbers, "more": json_values}
    )

    def check(flip: dict[str, Any]) -> None:
        etag = service.client.get(MODE).headers["etag"]
        response = service.send(MODE, json.dumps(flip).encode(), **{"If-Match": etag})
        assert response.status_code in (200, 422)
        assert response.is_error or response.json()["mode"] == flip["mode"]

    service.run(check, cases, flip=flips)


header_text = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40)
HEADERS = ["Authorization", "If-Match", "Content-Type", "Accept", "X-Forwarded-For", "Cookie"]


def test_any_method_header_and_query(service: Attacked, cases: int) -> None:
    def check(path: str, method: str, name: str, value: str, query: str) -> None:
        headers, params = {name: value}, {query: value}
        response = service.client.request(method, path, headers=headers, params=params, content=b"{}")
        service.check(response.status_code, response.headers, response.text)

    service.run(
        check,
        cases,
        path=st.sampled_from([*WHOLE, "/version", "/explanations/x", "/console", "/nowhere"]),
        method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"]),
        name=st.sampled_from(HEADERS),
        value=header_text,
        query=header_text,
    )


def test_the_other_caller_got_explanations(service: Attacked) -> None:
    """The other caller's explanations contain its canary, so a leak could have shown. Last, because nothing above may have stopped it."""
    service.set_mode()
    if service.mode == "all":
        before = service.other_caller.explained
        wait_until(lambda: service.other_caller.explained > before or service.other_caller.fault is not None)
    assert CANARY not in service.client.get("/metrics").text
