"""Requests that nobody should send, by the thousand, over real sockets: none may be answered with a fault of the service.

About 20,000 a run. What a request may be refused with is the document's to say; what it may never be answered with is a
500, silence, or text of another request.
"""

import json
import socket
import time
from collections.abc import Iterator
from typing import Any, cast

import httpx
import hypothesis
import pytest
import schemathesis
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service.api.auth import hash_key
from service.contract.checkpoint import Checkpoint
from tests.served import served
from tests.service.api.conftest import REQUEST

ADMIN = {"Authorization": "Bearer admin-key"}
# In every request of somebody else; may show up in no answer but theirs.
CANARY = "canary-7f3a"
# Not `negative_data_rejection` and `positive_data_acceptance`: a blank query is refused, which a schema can't say.
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
many = hypothesis.settings(
    max_examples=2_500, suppress_health_check=list(hypothesis.HealthCheck), database=None
)


@pytest.fixture(scope="module")
def url(tiny_checkpoint: Checkpoint) -> Iterator[str]:
    keys = f"admin:{hash_key('admin-key')}:ann"
    with served(tiny_checkpoint, keys=keys, request_body_timeout_s=1, max_notes=20) as service:
        yield service.url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, headers=ADMIN, timeout=20) as client:
        yield client


@pytest.fixture(autouse=True)
def somebody_else(client: httpx.Client) -> None:
    """Another caller's requests, scored and refused."""
    notes = [{"id": CANARY, "title": CANARY, "body": CANARY}]
    assert client.post("/score", json={"query": CANARY, "notes": notes}).status_code == 200
    assert client.post("/score", json={"query": CANARY, "notes": []}).status_code == 422


def check_answer(response: httpx.Response) -> None:
    """A status that a caller can act on, told as the contract says, with nothing of somebody else in it."""
    assert response.status_code < 500, response.text
    assert CANARY not in response.text
    if response.is_error:
        problem = response.json()
        assert response.headers["content-type"] == "application/problem+json"
        assert problem["type"].startswith("urn:notegrade:problem:")
        assert problem["detail"]


OPERATIONS = [
    "GET /admin/explanation-mode",
    "GET /admin/explanation-mode/history",
    "GET /admin/figures",
    "GET /explanations/{request_id}",
    "GET /livez",
    "GET /metrics",
    "GET /readyz",
    "GET /version",
    "POST /explain",
    "POST /rerank",
    "POST /score",
    "PUT /admin/explanation-mode",
]
# They take nothing that could be wrong.
WITHOUT_INPUT = {"GET /livez", "GET /metrics", "GET /readyz", "GET /version"}
CASES = [
    (label, mode)
    for label in OPERATIONS
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    if mode == GenerationMode.POSITIVE or label not in WITHOUT_INPUT
]


@pytest.fixture(scope="module")
def api(url: str) -> schemathesis.schemas.BaseSchema:
    return schemathesis.openapi.from_url(f"{url}/openapi.json")


def operations(api: schemathesis.schemas.BaseSchema) -> dict[str, Any]:
    found = [cast("Any", each).ok() for each in api.get_all_operations()]
    return {operation.label: operation for operation in found}


def test_every_operation_of_the_document_is_tried(api: schemathesis.schemas.BaseSchema) -> None:
    assert sorted(operations(api)) == OPERATIONS


@pytest.mark.parametrize(("label", "mode"), CASES)
def test_whatever_the_document_allows_and_forbids(
    api: schemathesis.schemas.BaseSchema, label: str, mode: GenerationMode
) -> None:
    @hypothesis.given(case=operations(api)[label].as_strategy(generation_mode=mode))
    @hypothesis.settings(many, max_examples=300)
    def check(case: "schemathesis.Case[Any]") -> None:
        response = case.call(headers=ADMIN, timeout=20)
        case.validate_response(response, checks=CHECKS)
        assert CANARY not in response.text

    check()


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats()  # NaN and infinities among them, which json.dumps writes as JavaScript does
    | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
WHOLE: dict[str, dict[str, Any]] = {
    "/score": {**REQUEST, "deadline_ms": 5000, "priority": "online", "explain": True, "criteria": None},
    "/rerank": {"query": "q", "documents": ["a", {"text": "b"}], "top_n": 1, "return_documents": True},
    "/explain": {"query": "q", "note": {"title": None, "body": "b"}, "criteria": None, "deadline_ms": 5000},
    "/admin/explanation-mode": {"mode": "sample", "ttl_s": 60, "reason": "why", "rate": 0.5},
}
paths = st.sampled_from(list(WHOLE))


def send(client: httpx.Client, path: str, body: bytes, **headers: str) -> httpx.Response:
    method = "PUT" if path.startswith("/admin") else "POST"
    return client.request(method, path, content=body, headers={"If-Match": '"999"', **headers})


@many
@hypothesis.given(path=paths, data=st.data())
def test_any_value_in_the_place_of_any_other(client: httpx.Client, path: str, data: st.DataObject) -> None:
    body = json.loads(json.dumps(WHOLE[path]))
    places: list[Any] = [body, *(v for v in body.values() if isinstance(v, dict)), *body.get("notes", [])]
    place = data.draw(st.sampled_from(places))
    place[data.draw(st.sampled_from([*place, "more"]))] = data.draw(json_values)
    check_answer(send(client, path, json.dumps(body).encode(errors="surrogatepass")))


