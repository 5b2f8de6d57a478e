"""Known attacks over real sockets: each is refused for the right reason, or accepted if that is correct.

Every body is valid except for the attack, so that it can be refused for nothing else. test_generated_input.py generates inputs.
"""

import functools
import gzip
import json
import socket
from collections.abc import Callable, Iterator

import pytest

from service.contract.checkpoint import Checkpoint
from tests.service.http.hostile import CANARY, MODE, WHOLE, Attacked, attacked

# The status of each valid body. Flips name a revision that never existed: 412 is answered after everything else was accepted.
ACCEPTED = {"/score": 200, "/rerank": 200, "/v1/score": 200, "/explain": 200, MODE: 412}
NUMBERS = {
    "/score": "deadline_ms",
    "/rerank": "top_n",
    "/v1/score": "max_tokens_per_doc",
    "/explain": "deadline_ms",
    MODE: "ttl_s",
}
TEXTS = {"/score": "query", "/rerank": "query", "/v1/score": "criteria", "/explain": "query", MODE: "reason"}
on_every_path = pytest.mark.parametrize("path", list(WHOLE))


@pytest.fixture(scope="module")
def under_attack(checkpoint: Checkpoint) -> Iterator[Attacked]:
    with attacked(checkpoint, "all") as service:
        yield service


@pytest.fixture
def service(under_attack: Attacked) -> Iterator[Attacked]:
    with under_attack.meanwhile():
        yield under_attack


def whole(path: str) -> bytes:
    return json.dumps(WHOLE[path]).encode()


def with_value(path: str, name: str, value: bytes) -> bytes:
    """Return the body with this field set to raw bytes, neither quoted nor escaped."""
    assert name in WHOLE[path]
    return json.dumps({**WHOLE[path], name: "@"}).encode().replace(b'"@"', value)


def refused(service: Attacked, path: str, body: bytes) -> tuple[str, str]:
    """Send the body, which must be refused for one field; return that field and the message."""
    response = service.send(path, body)
    assert response.status_code == 422
    assert response.json()["type"] == "urn:notegrade:problem:invalid-request"
    [bad] = response.json()["errors"]
    return bad["field"], bad["message"]


@on_every_path
def test_bodies_without_an_attack_are_accepted(service: Attacked, path: str) -> None:
    assert service.send(path, whole(path)).status_code == ACCEPTED[path]


BROKEN_WHOLES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "deep-lists": (lambda body: b"[" * 100_000, "recursion limit"),
    "deep-objects": (lambda body: b'{"a":' * 50_000, "recursion limit"),
    "byte-order-mark": (lambda body: b"\xef\xbb\xbf" + body, "expected value at line 1 column 1"),
    "utf-16": (lambda body: body.decode().encode("utf-16"), "expected value at line 1 column 1"),
    "gzip": (gzip.compress, "expected value at line 1 column 1"),
    "empty": (lambda body: b"", "EOF while parsing a value"),
    "null": (lambda body: b"null", "should be an object"),
    "not-a-number": (lambda body: b"NaN", "should be an object"),
    "in-a-list": (lambda body: b"[" + body + b"]", "should be an object"),
    "twice": (lambda body: body + body, "trailing characters"),
    "unended": (lambda body: body[:-1], "EOF while parsing an object"),
    "nul-after": (lambda body: body + b"\0", "trailing characters"),
}


@on_every_path
@pytest.mark.parametrize("attack", BROKEN_WHOLES)
def test_malformed_bodies_are_refused(service: Attacked, path: str, attack: str) -> None:
    change, why = BROKEN_WHOLES[attack]
    field, message = refused(service, path, change(whole(path)))
    assert (field, why in message) == ("body", True), message


BROKEN_TEXTS = {
    "deep": (b"[" * 50_000 + b"]" * 50_000, "recursion limit"),
    "invalid-utf-8": (b'"\xff\xfe"', "invalid unicode code point"),
    "surrogate-in-utf-8": (b'"\xed\xa0\x80"', "invalid unicode code point"),
    "lone-surrogate": (b'"\\ud800"', "hex escape"),
    "two-leading-surrogates": (b'"\\ud800\\ud800"', "surrogate"),
    "control-character": (b'"\x00"', "control character"),
    "more-digits-than-are-parsed": (b"9" * 100_000, "number out of range"),
}


@on_every_path
@pytest.mark.parametrize("attack", BROKEN_TEXTS)
def test_malformed_json_in_a_text_is_refused(service: Attacked, path: str, attack: str) -> None:
    value, why = BROKEN_TEXTS[attack]
    field, message = refused(service, path, with_value(path, TEXTS[path], value))
    assert (field, why in message) == ("body", True), message


@on_every_path
@pytest.mark.parametrize("value", [b"NaN", b"Infinity", b"-Infinity", b"1e400", b"-1e400", b"1e-400", b"0.5"])
def test_invalid_numbers_are_refused_by_field(service: Attacked, path: str, value: bytes) -> None:
    field, _ = refused(service, path, with_value(path, NUMBERS[path], value))
    assert field == NUMBERS[path]


@pytest.mark.parametrize("value", [b"NaN", b"Infinity", b"-Infinity", b"1e400", b"1e-400", b"9" * 4000])
def test_a_rate_outside_0_to_1_is_refused(service: Attacked, value: bytes) -> None:
    assert refused(service, MODE, with_value(MODE, "rate", value))[0] == "rate"


