"""The client works with the service on in-memory twins, and with prepared answers."""

import asyncio
import time
import traceback
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from notegrade_client import (
    AsyncNotegrade,
    BadField,
    Citation,
    NotegradeError,
    UnreachableError,
    UnreadableError,
)
from notegrade_client.models import ScoreAnswer as ClientAnswer
from service.contract.checkpoint import Checkpoint
from service.http.auth import hash_key
from service.http.schemas import ScoreResponse
from tests.clients.asking import NOTES, SCORED, Answers, ask, overloaded
from tests.served import Served, served
from tests.waiting import until

KEYS = f"score:{hash_key('key')}:ranker,admin:{hash_key('admin')}:ann"


@pytest.fixture
def service(checkpoint: Checkpoint) -> Iterator[Served]:
    with served(checkpoint, keys=KEYS) as service:
        yield service


async def test_notes_are_scored(kind: str, service: Served) -> None:
    answer = await ask(kind, service.url, deadline_s=20, request_id="r-1", criteria="strict-1")
    assert answer.request_id == "r-1"
    assert answer.model.criteria == "strict-1"
    assert [(result.id, result.outcome) for result in answer.results] == [("n1", "scored"), ("n2", "scored")]
    assert all(0 <= result.score <= 1 for result in answer.results)


async def test_the_deadline_is_sent_to_the_service(kind: str, service: Served) -> None:
    service.engine.hold()
    started = time.monotonic()
    with pytest.raises(NotegradeError) as caught:
        await ask(kind, service.url, deadline_s=4)
    assert caught.value.type == "urn:notegrade:problem:deadline-exceeded"
    assert caught.value.status == 504
    assert time.monotonic() - started < 20
    assert (service.engine.aborted, service.engine.in_flight) == (2, 0)


async def test_problems_are_raised_with_the_service_s_fields(kind: str, service: Served) -> None:
    with pytest.raises(NotegradeError, match="not valid") as caught:
        await ask(kind, service.url, deadline_s=20, criteria="none")
    [bad] = caught.value.errors
    assert (bad.field, "no such criteria" in bad.message) == ("criteria", True)
    with pytest.raises(NotegradeError) as caught:
        await ask(kind, service.url, key="wrong")
    assert (caught.value.status, caught.value.retryable) == (401, False)


async def test_an_unreachable_service_is_an_error_within_the_deadline(kind: str) -> None:
    with pytest.raises(UnreachableError, match="ConnectError"):
        await ask(kind, "http://127.0.0.1:1", deadline_s=1)


async def test_a_draining_service_still_answers(kind: str, checkpoint: Checkpoint) -> None:
    with served(checkpoint, keys=KEYS, drain_delay_s=3) as service:
        service.stack.readiness.set("draining", "a test")
        assert (await ask(kind, service.url, deadline_s=20)).results


@pytest.mark.parametrize(
    "failure",
    [
        overloaded(),
        overloaded(status=429),
        (502, {}, "a balancer's page"),
        httpx.ReadError("reset"),
        httpx.ConnectError("no"),
    ],
    ids=["shed", "rate-limited", "balancer", "reset", "refused"],
)
async def test_retryable_failures_are_retried(kind: str, failure: Any) -> None:
    answers = Answers(failure, failure, SCORED)
    answer = await ask(kind, "http://x", handler=answers, deadline_s=20)
    assert answer.results[0].score == 0.5
    assert len(answers.asked) == 3
    left = [asked["deadline_ms"] for asked in answers.asked]
    assert left == sorted(left, reverse=True)
    assert left[0] < 20_000


INVALID: tuple[int, dict[str, str], Any] = (
    422,
    {},
    {"type": "t", "detail": "bad", "errors": [{"field": "query", "message": "m"}]},
)


@pytest.mark.parametrize(("failure", "detail", "tries"), [(overloaded(), "shed", 3), (INVALID, "bad", 1)])
async def test_retryable_failures_have_three_tries_and_others_one(
    kind: str, failure: Any, detail: str, tries: int
) -> None:
    answers = Answers(failure)
    with pytest.raises(NotegradeError, match=detail):
        await ask(kind, "http://x", handler=answers, deadline_s=20)
    assert len(answers.asked) == tries


