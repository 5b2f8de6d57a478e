"""The error tree of the service.

NotegradeError                       .type (stable, the problem+json type)  .status  .title  .retryable
├── InvalidRequestError        422   lists every bad field
│   ├── RequestTooLargeError   413
│   ├── HeadTooLargeError      431   the connection is closed
│   ├── HeadTimeoutError       408   the headers did not arrive in time; the connection is closed
│   ├── BodyTimeoutError       408   the body did not arrive in time
│   └── MalformedHttpError     400   not HTTP; the connection is closed
├── NotAllowedError            401   no key, or an unknown one
│   └── RoleMissingError       403   a known key without the role
├── RateLimitedError           429   the key exceeds its rate limit; carries retry_after_s
├── OverloadedError            503   carries retry_after_s; only when every pair was shed
├── TooManyConnectionsError    503   the connection is closed
├── NotReadyError              503   still starting, draining, or probes not reproduced
├── DeadlineExceededError      504   only when no pair was scored
├── EngineError                500
│   ├── EngineRequestError     500   this pair failed, the engine lives
│   └── EngineLostError        503   the engine is dead, readiness off
├── RemoteStoreError           503   a store did not answer in time
│   ├── CacheUnavailableError    –   never leaves scoring: counted, reported to the breaker, scored without the cache
│   └── ExplanationStoreError  503   a flip may have taken place: read the mode again; the mode expires without the store
├── ModeConflictError          412   explanation mode was changed in the meantime
├── ModeUnconditionalError     428   a flip must name the state that it changes (If-Match)
├── ModeRefusedError           409   the guard's limits are exceeded, or were a moment ago
├── ExplanationsOffError       409   explanation mode does not allow it
├── ExplanationDroppedError    503   explanations are dropped so that scores are not delayed
├── ExplanationNotFoundError   404   none was made, or it has expired
├── ShadowOffError             404   no shadow is configured
├── ShadowError                  –   never answers a request: counted and logged
├── CheckpointError              –   at load; printed in one line
│   ├── ManifestError            –
│   ├── LabelTokenError          –
│   └── ProbeMismatchError       –   the service never becomes ready
├── CommandError                 –   a command cannot be carried out; printed in one line
└── ConfigurationError           –   the service cannot run with these settings; printed in one line

A status of – means that the error never answers a request.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

PROBLEM_PREFIX = "urn:notegrade:problem:"


@dataclass(frozen=True, slots=True)
class BadField:
    """One error in a request: the field (a path like `notes.3.body`), and what is wrong with it."""

    field: str
    message: str


class NotegradeError(Exception):
    """The root of the tree. `str(error)` tells the caller what to do, and never holds text of a query or a note."""

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

    @classmethod
    def listing(cls, fields: Sequence[BadField]) -> "InvalidRequestError":
        """Make an error whose fields say everything."""
        return cls(f"{len(fields)} field(s) are not valid: see `errors`", fields)


class RequestTooLargeError(InvalidRequestError):
    type = f"{PROBLEM_PREFIX}request-too-large"
    title = "The request body is too large"
    status = 413


class HeadTooLargeError(InvalidRequestError):
    type = f"{PROBLEM_PREFIX}head-too-large"
    title = "The request's target and headers are too large"
    status = 431


class HeadTimeoutError(InvalidRequestError):
    type = f"{PROBLEM_PREFIX}head-timeout"
    title = "The request's headers did not arrive in time"
    status = 408
    retryable = True


class MalformedHttpError(InvalidRequestError):
    type = f"{PROBLEM_PREFIX}malformed-http"
    title = "This is no HTTP/1.1"
    status = 400


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


class RateLimitedError(NotegradeError):
    type = f"{PROBLEM_PREFIX}rate-limited"
    title = "The key exceeds its rate limit"
    status = 429
    retryable = True

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TooManyConnectionsError(NotegradeError):
    type = f"{PROBLEM_PREFIX}too-many-connections"
    title = "Too many connections are open"
    status = 503
    retryable = True
    retry_after_s = 1.0


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
    title = "The engine is lost"
    status = 503
    retry_after_s = 30.0


class RemoteStoreError(NotegradeError):
    type = f"{PROBLEM_PREFIX}store-unavailable"
    title = "A store did not answer"
    status = 503
    retryable = True
    retry_after_s = 5.0


class CacheUnavailableError(RemoteStoreError):
    type = f"{PROBLEM_PREFIX}cache-unavailable"
    title = "The cache did not answer"


class ExplanationStoreError(RemoteStoreError):
    type = f"{PROBLEM_PREFIX}explanation-store-unavailable"
    title = "The store of modes and explanations did not answer"


class ModeConflictError(NotegradeError):
    type = f"{PROBLEM_PREFIX}mode-conflict"
    title = "Explanation mode was changed in the meantime"
    status = 412


class ModeUnconditionalError(NotegradeError):
    type = f"{PROBLEM_PREFIX}mode-unconditional"
    title = "A flip needs If-Match"
    status = 428


class ModeRefusedError(NotegradeError):
    type = f"{PROBLEM_PREFIX}mode-refused"
    title = "Explanation mode can't be turned on now"
    status = 409
    retryable = True

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ExplanationsOffError(NotegradeError):
    type = f"{PROBLEM_PREFIX}explanations-off"
    title = "Explanation mode is off"
    status = 409


class ExplanationDroppedError(NotegradeError):
    type = f"{PROBLEM_PREFIX}explanation-dropped"
    title = "The explanation was dropped"
    status = 503
    retryable = True
    retry_after_s = 5.0

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class ExplanationNotFoundError(NotegradeError):
    type = f"{PROBLEM_PREFIX}explanation-not-found"
    title = "There is no such explanation"
    status = 404


class ShadowOffError(NotegradeError):
    type = f"{PROBLEM_PREFIX}shadow-off"
    title = "No shadow is configured"
    status = 404


class ShadowError(NotegradeError):
    type = f"{PROBLEM_PREFIX}shadow"
    title = "The shadow did not score a mirrored request"


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


class CommandError(NotegradeError):
    type = f"{PROBLEM_PREFIX}command"
    title = "The command failed"


class ConfigurationError(NotegradeError):
    type = f"{PROBLEM_PREFIX}configuration"
    title = "The settings are not valid"
