"""The bodies of /rerank, in the shape that Cohere's and Jina's rerank clients send and expect, so that they work unchanged.

Source: Cohere API reference, Rerank v1 and v2; Jina AI Reranker API; vLLM's rerank protocol, which follows Jina's.
"""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from service.http.foreign import Count, ForeignBody, Usage
from service.http.schemas import Body, Query, RequestLimits, Title, limit
from service.scoring.types import PairResult, ScoringAnswer, ScoringNote, ScoringRequest


class RerankDocument(BaseModel):
    """A document given as an object. Its other fields are not read, but returned with it."""

    model_config = ConfigDict(extra="allow")

    text: Body
    title: Title | None = None


def _to_document(value: Any) -> Any:
    return {"text": value} if isinstance(value, str) else value


def _to_text(value: Any) -> Any:
    return value.get("text", value) if isinstance(value, dict) else value


class RerankBody(ForeignBody):
    """A query and documents to put in order."""

    query: Annotated[Query, BeforeValidator(_to_text, json_schema_input_type=str | dict[str, Any])] = Field(
        description="A text, or an object with the field `text`"
    )
    documents: Annotated[
        list[
            Annotated[
                RerankDocument, BeforeValidator(_to_document, json_schema_input_type=str | RerankDocument)
            ]
        ],
        Field(min_length=1),
        limit("max_notes", "documents"),
    ]
    top_n: Count | None = Field(None, description="Most results to return; 0 returns all")
    return_documents: bool | None = Field(
        None,
        description="Whether results hold their documents. The default is false on /v2/rerank, else true",
    )

    def to_scoring(self, limits: RequestLimits, caller: str) -> ScoringRequest:
        """Return the same as a scoring request; a note's id is its document's position."""
        notes = (
            ScoringNote(str(i), document.title, document.text) for i, document in enumerate(self.documents)
        )
        return self.request(self.query, notes, limits, caller)


class RerankResult(BaseModel):
    """The position of a document in the request, its score, and the document if the request asked for it."""

    index: int
    relevance_score: float
    document: RerankDocument | None = None


class RerankMeta(BaseModel):
    """Cohere's metadata; its warnings name the documents that could not be scored, which the results leave out."""

    api_version: dict[str, str] = {"version": "2"}
    warnings: list[str] | None = None


class RerankResponse(BaseModel):
    """The ranked documents, best first; equal scores keep the request's order."""

    id: str
    model: str
    results: list[RerankResult]
    usage: Usage
    meta: RerankMeta


def to_rerank_response(
    body: RerankBody, answer: ScoringAnswer, model: str, *, return_documents: bool
) -> RerankResponse:
    """Return the answer in the shape of a rerank; `return_documents` is the default where the body does not say."""
    if body.return_documents is not None:
        return_documents = body.return_documents
    scored = [(i, r.judgement) for i, r in enumerate(answer.results) if r.judgement]
    ranked = sorted(scored, key=lambda pair: -pair[1].score)[: body.top_n or None]
    results = [
        RerankResult(
            index=index,
            relevance_score=judgement.score,
            document=body.documents[index] if return_documents else None,
        )
        for index, judgement in ranked
    ]
    return RerankResponse(
        id=answer.request_id,
        model=model,
        results=results,
        usage=Usage.of(answer.engine_tokens),
        meta=RerankMeta(warnings=_warnings(answer.results)),
    )


def _warnings(results: tuple[PairResult, ...]) -> list[str] | None:
    missing = [f"document {r.note_id} was not scored: {r.outcome}" for r in results if not r.judgement]
    return missing or None
