from typing import Any

import pytest

from service.contract.prompt import Note
from tests.service.http.conftest import Service, problem, settings

DOCUMENTS = ["A quiet cafe.", "Surf beaches.", "A loud bar with light."]


async def rerank(service: Service, path: str = "/rerank", **changes: Any) -> dict[str, Any]:
    response = await service.client.post(
        path, json={"query": "quiet cafes", "documents": DOCUMENTS, **changes}
    )
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
async def test_documents_are_ranked_by_their_scores(service: Service, path: str) -> None:
    body = await rerank(service, path)
    notes = [{"id": str(i), "body": text} for i, text in enumerate(DOCUMENTS)]
    scores = [result["score"] for result in (await service.score(notes=notes)).json()["results"]]
    expected = sorted(range(3), key=lambda i: -scores[i])
    assert [result["index"] for result in body["results"]] == expected
    assert [result["relevance_score"] for result in body["results"]] == sorted(scores, reverse=True)
    assert body["model"] == "tiny-1"
    assert "warnings" not in body["meta"]


async def test_usage_counts_the_tokens_of_the_engine(service: Service) -> None:
    renderer = service.stack.checkpoint.renderer
    notes = [Note("", text) for text in DOCUMENTS]
    tokens = sum(len(prompt.token_ids) for prompt in renderer.render("quiet cafes", notes, "general-1"))
    assert (await rerank(service))["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert (await rerank(service))["usage"] == {"prompt_tokens": 0, "total_tokens": 0}


async def test_top_n_returns_the_best(service: Service) -> None:
    whole, top = await rerank(service), await rerank(service, top_n=1)
    assert top["results"] == whole["results"][:1]
    assert (await rerank(service, top_n=0))["results"] == whole["results"]


@pytest.mark.parametrize(
    ("path", "asked", "returned"),
    [
        ("/rerank", None, True),
        ("/v1/rerank", None, True),
        ("/v2/rerank", None, False),
        ("/v1/rerank", False, False),
        ("/v2/rerank", True, True),
    ],
)
async def test_documents_are_returned_as_each_api_does(
    service: Service, path: str, asked: bool | None, returned: bool
) -> None:
    body = await rerank(service, path, return_documents=asked)
    expected = {i: {"text": text} if returned else None for i, text in enumerate(DOCUMENTS)}
    assert {r["index"]: r.get("document") for r in body["results"]} == expected


async def test_returned_documents_keep_their_other_fields(service: Service) -> None:
    documents = [
        {"text": text, "title": "Cafes", "url": "elsewhere", "n": i} for i, text in enumerate(DOCUMENTS)
    ]
    body = await rerank(service, documents=documents)
    assert {r["index"]: r["document"] for r in body["results"]} == dict(enumerate(documents))


async def test_texts_may_be_objects_and_unknown_fields_are_ignored(service: Service) -> None:
    objects = {
        "documents": [{"text": text, "url": "elsewhere"} for text in DOCUMENTS],
        "query": {"text": "quiet cafes"},
    }
    foreign: dict[str, Any] = {"rank_fields": ["text"], "truncation": True, "model": "rerank-v3.5"}
    strings = await rerank(service, "/v2/rerank")
    assert (await rerank(service, "/v2/rerank", **objects, **foreign))["results"] == strings["results"]


async def test_the_criteria_are_those_of_score(service: Service) -> None:
    notes = [{"id": str(i), "body": text} for i, text in enumerate(DOCUMENTS)]
    strict = (await service.score(notes=notes, criteria="strict-1")).json()["results"]
    reranked = {
        r["index"]: r["relevance_score"] for r in (await rerank(service, criteria="strict-1"))["results"]
    }
    assert reranked == {i: result["score"] for i, result in enumerate(strict)}
    assert reranked != {r["index"]: r["relevance_score"] for r in (await rerank(service))["results"]}


async def test_the_deadline_is_kept(service: Service) -> None:
    service.engine.hold()
    body = {"query": "q", "documents": DOCUMENTS, "deadline_ms": 20}
    response = await service.client.post("/rerank", json=body)
    assert problem(response) == (504, "deadline-exceeded")
    assert "20 ms" in response.json()["detail"]


@pytest.mark.parametrize(
    ("priority", "meaning"), [("batch", "batch"), (1, "batch"), (999, "batch"), (0, "online"), (-1, "online")]
)
async def test_the_priority_is_a_name_or_a_number(
    service: Service, priority: str | int, meaning: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "service.request"):
        await rerank(service, priority=priority)
    [event] = [vars(record) for record in caplog.records if record.message == "request"]
    assert event["priority"] == meaning


async def test_long_documents_are_cut_before_anything_else_reads_them(service: Service) -> None:
    """A cut document is scored and cached as its start alone would be."""
    long, cut = "quiet cafe " * 12, await short(service, "quiet cafe " * 12)
    [alone] = (await rerank(service, documents=[cut]))["results"]
    [result] = (await rerank(service, documents=[long], max_tokens_per_doc=6))["results"]
    assert result == {"index": 0, "relevance_score": alone["relevance_score"], "document": {"text": long}}
    assert service.count("pair_source_total", source="local") == 1
    [whole] = (await rerank(service, documents=[long]))["results"]
    assert whole["relevance_score"] != alone["relevance_score"]
    for limit in (0, 48, 4096):  # none, the checkpoint's own, Cohere's default
        assert (await rerank(service, documents=[long], max_tokens_per_doc=limit))["results"] == [whole]


async def test_unknown_criteria_are_refused_before_documents_are_cut(service: Service) -> None:
    body = {"query": "q", "documents": ["quiet cafe " * 12], "max_tokens_per_doc": 6, "criteria": "none-1"}
    response = await service.client.post("/rerank", json=body)
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == "criteria"


async def short(service: Service, text: str) -> str:
    [note] = service.stack.checkpoint.renderer.cut([Note("", text.strip())], 6)
    assert 0 < len(note.body) < len(text) / 2
    return note.body


@settings(log_texts=True)
async def test_the_log_has_the_text_as_it_was_sent(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "service.request"):
        await rerank(service, documents=["quiet cafe " * 12], max_tokens_per_doc=6)
    [event] = [vars(record) for record in caplog.records if record.message == "request"]
    assert (event["query"], event["texts"]) == ("quiet cafes", [(None, "quiet cafe " * 12)])


async def test_cutting_keeps_the_deadline(service: Service) -> None:
    body = {"query": "q", "documents": ["word " * 19_000] * 9, "max_tokens_per_doc": 3, "deadline_ms": 5}
    response = await service.client.post("/rerank", json=body)
    assert problem(response) == (504, "deadline-exceeded")
    assert service.engine.finished == 3, "only the probes"


async def test_jinas_published_example_is_answered_in_its_shape(service: Service) -> None:
    """Jina's format as https://docs.newapi.pro/en/api/jinaai-rerank shows it, with shorter texts and without `completion_tokens`."""
    documents = ["Organic skincare with aloe vera", "New makeup trends", "Bio-Hautpflege mit Aloe Vera"]
    example = {
        "model": "jina-reranker-v2-base-multilingual",
        "query": "Organic skincare products for sensitive skin",
        "top_n": 2,
        "documents": documents,
    }
    published = {
        "results": [
            {"document": {"text": documents[0]}, "index": 0, "relevance_score": 0.8783142566680908},
            {"document": {"text": documents[2]}, "index": 2, "relevance_score": 0.7624675869941711},
        ],
        "usage": {"prompt_tokens": 815, "total_tokens": 815},
    }
    answer = (await service.client.post("/v1/rerank", json=example)).json()
    assert {name: _shape(answer[name]) for name in published} == _shape(published)
    assert all(result["document"]["text"] == documents[result["index"]] for result in answer["results"])


def _shape(value: Any) -> Any:
    """Return the names and types of JSON data."""
    if isinstance(value, dict):
        return {name: _shape(inner) for name, inner in value.items()}
    return [_shape(inner) for inner in value] if isinstance(value, list) else type(value)


async def test_warnings_name_documents_that_were_not_scored(service: Service) -> None:
    prompt = service.stack.checkpoint.renderer
    service.engine.fail_on(prompt.render("quiet cafes", [Note("", DOCUMENTS[1])], "general-1")[0].token_ids)
    body = await rerank(service)
    assert sorted(result["index"] for result in body["results"]) == [0, 2]
    assert body["meta"]["warnings"] == ["document 1 was not scored: failed"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"documents": []}, "documents"),
        ({"documents": ["x"] * 257}, "documents"),
        ({"documents": [3]}, "documents.0"),
        ({"documents": "one text"}, "documents"),
        ({"query": " "}, "query"),
        ({"query": {"image": "x"}}, "query"),
        ({"query": {"text": " "}}, "query"),
        ({"documents": [{"image": "x"}]}, "documents.0.text"),
        ({"top_n": -1}, "top_n"),
        ({"max_tokens_per_doc": -1}, "max_tokens_per_doc"),
        ({"deadline_ms": 0}, "deadline_ms"),
        ({"deadline_ms": "300"}, "deadline_ms"),
        ({"criteria": "unknown"}, "criteria"),
        ({"priority": "urgent"}, "priority"),
        ({"priority": True}, "priority"),
        ({"documents": [{"text": "t", "title": "x" * 2_001}]}, "documents.0.title"),
    ],
)
async def test_bad_requests_are_refused(service: Service, changes: dict[str, Any], field: str) -> None:
    response = await service.client.post("/rerank", json={"query": "q", "documents": DOCUMENTS, **changes})
    assert response.status_code == 422
    assert [error["field"] for error in response.json()["errors"]] == [field]
