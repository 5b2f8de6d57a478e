"""The one error tree of the service.

NotegradeError                       .type (stable, the problem+json type)  .status  .title  .retryable
├── InvalidRequestError        422   lists every bad field
│   ├── RequestTooLargeError   413
│   └── BodyTimeoutError       408   the body did not arrive in time
├── NotAllowedError            401   no key, or an unknown one
│   └── RoleMissingError       403   a known key without the role
├── OverloadedError            503   carries retry_after_s; only when every pair was shed
├── NotReadyError              503   still starting, draining, or probes not reproduced
├── DeadlineExceededError      504   only when no pair was scored
├── EngineError                500
│   ├── EngineRequestError     500   this pair failed, the engine lives
│   └── EngineLostError        503   the engine is dead, readiness off
├── CacheUnavailableError        –   never leaves scoring: counted, breaker told, scored without the cache
├── CheckpointError              –   at load, one clear line
│   ├── ManifestError            –
│   ├── LabelTokenError          –
│   └── ProbeMismatchError       –   readiness stays red
└── ConfigurationError           –   settings that can't be served with, one clear line

A status of – means the error never answers a request by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

PROBLEM_PREFIX = "urn:notegrade:problem:"


@dataclass(frozen=True, slots=True)
class BadField:
    """One thing wrong with a request: where (a JSON path like `notes.3.body`) and what to do about it."""

    field: str
    message: str


class NotegradeError(Exception):
    """Root of the tree. `str(error)` tells the caller what to do and never holds query or note text."""

    type: ClassVar[str] = f"{PROBLEM_PREFIX}internal"
    title: ClassVar[str] = "Internal error"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    retry_after_s: float | None = None


class InvalidRequestError(NotegradeError):
    type = f"{PROBLEM_PREFIX}invalid-request"
    title = "The request is not valid"
    status = 422

    def __init__(self, message: str, fields: Sequence[BadField] = ()) -> None:
        super().__init__(message)
        self.fields = tuple(fields)


class RequestTooLargeError(InvalidRequestError):
    type = f"{PROBLEM_PREFIX}request-too-large"
    title = "The request body is too large"
    status = 413


class BodyTimeoutError(InvalidRequestError):
    type = f"{PROBLEM_PREFIX}body-timeout"
    title = "The request body did not arrive in time"
    status = 408
    retryable = True


class NotAllowedError(NotegradeError):
    type = f"{PROBLEM_PREFIX}not-authenticated"
    title = "A valid key is needed"
    status = 401


class RoleMissingError(NotAllowedError):
    type = f"{PROBLEM_PREFIX}role-missing"
    title = "The key lacks the role"
    status = 403


class OverloadedError(NotegradeError):
    type = f"{PROBLEM_PREFIX}overloaded"
    title = "Every pair was shed"
    status = 503
    retryable = True

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotReadyError(NotegradeError):
    type = f"{PROBLEM_PREFIX}not-ready"
    title = "The service is not ready"
    status = 503
    retryable = True
    retry_after_s = 5.0


class DeadlineExceededError(NotegradeError):
    type = f"{PROBLEM_PREFIX}deadline-exceeded"
    title = "No pair was scored by the deadline"
    status = 504
    retryable = True


class EngineError(NotegradeError):
    type = f"{PROBLEM_PREFIX}engine"
    title = "The engine could not score"
    retryable = True


class EngineRequestError(EngineError):
    type = f"{PROBLEM_PREFIX}engine-request"
    title = "The engine failed on these pairs"


class EngineLostError(EngineError):
    type = f"{PROBLEM_PREFIX}engine-lost"
    title = "The engine is gone"
    status = 503
    retry_after_s = 30.0


class CacheUnavailableError(NotegradeError):
    type = f"{PROBLEM_PREFIX}cache-unavailable"
    title = "The cache did not answer"
    retryable = True


class CheckpointError(NotegradeError):
    type = f"{PROBLEM_PREFIX}checkpoint"
    title = "The checkpoint can't be served"


class ManifestError(CheckpointError):
    type = f"{PROBLEM_PREFIX}manifest"
    title = "The checkpoint's manifest is not valid"


class LabelTokenError(CheckpointError):
    type = f"{PROBLEM_PREFIX}label-token"
    title = "The checkpoint's labels are not single distinct tokens"


class ProbeMismatchError(CheckpointError):
    type = f"{PROBLEM_PREFIX}probe-mismatch"
    title = "The engine does not reproduce the checkpoint's probes"


class ConfigurationError(NotegradeError):
    type = f"{PROBLEM_PREFIX}configuration"
    title = "The settings can't be served with"
