"""The bodies of /v1/score, in the shape of vLLM's Score API, so that a client can change from one server to the other.

Source: vllm/entrypoints/pooling/scoring/protocol.py of vLLM 0.32.
"""

import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
)
from pydantic_core import PydanticCustomError

from service.http.foreign import ForeignBody, Usage
from service.http.schemas import Body, Query, RequestLimits, limit
from service.scoring.types import ScoringAnswer, ScoringNote, ScoringRequest


def _to_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _match_lengths(documents: list[str], info: ValidationInfo) -> list[str]:
    queries = len(info.data.get("queries", documents))
    if queries not in (1, len(documents)):
        message = (
            "there are {queries} queries and {documents} documents: send one query, or one for each document"
        )
        raise PydanticCustomError("lengths", message, {"queries": queries, "documents": len(documents)})
    return documents


OneOrMany = BeforeValidator(_to_list, json_schema_input_type=str | list[str])


class VllmScoreBody(ForeignBody):
    """One query and its documents, or a query for each document."""

    model_config = ConfigDict(validate_by_name=True)

    queries: Annotated[list[Query], Field(min_length=1), limit("max_notes", "queries"), OneOrMany] = Field(
        validation_alias=AliasChoices("text_1", "data_1"),
        description="Also named `queries` or `data_1`",
    )
    documents: Annotated[
        list[Body],
        Field(min_length=1),
        limit("max_notes", "documents"),
        OneOrMany,
        AfterValidator(_match_lengths),
    ] = Field(
        validation_alias=AliasChoices("text_2", "items", "data_2"),
        description="Also named `documents`, `items` or `data_2`",
    )

    def to_scoring(self, limits: RequestLimits, caller: str) -> list[ScoringRequest]:
        """Return a scoring request for each distinct query; a note's id is its document's position."""
        queries = self.queries * len(self.documents) if len(self.queries) == 1 else self.queries
        by_query: dict[str, list[ScoringNote]] = {}
        for i, (query, document) in enumerate(zip(queries, self.documents, strict=True)):
            by_query.setdefault(query, []).append(ScoringNote(str(i), None, document))
        return [
            self.request(query, notes, limits, caller, all_or_nothing=True)
            for query, notes in by_query.items()
        ]


class VllmScore(BaseModel):
    """The score of the pair at this position of the request."""

    index: int
    object: Literal["score"] = "score"
    score: float


class VllmScoreResponse(BaseModel):
    """The scores in the order of the request's documents."""

    id: str
    object: Literal["list"] = "list"
    created: int = Field(description="Unix time, in seconds")
    model: str
    data: list[VllmScore]
    usage: Usage


def to_vllm_response(answers: Sequence[ScoringAnswer], model: str) -> VllmScoreResponse:
    """Return the answers, in which every pair is scored, in vLLM's shape."""
    scores = {
        int(result.note_id): result.judgement.score
        for answer in answers
        for result in answer.results
        if result.judgement
    }
    return VllmScoreResponse(
        id=answers[0].request_id,
        created=int(time.time()),
        model=model,
        data=[VllmScore(index=index, score=scores[index]) for index in sorted(scores)],
        usage=Usage.of(sum(answer.engine_tokens for answer in answers)),
    )
