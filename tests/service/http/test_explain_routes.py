import asyncio
import json
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from service.contract.prompt import Note
from service.explaining.mode import Flip
from service.http.auth import hash_key
from tests.service.http.conftest import REQUEST, Service, problem, settings
from tests.waiting import until

KEYS = ",".join(
    [
        f"score:{hash_key('score-key')}:ranker",
        f"admin:{hash_key('admin-key')}:ann",
        f"score:{hash_key('other')}",
    ]
)
TRACE = 'topic: query "cafes" => 3\nconstraints: no light => {grade}\n'
MODE = "/admin/explanation-mode"
FLIP: dict[str, Any] = {"mode": "on_request", "ttl_s": 600, "reason": "a note ranks high"}


async def flip(
    service: Service, mode: str = "on_request", *, etag: str | None = None, **changes: Any
) -> httpx.Response:
    etag = etag or (await service.client.get(MODE)).headers["etag"]
    body = {**FLIP, "mode": mode, **changes}
    if mode == "off":
        del body["ttl_s"]
    return await service.client.put(MODE, json=body, headers={"If-Match": etag})


def set_traces(service: Service, grade: int = 3) -> None:
    tokenizer = service.stack.checkpoint.tokenizer
    service.engine.trace = tokenizer.encode_user_texts([TRACE.format(grade=grade)])[0].token_ids


async def test_the_mode_is_off_at_first(service: Service) -> None:
    response = await service.client.get(MODE)
    assert response.headers["etag"] == '"0"'
    assert response.json()["mode"] == "off"
    assert response.json()["last"]["revision"] == 0


async def test_a_flip_is_answered_and_shown_in_score_answers(service: Service) -> None:
    response = await flip(service)
    body = response.json()
    assert (response.status_code, response.headers["etag"]) == (200, '"1"')
    assert (body["mode"], body["last"]["owner"], body["last"]["reason"]) == (
        "on_request", "anybody", "a note ranks high",
    )  # fmt: skip
    assert body["left_s"] == pytest.approx(600, abs=5)
    assert (await service.score()).json()["explanation_mode"] == "on_request"
    history = (await service.client.get(f"{MODE}/history")).json()["flips"]
    assert history == [body["last"]]


@pytest.mark.parametrize("most", ["0", "1001", "many", ""])
async def test_a_bad_query_parameter_is_a_problem(service: Service, most: str) -> None:
    response = await service.client.get(f"{MODE}/history", params={"most": most})
    assert (response.status_code, response.json()["errors"][0]["field"]) == (422, "most")
    assert response.headers["content-type"] == "application/problem+json"


async def test_a_flip_without_if_match_is_refused(service: Service) -> None:
    response = await service.client.put(MODE, json=FLIP)
    assert problem(response) == (428, "mode-unconditional")


@pytest.mark.parametrize("etag", ['"7"', "*", "0", 'W/"0"', '"x"', '"9999999999999999999999"'])
async def test_a_flip_with_another_etag_is_refused(service: Service, etag: str) -> None:
    response = await flip(service, etag=etag)
    assert problem(response) == (412, "mode-conflict")
    assert (await service.client.get(MODE)).json()["last"]["revision"] == 0


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, ["mode", "reason"]),
        ({**FLIP, "ttl_s": 1e9}, ["ttl_s"]),
        ({**FLIP, "reason": " "}, ["reason"]),
        ({**FLIP, "more": 1}, ["more"]),
        ({**FLIP, "mode": "loud"}, ["mode"]),
    ],
)
async def test_a_bad_flip_lists_its_fields(service: Service, body: dict[str, Any], fields: list[str]) -> None:
    response = await service.client.put(MODE, json=body, headers={"If-Match": '"0"'})
    assert response.status_code == 422
    assert [bad["field"] for bad in response.json()["errors"]] == fields


