import asyncio
from typing import Any

import httpx
import pytest

from service.contract.prompt import Note
from service.http.answering import PARTS_AT_ONCE
from service.http.auth import hash_key
from tests.service.http.conftest import Service, problem, settings
from tests.waiting import until

DOCUMENTS = ["A quiet cafe.", "Surf beaches.", "A loud bar with light."]
QUERIES = ["quiet cafes", "surfing", "quiet cafes"]


async def ask(service: Service, **body: Any) -> httpx.Response:
    return await service.client.post("/v1/score", json=body)


async def scores(service: Service, **body: Any) -> list[float]:
    response = await ask(service, **body)
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    assert [item["index"] for item in data] == list(range(len(data)))
    return [item["score"] for item in data]


async def score(service: Service, query: str, documents: list[str], **changes: Any) -> list[float]:
    """Score the same by /score."""
    notes = [{"id": str(i), "body": text} for i, text in enumerate(documents)]
    response = await service.score(query=query, notes=notes, **changes)
    return [result["score"] for result in response.json()["results"]]


async def test_the_answer_has_vllms_shape(service: Service) -> None:
    response = await ask(service, model="any", text_1="quiet cafes", text_2=DOCUMENTS)
    body = response.json()
    assert body.keys() == {"id", "object", "created", "model", "data", "usage"}
    assert (body["object"], body["model"]) == ("list", "tiny-1")
    assert body["id"] == response.headers["x-request-id"]
    assert [item.keys() for item in body["data"]] == [{"index", "object", "score"}] * 3
    assert {item["object"] for item in body["data"]} == {"score"}
    renderer = service.stack.checkpoint.renderer
    prompts = renderer.render("quiet cafes", [Note("", text) for text in DOCUMENTS], "general-1")
    tokens = sum(len(prompt.token_ids) for prompt in prompts)
    assert body["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


@pytest.mark.parametrize(
    "names", [("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2")]
)
async def test_one_query_is_scored_with_every_document(service: Service, names: tuple[str, str]) -> None:
    expected = await score(service, "quiet cafes", DOCUMENTS)
    for query in ("quiet cafes", ["quiet cafes"]):
        assert await scores(service, **{names[0]: query, names[1]: DOCUMENTS}) == expected
    assert await scores(service, **{names[0]: "quiet cafes", names[1]: DOCUMENTS[1]}) == expected[1:2]


async def test_each_query_is_scored_with_its_document(service: Service) -> None:
    expected = [
        (await score(service, *pair))[0] for pair in zip(QUERIES, ([d] for d in DOCUMENTS), strict=True)
    ]
    assert await scores(service, text_1=QUERIES, text_2=DOCUMENTS) == expected
    assert len(set(expected)) == 3


async def test_our_fields_are_those_of_score(service: Service) -> None:
    strict = await score(service, "quiet cafes", DOCUMENTS, criteria="strict-1")
    own: dict[str, Any] = {"criteria": "strict-1", "priority": "batch", "deadline_ms": 5000}
    assert await scores(service, text_1="quiet cafes", text_2=DOCUMENTS, **own) == strict
    [cut] = service.stack.checkpoint.renderer.cut([Note("", DOCUMENTS[0])], 3)
    short = await score(service, "quiet cafes", [cut.body])
    assert await scores(service, text_1="quiet cafes", text_2=DOCUMENTS[0], max_tokens_per_doc=3) == short
    assert short != await score(service, "quiet cafes", DOCUMENTS[:1])


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"text_1": []}, "text_1"),
        ({"text_1": " "}, "text_1.0"),
        ({"text_1": "x" * 2_001}, "text_1.0"),
        ({"text_1": ["a", "b"]}, "text_2"),
        ({"text_1": [{"content": []}]}, "text_1.0"),
        ({"text_2": []}, "text_2"),
        ({"text_2": ["x"] * 257}, "text_2"),
        ({"text_2": 3}, "text_2"),
        ({"text_2": ["a", "x" * 100_001]}, "text_2.1"),
        ({"deadline_ms": 0}, "deadline_ms"),
        ({"criteria": "unknown"}, "criteria"),
        ({"priority": "urgent"}, "priority"),
    ],
)
async def test_bad_requests_are_refused(service: Service, changes: dict[str, Any], field: str) -> None:
    response = await ask(service, **{"text_1": "q", "text_2": DOCUMENTS, **changes})
    assert problem(response) == (422, "invalid-request")
    assert [error["field"] for error in response.json()["errors"]] == [field]


async def test_the_numbers_of_queries_and_documents_must_match(service: Service) -> None:
    response = await ask(service, queries=["a", "b"], documents=DOCUMENTS)
    [bad] = response.json()["errors"]
    assert bad["message"].startswith("there are 2 queries and 3 documents: send one query")


