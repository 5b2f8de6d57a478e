from typing import Any

import pytest

from service.contract.prompt import Note
from tests.service.http.conftest import Service

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
    assert body["meta"]["warnings"] is None


async def test_usage_counts_the_tokens_of_the_engine(service: Service) -> None:
    renderer = service.stack.checkpoint.renderer
    notes = [Note("", text) for text in DOCUMENTS]
    tokens = sum(len(prompt.token_ids) for prompt in renderer.render("quiet cafes", notes, "general-1"))
    assert (await rerank(service))["usage"] == {"total_tokens": tokens}
    assert (await rerank(service))["usage"] == {"total_tokens": 0}


async def test_top_n_returns_the_best(service: Service) -> None:
    whole, top = await rerank(service), await rerank(service, top_n=1)
    assert top["results"] == whole["results"][:1]


async def test_documents_are_returned_on_request(service: Service) -> None:
    body = await rerank(service, return_documents=True)
    assert {r["index"]: r["document"]["text"] for r in body["results"]} == dict(enumerate(DOCUMENTS))


async def test_documents_may_be_objects_and_unknown_fields_are_ignored(service: Service) -> None:
    documents = [{"text": text, "url": "elsewhere"} for text in DOCUMENTS]
    foreign: dict[str, Any] = {
        "rank_fields": ["text"],
        "truncation": True,
        "model": "rerank-v3.5",
        "max_tokens_per_doc": 4096,
    }
    strings, objects = await rerank(service), await rerank(service, documents=documents, **foreign)
    assert objects["results"] == strings["results"]


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
        ({"top_n": 0}, "top_n"),
        ({"documents": [{"text": "t", "title": "x" * 2_001}]}, "documents.0.title"),
    ],
)
async def test_bad_requests_are_refused(service: Service, changes: dict[str, Any], field: str) -> None:
    response = await service.client.post("/rerank", json={"query": "q", "documents": DOCUMENTS, **changes})
    assert response.status_code == 422
    assert [error["field"] for error in response.json()["errors"]] == [field]
