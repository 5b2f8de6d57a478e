"""The bodies of /rerank, in the shape that Cohere's and Jina's rerank clients send and expect, so that they work unchanged.

Source: Cohere API reference, Rerank v1 and v2; Jina AI Reranker API. Their fields that mean nothing here
(`rank_fields`, `truncation`, ...) are ignored, because a client can't leave them out.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from service.http.schemas import Body, Query, RequestLimits, Title, limit
from service.scoring.types import PairResult, ScoringAnswer, ScoringNote, ScoringRequest


class RerankDocument(BaseModel):
    """A document given as an object; its other fields are ignored."""

    model_config = ConfigDict(extra="ignore")

    text: Body
    title: Title | None = None


class RerankBody(BaseModel):
    """A query and documents to put in order."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = Field(None, description="Ignored: one model is served")
    query: Query
    documents: Annotated[list[RerankDocument], Field(min_length=1), limit("max_notes", "documents")]
    top_n: int | None = Field(None, ge=1)
    return_documents: bool = False

    @field_validator("documents", mode="before")
    @classmethod
    def _strings_are_documents(cls, documents: Any) -> Any:
        if not isinstance(documents, list):
            return documents
        return [{"text": document} if isinstance(document, str) else document for document in documents]

    def to_scoring(self, request_id: str, limits: RequestLimits, caller: str) -> ScoringRequest:
        """Return the same as a scoring request; a note's id is its document's position."""
        notes = [
            ScoringNote(str(i), document.title, document.text) for i, document in enumerate(self.documents)
        ]
        return ScoringRequest(request_id, self.query, tuple(notes), limits.deadline_ms(None), caller=caller)


class RerankedDocument(BaseModel):
    """The text of a ranked document, if the request asked for it."""

    text: str


class RerankResult(BaseModel):
    """The position of a document in the request, and its score."""

    index: int
    relevance_score: float
    document: RerankedDocument | None = None


class RerankUsage(BaseModel):
    """Jina's measure of work: the prompt tokens that the engine computed, so 0 for an answer from the cache."""

    total_tokens: int


class RerankMeta(BaseModel):
    """Cohere's metadata; its warnings name the documents that could not be scored, which the results leave out."""

    api_version: dict[str, str] = {"version": "2"}
    warnings: list[str] | None = None


class RerankResponse(BaseModel):
    """The ranked documents, best first; equal scores keep the request's order."""

    id: str
    model: str
    results: list[RerankResult]
    usage: RerankUsage
    meta: RerankMeta


def to_rerank_response(body: RerankBody, answer: ScoringAnswer, model: str) -> RerankResponse:
    """Return the answer in the shape of a rerank."""
    scored = [(i, r.judgement) for i, r in enumerate(answer.results) if r.judgement]
    ranked = sorted(scored, key=lambda pair: -pair[1].score)[: body.top_n]
    results = [
        RerankResult(
            index=index,
            relevance_score=judgement.score,
            document=RerankedDocument(text=body.documents[index].text) if body.return_documents else None,
        )
        for index, judgement in ranked
    ]
    return RerankResponse(
        id=answer.request_id,
        model=model,
        results=results,
        usage=RerankUsage(total_tokens=answer.engine_tokens),
        meta=RerankMeta(warnings=_warnings(answer.results)),
    )


def _warnings(results: tuple[PairResult, ...]) -> list[str] | None:
    missing = [f"document {r.note_id} was not scored: {r.outcome}" for r in results if not r.judgement]
    return missing or None
