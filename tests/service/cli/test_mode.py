"""The HTTP calls of `notegrade mode`, against recorded answers; end_to_end tests call a real service."""

from typing import Any

import httpx
import pytest

from service.cli.mode import describe, describe_flip, flip_mode, parse_ttl, read_history, read_mode
from service.cli.remote import Remote
from service.errors import CommandError

FLIP: dict[str, Any] = {
    "revision": 3,
    "mode": "sample",
    "owner": "ann",
    "reason": "a note ranks high",
    "since": 0.0,
    "expires": 600.0,
    "rate": 0.001,
}
MODE: dict[str, Any] = {"mode": "sample", "left_s": 599.6, "unread_s": None, "last": FLIP}


def remote(*answers: httpx.Response, seen: list[httpx.Request] | None = None) -> Remote:
    waiting = list(answers)

    def answer(request: httpx.Request) -> httpx.Response:
        if seen is not None:
            seen.append(request)
        return waiting.pop(0)

    return Remote("http://service", "secret", httpx.MockTransport(answer))


def test_a_flip_names_the_revision_that_was_read() -> None:
    seen: list[httpx.Request] = []
    there = remote(
        httpx.Response(200, json=MODE, headers={"etag": '"3"'}), httpx.Response(200, json=MODE), seen=seen
    )
    now = read_mode(there)
    flip_mode(there, {"mode": "off", "reason": "done"}, now["etag"])
    assert [request.method for request in seen] == ["GET", "PUT"]
    assert seen[1].headers["if-match"] == '"3"'
    assert all(request.headers["authorization"] == "Bearer secret" for request in seen)


def test_a_refusal_repeats_the_service_s_reasons() -> None:
    problem = {"detail": "1 field(s) are not valid", "errors": [{"field": "reason", "message": "say why"}]}
    with pytest.raises(CommandError, match=r"refused: 1 field.*\(reason: say why\)"):
        read_history(remote(httpx.Response(422, json=problem)), 5)


def test_an_answer_of_another_server_is_recognised() -> None:
    with pytest.raises(CommandError, match="HTTP 502, in an answer that is not Notegrade's"):
        read_mode(remote(httpx.Response(502, text="<html>")))


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("30m", 1800), ("1.5h", 5400)])
def test_times_are_parsed(text: str, seconds: float) -> None:
    assert parse_ttl(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "30 min", "-5m", "1d"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(CommandError, match="--ttl"):
        parse_ttl(text)


def test_the_mode_is_described_in_words() -> None:
    assert describe(MODE) == (
        "sample (600 s left)\nlast flip: 1970-01-01 00:00:00Z sample 0.1% for 600 s by ann: a note ranks high"
    )
    assert describe({**MODE, "mode": "off", "left_s": None}).startswith("off (its time to live has ended)")
    off = {**FLIP, "mode": "off", "expires": None, "rate": None}
    assert describe({**MODE, "mode": "off", "left_s": None, "last": off}).startswith("off (no end)")
    assert "Redis has not answered this replica for 7 s" in describe({**MODE, "unread_s": 7.2})
    assert describe({**MODE, "last": {**FLIP, "revision": 0}}) == "off: nobody has flipped it yet"
    assert describe_flip(off) == "1970-01-01 00:00:00Z off by ann: a note ranks high"
