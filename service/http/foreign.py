"""The fields that /rerank and /v1/score share: both have the shape of other services' APIs, with our own fields added."""

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from service.http.schemas import PRIORITY, Criteria, DeadlineMs, RequestLimits
from service.observability.request_context import current_request
from service.scoring.types import Priority, ScoringNote, ScoringRequest

Count = Annotated[int, Field(ge=0, strict=True)]


def _priority_of_number(value: Any) -> Any:
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return ("batch" if value > 0 else "online") if is_number else value


class ForeignBody(BaseModel):
    """The fields of both bodies. Other fields of those APIs are ignored, because clients can't leave them out."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = Field(None, description="Ignored: one model is served")
    max_tokens_per_doc: Count | None = Field(
        None,
        description="Documents are cut to this many tokens, their titles included. 0, or more than the checkpoint reads of a note, cuts nothing more than the checkpoint does",
    )
    deadline_ms: DeadlineMs = None
    priority: Annotated[
        Priority, BeforeValidator(_priority_of_number, json_schema_input_type=Priority | int)
    ] = Field("online", description=f"{PRIORITY}. As a number: `online` up to 0, `batch` above")
    criteria: Criteria = None

    def request(
        self,
        query: str,
        notes: Iterable[ScoringNote],
        limits: RequestLimits,
        caller: str,
        *,
        all_or_nothing: bool = False,
    ) -> ScoringRequest:
        """Return the scoring request for these notes."""
        return ScoringRequest(
            request_id=current_request.get().request_id or "",
            query=query,
            notes=tuple(notes),
            deadline_ms=limits.deadline_ms(self.deadline_ms),
            priority=self.priority,
            criteria=self.criteria,
            caller=caller,
            all_or_nothing=all_or_nothing,
        )


class Usage(BaseModel):
    """The prompt tokens that the engine computed for this request: 0 when every score came from the cache."""

    prompt_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, engine_tokens: int) -> "Usage":
        """Return the usage of a request that generates no text."""
        return cls(prompt_tokens=engine_tokens, total_tokens=engine_tokens)