@settings(guard_p99_ms=1, explanation_max_ttl_s=700)
async def test_a_breached_guard_refuses_flips(service: Service) -> None:
    for _ in range(30):
        service.stack.live.count_latency(2.0)
    await until(lambda: service.stack.explanations._guard.is_breached)
    response = await flip(service)
    assert response.status_code == 409
    assert 0 < int(response.headers["retry-after"]) <= 60
    assert (await flip(service, "off")).status_code == 200  # off is always allowed


async def test_no_task_is_started_for_explanations_while_the_mode_is_off(service: Service) -> None:
    started: list[str] = []

    def start(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        started.append(work.__qualname__)
        return asyncio.Task(work, loop=loop, **options)

    asyncio.get_running_loop().set_task_factory(start)
    assert (await service.score()).json()["explanation_mode"] == "off"
    asyncio.get_running_loop().set_task_factory(None)
    assert any("score" in name or "answer" in name for name in started)
    assert not any("explain" in name for name in started)


async def test_requested_traces_are_part_of_the_answer(service: Service) -> None:
    plain = (await service.score()).json()
    await flip(service)
    grades = [result["grade"] for result in plain["results"]]
    set_traces(service, grades[0])
    answer = (await service.score(explain=True, request_id="r-2")).json()
    for before, after, grade in zip(plain["results"], answer["results"], grades, strict=True):
        explanation = after.pop("explanation")
        assert (explanation["outcome"], explanation["well_formed"]) == ("made", True)
        assert explanation["agrees"] is (grade == grades[0])
        assert explanation["grounded"] is True
        cited = {"field": "query", "text": "cafes", "found": True, "missing": False}
        last = {"criterion": "constraints", "finding": "no light", "grade": grades[0], "citations": []}
        assert explanation["steps"] == [
            {"criterion": "topic", "finding": 'query "cafes"', "grade": 3, "citations": [cited]},
            last,
        ]
        assert before.pop("explanation") is None
        assert (before.pop("source"), after.pop("source")) == ("engine", "local")
        assert after == before


async def test_on_request_explains_nothing_that_is_not_requested(service: Service) -> None:
    await flip(service)
    set_traces(service)
    answer = (await service.score()).json()
    assert [result["explanation"] for result in answer["results"]] == [None, None]
    assert service.engine.continued == []


async def test_all_defers_explanations_and_stores_them(service: Service) -> None:
    await flip(service, "all")
    set_traces(service)
    answer = (await service.score()).json()
    assert [result["explanation"]["outcome"] for result in answer["results"]] == ["deferred"] * 2
    await until(lambda: service.count("explanations_total", outcome="well_formed") == 2)
    kept = (await service.client.get("/explanations/r-1")).json()
    assert kept["request_id"] == "r-1"
    assert [(e["note_id"], e["outcome"], e["well_formed"]) for e in kept["explanations"]] == [
        ("n1", "made", True),
        ("n2", "made", True),
    ]


@pytest.mark.parametrize("request_id", ["a/b", "a b?c=%2F&d", "x" * 128])
async def test_any_request_id_is_found_again(service: Service, request_id: str) -> None:
    await flip(service, "all")
    set_traces(service)
    await service.score(request_id=request_id)
    await until(lambda: service.count("explanations_total", outcome="well_formed") == 2)
    found = await service.client.get(f"/explanations/{quote(request_id, safe='')}")
    assert (found.status_code, found.json()["request_id"]) == (200, request_id)


async def test_all_explains_reranked_documents_too(service: Service) -> None:
    await flip(service, "all")
    set_traces(service)
    answer = (await service.client.post("/rerank", json={"query": "cafes", "documents": ["a", "b"]})).json()
    await until(lambda: service.count("explanations_total", outcome="well_formed") == 2)
    kept = (await service.client.get(f"/explanations/{answer['id']}")).json()["explanations"]
    assert [explanation["note_id"] for explanation in kept] == ["0", "1"]


async def test_a_document_that_was_cut_is_explained_as_it_was_scored(service: Service) -> None:
    long = "quiet cafe " * 12
    [cut] = service.stack.checkpoint.renderer.cut([Note("", long.strip())], 6)
    await flip(service, "all")
    set_traces(service)
    for document in (long, cut.body):
        body = {"query": "cafes", "documents": [document], "max_tokens_per_doc": 6}
        assert (await service.client.post("/rerank", json=body)).status_code == 200
    await until(lambda: service.count("explanations_total", outcome="well_formed") == 2)
    of_long, of_cut = service.engine.continued
    assert of_long == of_cut


async def test_sample_explains_its_share(service: Service) -> None:
    await flip(service, "sample", rate=0.25)
    service.stack.explanations._draw = iter([0.2, 0.3]).__next__
    set_traces(service)
    answer = (await service.score()).json()
    outcomes = [result["explanation"] and result["explanation"]["outcome"] for result in answer["results"]]
    assert outcomes == ["deferred", None]


async def test_traces_that_miss_the_deadline_are_deferred(service: Service) -> None:
    await service.score()  # cached: so the score itself does not need the engine
    await flip(service)
    set_traces(service)
    service.engine.hold()
    answer = (await service.score(explain=True, deadline_ms=100)).json()
    assert [result["explanation"]["outcome"] for result in answer["results"]] == ["deferred"] * 2
    service.engine.let_go()
    await until(lambda: service.count("explanations_total", outcome="well_formed") == 2)
    assert len((await service.client.get("/explanations/r-1")).json()["explanations"]) == 2


async def test_dropped_explanations_are_reported(service: Service) -> None:
    await flip(service)
    notes = [{"id": f"n{i}", "body": "a cafe"} for i in range(80)]
    await service.score(notes=notes)
    service.engine.hold()
    answer = (await service.score(notes=notes, explain=True, deadline_ms=50)).json()
    dropped = [r["explanation"] for r in answer["results"] if r["explanation"]["outcome"] == "dropped"]
    assert {explanation["reason"] for explanation in dropped} == {"queue_full"}
    assert len(dropped) == 16
    service.engine.let_go()


@pytest.mark.parametrize(
    "stored",
    [
        b"\xff not ours",
        b'{"key_id": null, "told": {}}',
        b'{"key_id": null, "told": {"note_id": "a", "outcome": "unknown"}}',
    ],
    ids=["not JSON", "no fields", "unknown outcome"],
)
async def test_foreign_values_in_the_store_are_an_error(service: Service, stored: bytes) -> None:
    await service.stack.stores[1].put("r-1", {"x": stored})
    response = await service.client.get("/explanations/r-1")
    assert problem(response) == (503, "explanation-store-unavailable")


async def test_an_unknown_request_id_is_not_found(service: Service) -> None:
    response = await service.client.get("/explanations/r-9")
    assert problem(response) == (404, "explanation-not-found")


PAIR = {"query": REQUEST["query"], "note": {"title": "Cafes", "body": "A quiet cafe with light."}}


def read_events(text: str) -> list[tuple[str, Any]]:
    events = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return events


async def explain_held(service: Service) -> "asyncio.Task[httpx.Response]":
    """Ask for one pair, which stays in the engine until it lets go."""
    service.engine.hold()
    task = asyncio.create_task(service.client.post("/explain", json=PAIR))
    await until(lambda: service.engine.in_flight == 1)
    return task


async def test_one_pair_is_streamed(service: Service) -> None:
    score = (await service.score()).json()["results"][0]
    await flip(service)
    set_traces(service, score["grade"])
    response = await service.client.post("/explain", json=PAIR)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-store"
    events = read_events(response.text)
    assert [name for name, _ in events if name != "text"] == ["score", "explanation"]
    assert events[0][1]["distribution"] == score["distribution"]
    assert events[0][1]["explanation_mode"] == "on_request"
    assert "".join(data for name, data in events if name == "text") == TRACE.format(grade=score["grade"])
    assert (events[-1][1]["outcome"], events[-1][1]["agrees"]) == ("made", True)


async def test_streaming_is_refused_while_the_mode_is_off(service: Service) -> None:
    response = await service.client.post("/explain", json=PAIR)
    assert problem(response) == (409, "explanations-off")
    assert service.engine.finished == len(service.stack.checkpoint.probes)  # not even scored


async def test_a_mode_turned_off_while_scoring_is_not_retryable(service: Service) -> None:
    await flip(service)
    task = await explain_held(service)
    await flip(service, "off")
    service.engine.let_go()
    response = await task
    assert (response.status_code, response.json()["retryable"]) == (409, False)
    assert response.json()["type"].endswith("explanations-off")


async def test_a_client_that_leaves_a_stream_ends_its_work(service: Service) -> None:
    await service.score()
    await flip(service)
    service.engine.trace = (5,) * 1000
    task = await explain_held(service)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await until(lambda: service.count("explanations_total", outcome="abandoned") == 1)
    assert service.engine.in_flight == 0


async def test_a_mode_turned_off_while_streaming_is_reported(service: Service) -> None:
    await service.score()
    await flip(service)
    set_traces(service)
    task = await explain_held(service)
    await flip(service, "off")
    service.engine.let_go()
    events = read_events((await task).text)
    assert (events[-1][1]["outcome"], events[-1][1]["reason"]) == ("dropped", "mode_off")


@settings(keys=KEYS)
async def test_only_admins_flip_and_the_owner_is_the_key(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    as_score, as_admin = ({"Authorization": f"Bearer {key}"} for key in ("score-key", "admin-key"))
    for path in (MODE, f"{MODE}/history", "/admin/figures"):
        assert (await service.client.get(path)).status_code == 401
        assert (await service.client.get(path, headers=as_score)).status_code == 403
        assert (await service.client.get(path, headers=as_admin)).status_code == 200
    refused = await service.client.put(MODE, json=FLIP, headers={"If-Match": '"0"', **as_score})
    assert refused.status_code == 403
    with caplog.at_level("INFO", "service.request"):
        flipped = await service.client.put(MODE, json=FLIP, headers={"If-Match": '"0"', **as_admin})
    assert flipped.json()["last"]["owner"] == "ann"
    [record] = [r for r in caplog.records if r.name == "service.request"]
    assert (record.key, record.action, record.revision) == ("ann", "flip", 1)  # type: ignore[attr-defined]


@settings(keys=KEYS)
async def test_explanations_are_the_owners_and_the_admins(service: Service) -> None:
    await service.stack.explanations.flip(Flip("all", "test", "why", 60), 0)
    set_traces(service)
    for key in ("score-key", "other"):  # both chose the same id
        await service.client.post("/score", json=REQUEST, headers={"Authorization": f"Bearer {key}"})
    await until(lambda: service.count("explanations_total", outcome="well_formed") == 4)
    seen = {}
    for key in ("score-key", "other", "admin-key"):
        headers = {"Authorization": f"Bearer {key}"}
        response = await service.client.get("/explanations/r-1", headers=headers)
        seen[key] = len(response.json()["explanations"])
    assert seen == {"score-key": 2, "other": 2, "admin-key": 4}


async def test_figures_cover_the_last_minute(service: Service) -> None:
    await service.score()
    await service.score()
    body = (await service.client.get("/admin/figures")).json()
    assert body["minute"]["requests"] == 2
    assert body["minute"]["hit_rate"] == 0.5
    assert body["minute"]["shed_rate"] == 0
    assert len(body["seconds"]) == 60


async def test_no_text_is_in_logs_or_metrics(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG"):
        await flip(service, reason="hush")
        set_traces(service)
        await service.score(explain=True, query="zebra cafes")
        await service.client.post("/explain", json={**PAIR, "query": "zebra cafes"})
    assert "zebra" not in caplog.text + str([vars(record) for record in caplog.records])
    assert b"zebra" not in service.stack.metrics.render()[0]
