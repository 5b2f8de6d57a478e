"""What can go wrong with a call."""

import json
from dataclasses import dataclass

import httpx


@dataclass(frozen=True, slots=True)
class BadField:
    """One thing wrong with a request; `field` is a path like `notes.3.body`."""

    field: str
    message: str


class NotegradeError(Exception):
    """The service's problem (RFC 9457), or that there was no answer at all.

    `type` is stable and made for code; `retryable` says whether the same call may succeed later, `retry_after_s` not before when.
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
    """Nobody answered: no connection, or a broken one."""

    def __init__(self, error: httpx.TransportError) -> None:
        super().__init__(
            f"no answer: {type(error).__name__}", type_="urn:notegrade:client:unreachable", retryable=True
        )


class DeadlineError(NotegradeError):
    """The call's time was over before there was an answer, or too short to ask at all."""

    def __init__(self) -> None:
        super().__init__(
            "no answer within the deadline", type_="urn:notegrade:client:deadline", retryable=True
        )


def read_problem(response: httpx.Response, content: bytes) -> NotegradeError:
    """The error that an answer with this body tells of; whatever it is that answered."""
    try:
        problem = json.loads(content)
        if not isinstance(problem, dict):
            problem = {}
    except ValueError:  # a balancer's page
        problem = {}
    after = response.headers.get("retry-after", "")
    errors = problem.get("errors") or ()
    return NotegradeError(
        str(problem.get("detail") or f"HTTP {response.status_code}"),
        type_=str(problem.get("type") or "about:blank"),
        status=response.status_code,
        # A balancer without a backend doesn't know of `retryable`.
        retryable=bool(problem.get("retryable", response.status_code in (502, 503, 504))),
        retry_after_s=float(after) if after.isdigit() else None,
        request_id=problem.get("request_id"),
        errors=tuple(BadField(str(bad["field"]), str(bad["message"])) for bad in errors),
    )
