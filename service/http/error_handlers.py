"""Answer every error as application/problem+json (RFC 9457)."""

import logging
import math
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from service.errors import (
    PROBLEM_PREFIX,
    BadField,
    BodyTimeoutError,
    InvalidRequestError,
    NotAllowedError,
    NotegradeError,
    RoleMissingError,
)
from service.http.receive import ClientLeftError
from service.observability.request_context import current_request

logger = logging.getLogger(__name__)

# nginx's code for "client closed request": nobody reads this answer, but metrics and logs show its status.
CLIENT_CLOSED_REQUEST = 499


def problem_response(error: NotegradeError) -> JSONResponse:
    """Build the problem of an error, with Retry-After if the error knows it."""
    extra: dict[str, Any] = {"retryable": error.retryable}
    headers = {}
    if isinstance(error, InvalidRequestError) and error.fields:
        extra["errors"] = [asdict(bad) for bad in error.fields]
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if isinstance(error, NotAllowedError) and not isinstance(error, RoleMissingError):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, BodyTimeoutError):
        headers["Connection"] = "close"  # the rest of the body may never come
    return _problem(error.type, error.title, error.status, str(error), extra, headers)


def not_served(
    method: str, path: str, status: int = 404, title: str = "Not Found", headers: dict[str, str] | None = None
) -> JSONResponse:
    """Build the problem of a route or a method that does not exist here, and record it in the request's event."""
    kind = PROBLEM_PREFIX + {404: "not-found", 405: "method-not-allowed"}.get(status, "http")
    current_request.get().event["problem"] = kind
    detail = f"{method} {path} is not served here: see /docs"
    return _problem(kind, title, status, detail, {}, headers or {})


def install_error_handlers(app: FastAPI) -> None:
    """Answer the error tree and the framework's own errors as problems; RequestObserver answers any other exception."""

    @app.exception_handler(NotegradeError)
    async def _answer(_request: Request, error: NotegradeError) -> JSONResponse:
        current_request.get().event["problem"] = error.type
        if error.status >= 500:
            logger.warning("request failed", extra={"problem": error.type, "detail": str(error)})
        return problem_response(error)

    @app.exception_handler(RequestValidationError)
    async def _answer_bad_parameters(request: Request, error: RequestValidationError) -> JSONResponse:
        # Parameters of the URL and headers; bodies are parsed by the routes. The value is never quoted.
        fields = [BadField(".".join(map(str, e["loc"][1:])), e["msg"]) for e in error.errors()]
        return await _answer(request, InvalidRequestError.listing(fields))

    @app.exception_handler(HTTPException)
    async def _answer_not_served(request: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers or {})
        return not_served(request.method, request.url.path, error.status_code, str(error.detail), headers)

    @app.exception_handler(ClientLeftError)
    async def _answer_nobody(_request: Request, _error: ClientLeftError) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)


def _problem(
    kind: str, title: str, status: int, detail: str, extra: dict[str, Any], headers: dict[str, str]
) -> JSONResponse:
    content = {
        "type": kind,
        "title": title,
        "status": status,
        "detail": detail,
        "request_id": current_request.get().request_id,
    }
    return JSONResponse({**content, **extra}, status, headers, media_type="application/problem+json")