@pytest.mark.parametrize(
    ("errors", "read"),
    [("bad", ()), ([{"code": 7}, "bad"], (BadField("", ""),)), ({"query": "bad"}, ())],
    ids=["text", "other fields", "object"],
)
async def test_another_server_s_errors_are_a_problem(
    kind: str, errors: Any, read: tuple[BadField, ...]
) -> None:
    answers = Answers((400, {}, {"errors": errors}))
    with pytest.raises(NotegradeError, match="HTTP 400") as caught:
        await ask(kind, "http://x", handler=answers, deadline_s=20)
    assert caught.value.errors == read


async def test_another_server_s_answer_is_an_error_that_does_not_quote_it(kind: str) -> None:
    answers = Answers((200, {}, {"page": "welcome"}))
    with pytest.raises(UnreadableError, match="check the URL") as caught:
        await ask(kind, "http://x", handler=answers, deadline_s=20)
    assert "welcome" not in "".join(traceback.format_exception(caught.value))
    assert len(answers.asked) == 1


async def test_retry_after_beyond_the_deadline_fails_at_once(kind: str) -> None:
    answers = Answers(overloaded(after="5"))
    started = time.monotonic()
    with pytest.raises(NotegradeError) as caught:
        await ask(kind, "http://x", handler=answers, deadline_s=4)
    assert caught.value.retry_after_s == 5
    assert len(answers.asked) == 1
    assert time.monotonic() - started < 4


async def test_retry_after_is_respected(kind: str) -> None:
    answers = Answers(overloaded(after="1"), SCORED)
    started = time.monotonic()
    await ask(kind, "http://x", handler=answers, deadline_s=30)
    assert time.monotonic() - started >= 1


async def test_cancelling_aborts_the_service_s_work(service: Served) -> None:
    service.engine.hold()
    async with AsyncNotegrade(service.url, "key") as client:
        asking = asyncio.create_task(client.score("quiet cafes", NOTES, deadline_s=60))
        await until(lambda: service.engine.in_flight == 2, within_s=20)
        asking.cancel()
        await until(lambda: service.engine.aborted == 2, within_s=20)


async def test_deferred_explanations_can_be_read_later(service: Served) -> None:
    request_id = "page/1?a#b %41"  # all printable ASCII is allowed
    trace = 'topic: body "quiet cafe" => 3\nconstraints: nothing => 1\n'
    service.engine.trace = service.stack.checkpoint.tokenizer.encode_user_texts([trace])[0].token_ids
    async with httpx.AsyncClient(base_url=service.url, headers={"Authorization": "Bearer admin"}) as admin:
        etag = (await admin.get("/admin/explanation-mode")).headers["etag"]
        flip = {"mode": "all", "ttl_s": 60, "reason": "a test"}
        turned = await admin.put("/admin/explanation-mode", json=flip, headers={"If-Match": etag})
        assert turned.status_code == 200
    async with AsyncNotegrade(service.url, "key") as client:
        answer = await client.score("quiet cafes", NOTES, deadline_s=20, request_id=request_id)
        assert answer.results[0].explanation is not None
        assert answer.results[0].explanation.outcome == "deferred"
        async with asyncio.timeout(20):
            while True:
                try:
                    found = await client.explanations(request_id)
                except NotegradeError as error:
                    assert error.status == 404  # noqa: PT017 - until they are finished
                    found = {}
                if len(found) == 2:
                    break
                await asyncio.sleep(0.01)
    for note_id, is_true in (("n1", True), ("n2", False)):
        assert (found[note_id].well_formed, found[note_id].grounded) == (True, is_true)
        cited = [step.citations for step in found[note_id].steps or []]
        assert cited == [[Citation(field="body", text="quiet cafe", found=is_true)], []]


def fields(schema: dict[str, Any], name: str) -> dict[str, set[str]]:
    """Return the names of the fields of a JSON schema's object, and of all objects in it, by path."""
    found: dict[str, set[str]] = {}

    def walk(path: str, node: Any) -> None:
        if isinstance(node, dict):
            if "$ref" in node:
                walk(path, schema["$defs"][node["$ref"].rpartition("/")[2]])
            elif "properties" in node:
                found[path] = set(node["properties"])
                for key, value in node["properties"].items():
                    walk(f"{path}.{key}", value)
            else:
                for value in node.values():
                    walk(path, value)
        elif isinstance(node, list):
            for value in node:
                walk(path, value)

    walk(name, {**schema, "$defs": {}})
    return found


def test_the_client_s_models_have_every_field_of_the_wire_contract() -> None:
    assert fields(ClientAnswer.model_json_schema(), "answer") == fields(
        ScoreResponse.model_json_schema(), "answer"
    )