@many
@hypothesis.given(path=paths, value=json_values)
def test_any_json(client: httpx.Client, path: str, value: Any) -> None:
    check_answer(send(client, path, json.dumps(value).encode(errors="surrogatepass")))


@many
@hypothesis.given(path=paths, body=st.binary(max_size=200))
def test_any_bytes(client: httpx.Client, path: str, body: bytes) -> None:
    check_answer(send(client, path, body))


@many
@hypothesis.given(path=paths, cut=st.integers(0, 200), noise=st.binary(max_size=3))
def test_whole_bodies_cut_and_disturbed(client: httpx.Client, path: str, cut: int, noise: bytes) -> None:
    whole = json.dumps(WHOLE[path]).encode()
    check_answer(send(client, path, whole[:cut] + noise + whole[cut + len(noise) :]))


@many
@hypothesis.given(
    text=st.text(st.characters(codec="utf-8"), max_size=60), title=st.none() | st.text(max_size=20)
)
def test_any_text_is_scored_and_comes_back_under_its_id(
    client: httpx.Client, text: str, title: str | None
) -> None:
    notes = [{"id": "n", "title": title, "body": text}]
    body = json.dumps({"query": f"q {text[:20]}", "notes": notes}).encode(errors="surrogatepass")
    response = send(client, "/score", body)
    check_answer(response)
    if response.status_code == 200:
        [result] = response.json()["results"]
        assert (result["id"], result["outcome"]) == ("n", "scored")


header_text = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40)


@many
@hypothesis.given(
    path=st.sampled_from([*WHOLE, "/version", "/explanations/x", "/console", "/nowhere"]),
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"]),
    name=st.sampled_from(
        ["Authorization", "If-Match", "Content-Type", "Accept", "X-Forwarded-For", "Cookie"]
    ),
    value=header_text,
    query=header_text,
)
def test_any_method_header_and_query(
    client: httpx.Client, path: str, method: str, name: str, value: str, query: str
) -> None:
    response = client.request(method, path, headers={name: value}, params={query: value}, content=b"{}")
    assert response.status_code < 500, response.text
    assert CANARY not in response.text


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"query": "q", "notes": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"query": "q", "query": "r", "notes": []}',
        b'{"query": "q", "notes": [], "deadline_ms": ' + b"9" * 100_000 + b"}",
        b'{"query": "q", "notes": [], "deadline_ms": 1e400}',
        b'{"query": "q", "notes": [], "deadline_ms": NaN}',
        b'{"query": "\xff\xfe", "notes": []}',
        b'{"query": "\\ud800", "notes": [{"id": "n", "body": "\\udfff"}]}',
        b"\xef\xbb\xbf{}",
        b"\x1f\x8b\x08\x00" + b"\x00" * 1000,
        b"",
        b"null",
    ],
    ids=range(13),
)
@pytest.mark.parametrize("path", list(WHOLE))
def test_known_attacks_are_refused(client: httpx.Client, path: str, body: bytes) -> None:
    response = send(client, path, body)
    check_answer(response)
    assert response.status_code in (422, 413)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip"])
def test_compressed_bodies_are_never_unpacked(client: httpx.Client, encoding: str) -> None:
    import gzip

    bomb = gzip.compress(b"0" * 50_000_000)
    started = time.monotonic()
    response = send(client, "/score", bomb, **{"Content-Encoding": encoding})
    check_answer(response)
    assert response.status_code == 422
    # Unpacking and reading it would take far longer than a small request does.
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("kind", ["text/plain", "application/xml", "multipart/form-data; boundary=x", ""])
def test_the_body_is_json_whatever_it_is_called(client: httpx.Client, kind: str) -> None:
    response = send(client, "/score", json.dumps(REQUEST).encode(), **{"Content-Type": kind})
    assert response.status_code == 200


def raw(url: str, request: bytes, within_s: float = 10) -> bytes:
    """What the server answers to these very bytes, until it closes or falls silent."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=within_s) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := connection.recv(65_536):
            answer += chunk
        return answer


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",  # TLS on a plain port
        b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n{}",
        b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + b"X-A: " + b"a" * 200_000 + b"\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + b"X-A: b\r\n" * 20_000 + b"\r\n",
        b"nonsense\r\n\r\n",
    ],
    ids=["version", "tls", "negative-length", "smuggling", "long-header", "many-headers", "nonsense"],
)
def test_broken_http_is_refused_and_the_service_goes_on(
    url: str, client: httpx.Client, request_bytes: bytes
) -> None:
    answer = raw(url, request_bytes)
    status = int(answer.split()[1])
    assert status in (400, 431)
    assert b"application/problem+json" in answer
    assert CANARY.encode() not in answer
    assert client.get("/livez").status_code == 200


def test_a_body_that_never_comes_is_given_up(url: str) -> None:
    head = (
        b"POST /score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer admin-key\r\nContent-Length: 100\r\n\r\n{"
    )
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(head)
        assert b" 408 " in connection.recv(65_536).split(b"\r\n")[0]
