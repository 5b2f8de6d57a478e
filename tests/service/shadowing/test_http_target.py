"""A shadow over HTTP gets requests, and its answers and failures are handled."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from service.errors import ShadowError
from service.shadowing.http_target import HttpTarget
from tests.service.shadowing.requests import mirrored

RESULT: dict[str, Any] = {
    "id": "n0", "outcome": "scored", "grade": 2, "score": 0.5, "distribution": [0.1, 0.2, 0.6, 0.1], "source": "engine",
}  # fmt: skip
ANSWER: dict[str, Any] = {
    "model": {"name": "other", "fingerprint": "sha256:1"}, "results": [RESULT], "timing_ms": {"engine": 7.0},
}  # fmt: skip


def target(answer: Callable[[httpx.Request], httpx.Response], key: str = "") -> HttpTarget:
    return HttpTarget("http://shadow/base", key, 5, httpx.MockTransport(answer))


def answering(**changes: Any) -> HttpTarget:
    return target(lambda _: httpx.Response(200, json={**ANSWER, **changes}))


async def test_the_request_is_marked_as_mirrored_and_has_batch_priority() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json=ANSWER)

    await target(answer, key="secret").score(mirrored("body"))
    [request] = seen
    assert str(request.url) == "http://shadow/base/score"
    assert request.headers["notegrade-shadow"] == "1"
    assert request.headers["authorization"] == "Bearer secret"
    assert json.loads(request.content) == {
        "request_id": "r-1",
        "query": "quiet cafes",
        "notes": [{"id": "n0", "title": "A title", "body": "body"}],
        "criteria": None,
        "deadline_ms": 5000,
        "priority": "batch",
    }


async def test_an_answer_from_a_cache_has_no_engine_time() -> None:
    found = await answering(results=[{**RESULT, "source": "redis"}]).score(mirrored("body"))
    assert found.engine_ms is None
    found = await answering().score(mirrored("body"))
    assert found.engine_ms == 7.0


async def test_the_reading_of_each_note_is_known() -> None:
    found = await answering(results=[{**RESULT, "reading": "vectors"}]).score(mirrored("body"))
    assert found.readings == ("vectors",)
    assert (await answering().score(mirrored("body"))).readings == ("text",)  # of an older release


async def test_an_older_release_states_no_grading_version() -> None:
    assert (await answering().score(mirrored("body"))).grading_version is None
    newer = {**ANSWER["model"], "grading_version": "sha256:2"}
    assert (await answering(model=newer).score(mirrored("body"))).grading_version == "sha256:2"


def lose_connection(_: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("no route to http://user:secret@shadow")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda _: httpx.Response(422, text="quiet cafes"), "the shadow refused the request: HTTP 422"),
        (
            lambda _: httpx.Response(200, text="<html>"),
            "the shadow's response is not a valid answer to /score",
        ),
        (lose_connection, "the shadow did not answer: ConnectError"),
    ],
)
async def test_the_error_for_a_failure_holds_only_its_kind(
    answer: Callable[[httpx.Request], httpx.Response], message: str
) -> None:
    with pytest.raises(ShadowError, match=f"^{message}$"):
        await target(answer).score(mirrored("body"))


async def test_a_shadow_that_hangs_times_out() -> None:
    async def hang(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(60)
        return httpx.Response(200)

    hanging = HttpTarget("http://shadow", "", 0.05, httpx.MockTransport(hang))
    with pytest.raises(ShadowError, match="TimeoutError"):
        await hanging.score(mirrored("body"))


@pytest.mark.parametrize(
    "changes",
    [
        {"results": []},
        {"results": None},
        {"results": [{**RESULT, "grade": 4}]},
        {"results": [{**RESULT, "grade": -1}]},
        {"results": [{**RESULT, "score": 1.5}]},
        {"results": [{**RESULT, "score": None}]},
        {"model": {}},
        {"timing_ms": []},
    ],
)
async def test_an_answer_of_another_shape_is_a_shadow_error(changes: dict[str, Any]) -> None:
    with pytest.raises(ShadowError, match="is not a valid answer to /score"):
        await answering(**changes).score(mirrored("body"))