@on_every_path
@pytest.mark.parametrize("value", [b"9" * 4000, b"1" + b"0" * 40], ids=["4000-digits", "1e40"])
def test_huge_integers_are_cut_to_the_limit(service: Attacked, path: str, value: bytes) -> None:
    """A deadline is cut to the longest, `top_n` and a number of tokens to what there is. A flip's time to live is not: it would be endless."""
    body = with_value(path, NUMBERS[path], value)
    if path == MODE:
        assert refused(service, path, body)[0] == "ttl_s"
    else:
        assert service.send(path, body).status_code == ACCEPTED[path]


@on_every_path
def test_the_last_of_duplicate_keys_counts(service: Attacked, path: str) -> None:
    """JavaScript and Python do the same: a proxy that reads the first one would check a value that is not used."""
    blank = json.dumps(TEXTS[path]).encode() + b': " "'
    first, last = b"{" + blank + b", " + whole(path)[1:], whole(path)[:-1] + b", " + blank + b"}"
    assert service.send(path, first).status_code == ACCEPTED[path]
    assert refused(service, path, last)[0] == TEXTS[path]


def test_the_last_of_duplicate_lists_of_notes_counts(service: Attacked) -> None:
    body = b'{"notes": [{"id": "a", "body": "b"}], ' + whole("/score")[1:-1] + b', "request_id": "r-2"}'
    answer = service.send("/score", body).json()
    assert answer["request_id"] == "r-2"
    assert [result["id"] for result in answer["results"]] == ["n1", "n2"]


@functools.cache
def bomb(path: str) -> bytes:
    return gzip.compress(whole(path) + b" " * 20_000_000)


@on_every_path
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "identity, gzip"])
def test_compressed_bodies_are_never_decompressed(service: Attacked, path: str, encoding: str) -> None:
    """Decompressed, the body would be valid or too large; it is refused for its first byte."""
    response = service.send(path, bomb(path), **{"Content-Encoding": encoding})
    [bad] = response.json()["errors"]
    assert (response.status_code, bad["field"]) == (422, "body")
    assert "expected value at line 1 column 1" in bad["message"]


@on_every_path
def test_a_body_over_the_limit_is_refused_for_its_size(service: Attacked, path: str) -> None:
    response = service.send(path, whole(path) + b" " * 1_000_000)
    assert response.status_code == 413
    assert response.json()["type"] == "urn:notegrade:problem:request-too-large"


KINDS = [
    "text/plain",
    "application/xml",
    "multipart/form-data; boundary=x",
    "application/json; charset=utf-16",
    "",
]


@on_every_path
@pytest.mark.parametrize("kind", KINDS)
def test_the_body_is_read_as_json_whatever_its_content_type(service: Attacked, path: str, kind: str) -> None:
    response = service.send(path, whole(path), **{"Content-Type": kind})
    assert response.status_code == ACCEPTED[path]


def raw(service: Attacked, request: bytes, within_s: float = 10) -> bytes:
    """Send these bytes, and read the answer until the server closes the connection."""
    with socket.create_connection(service.service.address, timeout=within_s) as connection:
        connection.sendall(request)
        answer = b""
        while chunk := connection.recv(65_536):
            answer += chunk
        return answer


HEAD = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
POST = b"POST /score HTTP/1.1\r\nHost: x\r\n"
BROKEN_HTTP: dict[str, tuple[bytes, int]] = {
    "version": (b"GET / HTTP/9.9\r\n\r\n", 400),
    "tls-on-a-plain-port": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", 400),
    "negative-length": (POST + b"Content-Length: -1\r\n\r\n{}", 400),
    "two-lengths": (POST + b"Content-Length: 2\r\nContent-Length: 30\r\n\r\n{}", 400),
    "smuggling": (POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "long-header": (HEAD + b"X-A: " + b"a" * 200_000 + b"\r\n\r\n", 431),
    "many-headers": (HEAD + b"X-A: b\r\n" * 20_000 + b"\r\n", 431),
    "long-target": (b"GET /livez?" + b"a" * 200_000 + HEAD[10:] + b"\r\n", 431),
    "nonsense": (b"nonsense\r\n\r\n", 400),
}


@pytest.mark.parametrize("attack", BROKEN_HTTP)
def test_malformed_http_is_refused_and_the_service_keeps_serving(service: Attacked, attack: str) -> None:
    request, status = BROKEN_HTTP[attack]
    answer = raw(service, request)
    assert int(answer.split()[1]) == status
    assert b"application/problem+json" in answer
    assert CANARY.encode() not in answer
    assert service.client.get("/livez").status_code == 200


def test_the_same_heads_without_an_attack_are_accepted(service: Attacked) -> None:
    """This shows that the attacks above are refused for the attack alone."""
    assert b" 200 " in raw(service, HEAD + b"\r\n").split(b"\r\n")[0]
    key = b"Authorization: Bearer admin-key\r\nConnection: close\r\n"
    body = whole("/score")
    request = POST + key + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
    assert b" 200 " in raw(service, request).split(b"\r\n")[0]


def test_a_body_that_never_arrives_times_out(service: Attacked) -> None:
    head = POST + b"Authorization: Bearer admin-key\r\nContent-Length: 100\r\n\r\n{"
    with socket.create_connection(service.service.address, timeout=20) as connection:
        connection.sendall(head)
        assert b" 408 " in connection.recv(65_536).split(b"\r\n")[0]
