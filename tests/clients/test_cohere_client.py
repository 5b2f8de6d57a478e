"""Cohere's own Python client, unmodified, works with the service: its classes for API v1 and v2."""

from collections.abc import Iterator
from typing import Any

import cohere
import pytest
from cohere.errors import GatewayTimeoutError, UnauthorizedError, UnprocessableEntityError

from service.contract.checkpoint import Checkpoint
from service.http.auth import hash_key
from tests.served import Served, served

QUERY = "quiet cafes"
DOCUMENTS = ["A quiet cafe.", "Surf beaches.", "A loud bar with light."]


@pytest.fixture(scope="module")
def service(checkpoint: Checkpoint) -> Iterator[Served]:
    with served(checkpoint, keys=f"score:{hash_key('key')}:ranker") as service:
        yield service


@pytest.fixture(scope="module")
def v1(service: Served) -> Iterator[Any]:
    with cohere.Client("key", base_url=service.url) as client:
        yield client


@pytest.fixture(scope="module")
def v2(service: Served) -> Iterator[Any]:
    with cohere.ClientV2("key", base_url=service.url) as client:
        yield client


def scores(answer: Any) -> list[tuple[int, float]]:
    return [(result.index, result.relevance_score) for result in answer.results]


def with_fields(**fields: Any) -> dict[str, Any]:
    """Make the request options that add our own fields to the body, and turn the client's retries off."""
    return {"additional_body_parameters": fields, "max_retries": 0}


def test_both_versions_rank_the_same(v1: Any, v2: Any) -> None:
    first = v1.rerank(query=QUERY, documents=DOCUMENTS, return_documents=False)
    second = v2.rerank(model="rerank-v3.5", query=QUERY, documents=DOCUMENTS)
    assert scores(first) == scores(second)
    assert [score for _, score in scores(second)] == sorted((s for _, s in scores(second)), reverse=True)
    assert first.results[0].document is None
    assert not hasattr(second.results[0], "document")
    assert second.meta.api_version.version == "2"


def test_v1_documents_are_returned_whole(v1: Any) -> None:
    documents = [{"text": text, "title": f"Note {i}"} for i, text in enumerate(DOCUMENTS)]
    answer = v1.rerank(
        query=QUERY,
        documents=documents,
        top_n=2,
        return_documents=True,
        rank_fields=["text"],
        max_chunks_per_doc=1,
    )
    assert len(answer.results) == 2
    for result in answer.results:
        assert result.document.model_dump() == documents[result.index]


def test_every_field_of_v2_is_taken(v2: Any) -> None:
    spans = cohere.RerankRelevantSpans(mode="enabled")
    plain = v2.rerank(model="m", query=QUERY, documents=DOCUMENTS)
    full = v2.rerank(
        model="m",
        query=QUERY,
        documents=DOCUMENTS,
        top_n=3,
        max_tokens_per_doc=4096,
        priority=5,
        relevant_spans=spans,
    )
    assert scores(full) == scores(plain)
    cut = v2.rerank(model="m", query=QUERY, documents=DOCUMENTS, max_tokens_per_doc=2)
    assert dict(scores(cut)) != dict(scores(plain))


def test_our_fields_are_sent_as_additional_parameters(v2: Any, service: Served) -> None:
    plain = v2.rerank(model="m", query=QUERY, documents=DOCUMENTS)
    strict = v2.rerank(
        model="m", query=QUERY, documents=DOCUMENTS, request_options=with_fields(criteria="strict-1")
    )
    assert dict(scores(strict)) != dict(scores(plain))
    with pytest.raises(UnprocessableEntityError) as refused:
        v2.rerank(model="m", query=QUERY, documents=DOCUMENTS, request_options=with_fields(criteria="none"))
    assert refused.value.body["errors"][0]["field"] == "criteria"
    service.engine.hold()
    try:
        with pytest.raises(GatewayTimeoutError) as late:
            v2.rerank(
                model="m", query="new", documents=DOCUMENTS, request_options=with_fields(deadline_ms=50)
            )
    finally:
        service.engine.let_go()
    assert late.value.body["type"] == "urn:notegrade:problem:deadline-exceeded"


def test_a_wrong_key_is_unauthorized(service: Served) -> None:
    with cohere.ClientV2("wrong", base_url=service.url) as client, pytest.raises(UnauthorizedError):
        client.rerank(model="m", query=QUERY, documents=DOCUMENTS)
