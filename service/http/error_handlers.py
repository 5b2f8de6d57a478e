"""Every error as application/problem+json (RFC 9457)."""

import logging
import math
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from service.errors import (
    PROBLEM_PREFIX,
    BadField,
    InvalidRequestError,
    NotAllowedError,
    NotegradeError,
    RoleMissingError,
)
from service.observability.logs import request_id_var
from service.observability.redaction import log_redacted

logger = logging.getLogger(__name__)


def problem_response(error: NotegradeError) -> JSONResponse:
    """The error as a problem, with Retry-After where the error knows it."""
    extra: dict[str, Any] = {"retryable": error.retryable}
    headers = {}
    if isinstance(error, InvalidRequestError) and error.fields:
        extra["errors"] = [{"field": bad.field, "message": bad.message} for bad in error.fields]
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if isinstance(error, NotAllowedError) and not isinstance(error, RoleMissingError):
        headers["WWW-Authenticate"] = "Bearer"
    return _problem(error.type, error.title, error.status, str(error), extra, headers)


def not_served(
    method: str, path: str, status: int = 404, title: str = "Not Found", headers: dict[str, str] | None = None
) -> JSONResponse:
    """That there is no such thing here."""
    kind = {404: "not-found", 405: "method-not-allowed"}.get(status, "http")
    detail = f"{method} {path} is not served here: see /docs"
    return _problem(f"{PROBLEM_PREFIX}{kind}", title, status, detail, {}, headers or {})


def install_error_handlers(app: FastAPI, *, log_texts: bool = False) -> None:
    """Answer the error tree, the framework's own errors and anything unforeseen as problems."""

    @app.exception_handler(NotegradeError)
    async def _ours(request: Request, error: NotegradeError) -> JSONResponse:
        request.state.event["problem"] = error.type
        if error.status >= 500:
            logger.warning("request failed", extra={"problem": error.type, "detail": str(error)})
        return problem_response(error)

    @app.exception_handler(RequestValidationError)
    async def _parameters(_request: Request, error: RequestValidationError) -> JSONResponse:
        # Of the query string: bodies are parsed by ourselves. The value is never quoted.
        fields = [BadField(".".join(map(str, e["loc"][1:])), e["msg"]) for e in error.errors()]
        return problem_response(InvalidRequestError.listing(fields))

    @app.exception_handler(HTTPException)
    async def _framework(request: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers or {})
        return not_served(request.method, request.url.path, error.status_code, str(error.detail), headers)

    @app.exception_handler(Exception)
    async def _unforeseen(_request: Request, error: Exception) -> JSONResponse:
        log_redacted(logger, "unforeseen error", error, log_texts=log_texts)
        detail = "this is a fault of the service: report it with the request id"
        return _problem(
            NotegradeError.type,
            NotegradeError.title,
            500,
            detail,
            {"retryable": NotegradeError.retryable},
            {},
        )


def _problem(
    kind: str, title: str, status: int, detail: str, extra: dict[str, Any], headers: dict[str, str]
) -> JSONResponse:
    content = {
        "type": kind,
        "title": title,
        "status": status,
        "detail": detail,
        "request_id": request_id_var.get(),
    }
    return JSONResponse({**content, **extra}, status, headers, media_type="application/problem+json")
