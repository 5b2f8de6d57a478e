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
    BadField,
    BodyTimeoutError,
    InvalidRequestError,
    MethodNotAllowedError,
    NotAllowedError,
    NotegradeError,
    NotServedError,
    RoleMissingError,
)
from service.http.receive import ClientLeftError
from service.observability.request_context import current_request

logger = logging.getLogger(__name__)

# nginx's code for "client closed request": nobody reads this answer, but metrics and logs show its status.
CLIENT_CLOSED_REQUEST = 499


def problem_response(error: NotegradeError) -> JSONResponse:
    """Build the problem of an error, with Retry-After if the error knows it."""
    headers = {}
    problem: dict[str, Any] = {
        "type": error.type,
        "title": error.title,
        "status": error.status,
        "detail": str(error),
        "request_id": current_request.get().request_id,
        "retryable": error.retryable,
    }
    if isinstance(error, InvalidRequestError) and error.fields:
        problem["errors"] = [asdict(bad) for bad in error.fields]
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if isinstance(error, NotAllowedError) and not isinstance(error, RoleMissingError):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, BodyTimeoutError):
        headers["Connection"] = "close"  # the rest of the body may never come
    return JSONResponse(problem, error.status, headers, media_type="application/problem+json")


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
        kind = MethodNotAllowedError if error.status_code == 405 else NotServedError
        response = await _answer(request, kind(request.method, request.url.path))
        response.headers.update(error.headers or {})  # the methods that are allowed
        return response

    @app.exception_handler(ClientLeftError)
    async def _answer_nobody(_request: Request, _error: ClientLeftError) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