async def test_one_failed_pair_fails_the_request(service: Service) -> None:
    renderer = service.stack.checkpoint.renderer
    [prompt] = renderer.render("quiet cafes", [Note("", DOCUMENTS[1])], "general-1")
    service.engine.fail_on(prompt.token_ids)
    response = await ask(service, text_1="quiet cafes", text_2=DOCUMENTS)
    assert problem(response) == (500, "engine-request")
    assert "1 of the query's 3 pairs" in response.json()["detail"]


async def test_one_late_pair_fails_the_request(service: Service) -> None:
    await score(service, "quiet cafes", DOCUMENTS[:2])
    service.engine.hold()
    response = await ask(service, text_1="quiet cafes", text_2=DOCUMENTS, deadline_ms=50)
    assert problem(response) == (504, "deadline-exceeded")
    assert "2 of the query's 3 pairs were scored within 50 ms" in response.json()["detail"]


@settings(max_backlog_tokens=1_000)
async def test_one_shed_pair_fails_the_request(service: Service) -> None:
    service.engine.hold()
    documents = [f"{i} " + "word " * 60 for i in range(40)]
    asking = asyncio.create_task(ask(service, text_1="quiet cafes", text_2=documents))
    await until(lambda: service.engine.in_flight >= 1)
    service.engine.let_go()
    response = await asking
    assert problem(response) == (503, "overloaded")
    assert 1 <= int(response.headers["retry-after"]) <= 60


async def test_one_failed_query_cancels_the_others(service: Service) -> None:
    renderer = service.stack.checkpoint.renderer
    [prompt] = renderer.render("surfing", [Note("", DOCUMENTS[1])], "general-1")
    service.engine.fail_on(prompt.token_ids)
    await scores(service, text_1="quiet cafes", text_2=DOCUMENTS[0])
    service.engine.hold()
    asking = asyncio.create_task(ask(service, text_1=["surfing", "cafes"], text_2=DOCUMENTS[1:]))
    await until(lambda: service.engine.in_flight == 2)
    service.engine.let_go()
    assert problem(await asking) == (500, "engine-request")
    assert service.engine.in_flight == 0


async def test_many_queries_share_one_deadline(service: Service) -> None:
    """They are scored a few at a time, and the last of them wait no longer than the first."""
    service.engine.hold()
    queries = [f"query {i}" for i in range(2 * PARTS_AT_ONCE)]
    asking = asyncio.create_task(ask(service, text_1=queries, text_2=queries, deadline_ms=1000))
    await until(lambda: service.engine.in_flight == PARTS_AT_ONCE)
    assert problem(await asking) == (504, "deadline-exceeded")
    assert service.engine.in_flight == 0
    service.engine.let_go()
    assert len(set(await scores(service, text_1=queries, text_2=queries))) == len(queries)


@settings(keys=f"score:{hash_key('key')}:one", rate_limit="6/hour")
async def test_the_pairs_of_all_queries_count_together(service: Service) -> None:
    headers = {"Authorization": "Bearer key"}
    for status in (200, 200, 429):
        body = {"text_1": QUERIES, "text_2": DOCUMENTS}
        assert (await service.client.post("/v1/score", json=body, headers=headers)).status_code == status


@settings(log_texts=True)
async def test_the_log_event_covers_all_queries(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "service.request"):
        await scores(service, text_1=QUERIES, text_2=DOCUMENTS)
    [event] = [vars(record) for record in caplog.records if record.message == "request"]
    assert (event["route"], event["notes"]) == ("/v1/score", 3)
    assert (event["outcomes"], event["sources"]) == ({"scored": 3}, {"engine": 3})
    assert event["query"] == ["quiet cafes", "surfing"]
    assert sorted(body for _, body in event["texts"]) == sorted(DOCUMENTS)


@pytest.mark.engine
async def test_vllms_own_requests_and_answers_fit(service: Service) -> None:
    """Requests made by vLLM's own models, with every default written out, are answered, and its models read the answers."""
    from vllm.entrypoints.pooling.scoring import protocol

    requests: list[Any] = [
        protocol.ScoreTextRequest(text_1="quiet cafes", text_2=DOCUMENTS),
        protocol.ScoreQueriesDocumentsRequest(queries=QUERIES, documents=DOCUMENTS),
        protocol.ScoreQueriesItemsRequest(queries="quiet cafes", items=DOCUMENTS),
        protocol.ScoreDataRequest(data_1="quiet cafes", data_2=DOCUMENTS[0]),
    ]
    for request in requests:
        response = await ask(service, **request.model_dump(mode="json"))
        answer = protocol.ScoreResponse.model_validate_json(response.text)
        assert not answer.model_extra
        assert len(answer.data) == (3 if isinstance(request.data_2, list) else 1)
    rerank = protocol.RerankRequest(query="quiet cafes", documents=DOCUMENTS).model_dump(mode="json")
    for path in ("/rerank", "/v1/rerank"):
        response = await service.client.post(path, json=rerank)
        ranked = protocol.RerankResponse.model_validate_json(response.text)
        assert [result.document.text for result in ranked.results] == [
            DOCUMENTS[r.index] for r in ranked.results
        ]
