"""The limits of explanation mode, which are settings of the service."""

from pydantic import BaseModel, ConfigDict, Field


class ExplanationLimits(BaseModel):
    """The settings that limit explanations, and scoring while explanations are made."""

    model_config = ConfigDict(frozen=True)

    explanation_max_ttl_s: int = Field(
        14_400, ge=1, description="Longest time to live of explanation mode, in seconds"
    )
    explanation_queue: int = Field(
        64,
        ge=2,
        description="Most explanations that wait; half of the queue is reserved for those that requests ask for",
    )
    explanation_workers: int = Field(2, ge=1, description="Most explanations that are generated at once")
    explanation_tokens_per_s: float = Field(
        100.0,
        gt=0,
        description="Most tokens that explanations may take from the engine in a second, on average",
    )
    explanation_max_tokens: int = Field(160, ge=16, description="Longest trace with its cue, in tokens")
    explanation_wait_s: float = Field(
        30.0,
        gt=0,
        description="Longest time from the request for an explanation to its end; then it is dropped",
    )
    explanation_kept_s: int = Field(3600, ge=1, description="How long deferred explanations are kept")
    explanation_kept_requests: int = Field(
        1000,
        ge=1,
        description="Most requests whose deferred explanations are kept; the oldest are removed first",
    )
    guard_p99_ms: int = Field(
        5000,
        ge=1,
        description="p99 of online requests over 10 s, at least 20 of them, at which the guard turns explanation mode off",
    )
    guard_backlog_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of the largest backlog at which the guard turns explanation mode off",
    )
