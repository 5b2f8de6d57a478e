"""The errors of a call."""

import json
from dataclasses import dataclass

import httpx


@dataclass(frozen=True, slots=True)
class BadField:
    """One error in a request; `field` is a path like `notes.3.body`."""

    field: str
    message: str


class NotegradeError(Exception):
    """A problem that the service answered (RFC 9457); its subclasses are errors of the client.

    `type` is stable and meant for code. `retryable` says whether the same call may succeed later, `retry_after_s` how long to wait.
    """

    def __init__(
        self,
        detail: str,
        *,
        type_: str,
        status: int | None = None,
        retryable: bool = False,
        retry_after_s: float | None = None,
        request_id: str | None = None,
        errors: tuple[BadField, ...] = (),
    ) -> None:
        super().__init__(detail)
        self.type = type_
        self.status = status
        self.retryable = retryable
        self.retry_after_s = retry_after_s
        self.request_id = request_id
        self.errors = errors


class UnreachableError(NotegradeError):
    """The service did not answer: no connection was made, or it broke."""

    def __init__(self, error: httpx.TransportError) -> None:
        super().__init__(
            f"no answer: {type(error).__name__}", type_="urn:notegrade:client:unreachable", retryable=True
        )


class DeadlineError(NotegradeError):
    """The deadline passed before an answer came, or left no time to send the request."""

    def __init__(self) -> None:
        super().__init__(
            "no answer within the deadline", type_="urn:notegrade:client:deadline", retryable=True
        )


class UnreadableError(NotegradeError):
    """A successful answer that is not Notegrade's, such as a gateway's page."""

    def __init__(self) -> None:
        super().__init__(
            "the answer is not Notegrade's: check the URL", type_="urn:notegrade:client:unreadable"
        )


def read_problem(response: httpx.Response, content: bytes) -> NotegradeError:
    """Make the error of an answer, which may be another server's, such as a load balancer's."""
    try:
        problem = json.loads(content)
        if not isinstance(problem, dict):
            problem = {}
    except ValueError:  # a load balancer's page
        problem = {}
    after = response.headers.get("retry-after", "")
    listed = problem.get("errors")
    errors = [bad for bad in listed if isinstance(bad, dict)] if isinstance(listed, list) else []
    return NotegradeError(
        str(problem.get("detail") or f"HTTP {response.status_code}"),
        type_=str(problem.get("type") or "about:blank"),
        status=response.status_code,
        # A load balancer without a backend answers without `retryable`.
        retryable=bool(problem.get("retryable", response.status_code in (502, 503, 504))),
        retry_after_s=float(after) if after.isdigit() else None,
        request_id=problem.get("request_id"),
        errors=tuple(BadField(str(bad.get("field", "")), str(bad.get("message", ""))) for bad in errors),
    )
