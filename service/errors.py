"""The error tree of the service.

NotegradeError                       .type (stable, the problem+json type)  .status  .title  .retryable
├── NotServedError             404   no such route
│   └── MethodNotAllowedError  405
├── InvalidRequestError        422   lists every bad field
│   ├── RequestTooLargeError   413
│   ├── HeadTooLargeError      431   the connection is closed
│   ├── HeadTimeoutError       408   the headers did not arrive in time; the connection is closed
│   ├── BodyTimeoutError       408   the body did not arrive in time
│   └── MalformedHttpError     400   not HTTP; the connection is closed
├── NotAllowedError            401   no key, or an unknown one
│   └── RoleMissingError       403   a known key without the role
├── RateLimitedError           429   the key exceeds its rate limit; carries retry_after_s
├── OverloadedError            503   carries retry_after_s; when no pair was scored, or not all that must be
├── TooManyConnectionsError    503   the connection is closed
├── VectorsMissingError        503   only vectors are read, and these notes have none yet; carries retry_after_s
├── NotReadyError              503   still starting, or draining
├── DeadlineExceededError      504   when no pair was scored, or not all that must be; more time helps, a retry does not
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
├── VectorsOffError            404   the checkpoint has no encoder, or notes are read as text only
├── ShadowError                  –   never answers a request: counted and logged
├── EncoderError                 –   likewise; these notes are read as text
├── CheckpointError              –   at load; printed in one line
│   ├── ManifestError            –
│   ├── LabelTokenError          –
│   └── ProbeMismatchError     503   the service never becomes ready: a retry does not help
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
    """The root of the tree. `str(error)` tells the caller what to do, and never holds text of a query or a note.

    A subclass states its problem in its header, and inherits what it leaves out.
    """

    type: ClassVar[str] = f"{PROBLEM_PREFIX}internal"
    title: ClassVar[str] = "Internal error"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    retry_after_s: float | None = None

    def __init_subclass__(
        cls, kind: str = "", status: int = 0, *, retryable: bool = False, retry_after_s: float | None = None
    ) -> None:
        cls.type = PROBLEM_PREFIX + kind if kind else cls.type
        cls.status = status or cls.status
        cls.retryable = retryable or cls.retryable
        cls.retry_after_s = retry_after_s or cls.retry_after_s

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s


class NotServedError(NotegradeError, kind="not-found", status=404):
    title = "Not Found"

    def __init__(self, method: str, path: str) -> None:
        super().__init__(f"{method} {path} is not served here: see /docs")


class MethodNotAllowedError(NotServedError, kind="method-not-allowed", status=405):
    title = "Method Not Allowed"


class InvalidRequestError(NotegradeError, kind="invalid-request", status=422):
    title = "The request is not valid"

    def __init__(self, message: str, fields: Sequence[BadField] = ()) -> None:
        super().__init__(message)
        self.fields = tuple(fields)

    @classmethod
    def listing(cls, fields: Sequence[BadField]) -> "InvalidRequestError":
        """Make an error whose fields say everything."""
        return cls(f"{len(fields)} field(s) are not valid: see `errors`", fields)


class RequestTooLargeError(InvalidRequestError, kind="request-too-large", status=413):
    title = "The request body is too large"


class HeadTooLargeError(InvalidRequestError, kind="head-too-large", status=431):
    title = "The request's target and headers are too large"


class HeadTimeoutError(InvalidRequestError, kind="head-timeout", status=408, retryable=True):
    title = "The request's headers did not arrive in time"


class MalformedHttpError(InvalidRequestError, kind="malformed-http", status=400):
    title = "This is no HTTP/1.1"


class BodyTimeoutError(InvalidRequestError, kind="body-timeout", status=408, retryable=True):
    title = "The request body did not arrive in time"


class NotAllowedError(NotegradeError, kind="not-authenticated", status=401):
    title = "A valid key is needed"


class RoleMissingError(NotAllowedError, kind="role-missing", status=403):
    title = "The key lacks the role"


class RateLimitedError(NotegradeError, kind="rate-limited", status=429, retryable=True):
    title = "The key exceeds its rate limit"


class TooManyConnectionsError(
    NotegradeError, kind="too-many-connections", status=503, retryable=True, retry_after_s=1.0
):
    title = "Too many connections are open"


class OverloadedError(NotegradeError, kind="overloaded", status=503, retryable=True):
    title = "The service is overloaded"


class VectorsMissingError(
    NotegradeError, kind="vectors-missing", status=503, retryable=True, retry_after_s=5.0
):
    title = "The notes have no vectors yet"


class NotReadyError(NotegradeError, kind="not-ready", status=503, retryable=True, retry_after_s=5.0):
    title = "The service is not ready"


class DeadlineExceededError(NotegradeError, kind="deadline-exceeded", status=504):
    title = "The deadline passed before the pairs were scored"


class VectorsOffError(NotegradeError, kind="vectors-off", status=404):
    title = "This service reads notes as text only"


class EngineError(NotegradeError, kind="engine", retryable=True):
    title = "The engine could not score"


class EngineRequestError(EngineError, kind="engine-request"):
    title = "The engine failed on these pairs"


class EngineLostError(EngineError, kind="engine-lost", status=503, retry_after_s=30.0):
    title = "The engine is lost"


class RemoteStoreError(
    NotegradeError, kind="store-unavailable", status=503, retryable=True, retry_after_s=5.0
):
    title = "A store did not answer"


class CacheUnavailableError(RemoteStoreError, kind="cache-unavailable"):
    title = "The cache did not answer"


class ExplanationStoreError(RemoteStoreError, kind="explanation-store-unavailable"):
    title = "The store of modes and explanations did not answer"


class ModeConflictError(NotegradeError, kind="mode-conflict", status=412):
    title = "Explanation mode was changed in the meantime"


class ModeUnconditionalError(NotegradeError, kind="mode-unconditional", status=428):
    title = "A flip needs If-Match"


class ModeRefusedError(NotegradeError, kind="mode-refused", status=409, retryable=True):
    title = "Explanation mode can't be turned on now"


class ExplanationsOffError(NotegradeError, kind="explanations-off", status=409):
    title = "Explanation mode is off"


class ExplanationDroppedError(
    NotegradeError, kind="explanation-dropped", status=503, retryable=True, retry_after_s=5.0
):
    title = "The explanation was dropped"

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class ExplanationNotFoundError(NotegradeError, kind="explanation-not-found", status=404):
    title = "There is no such explanation"


class ShadowOffError(NotegradeError, kind="shadow-off", status=404):
    title = "No shadow is configured"


class ShadowError(NotegradeError, kind="shadow"):
    title = "The shadow did not score a mirrored request"


class EncoderError(NotegradeError, kind="encoder"):
    title = "The encoder made no vectors of these notes"


class CheckpointError(NotegradeError, kind="checkpoint"):
    title = "The checkpoint can't be served"


class ManifestError(CheckpointError, kind="manifest"):
    title = "The checkpoint's manifest is not valid"


class LabelTokenError(CheckpointError, kind="label-token"):
    title = "The checkpoint's labels are not single distinct tokens"


class ProbeMismatchError(CheckpointError, kind="probe-mismatch", status=503):
    title = "The engine does not reproduce the checkpoint's probes"


class CommandError(NotegradeError, kind="command"):
    title = "The command failed"


class ConfigurationError(NotegradeError, kind="configuration"):
    title = "The settings are not valid"
