"""Extend FastAPI's OpenAPI document with the bodies that routes parse themselves and the problems they answer."""

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from service.http.explain_routes import ExplainBody, ModeChange
from service.http.note_routes import NotesBody
from service.http.rerank import RerankBody
from service.http.schemas import Problem, RequestLimits, ScoreBody
from service.http.vllm_score import VllmScoreBody

ABOUT = """\
**Begin with `POST /score`**: send a query, its notes and a deadline. Its example below can be sent unchanged.

- **Rank by `score`**, from 0 to 1. `grade` is for people and for thresholds.
- **Read each note's `outcome`.** An answer is 200 when at least one note is scored; the outcome of every other note says why it is not.
- **Deadline**: the answer comes by then, with the notes that are scored. The default is {default_deadline_ms:,} ms, the maximum {max_deadline_ms:,} ms.
- **Errors** are problems of RFC 9457 and list every bad field. If `retryable` is true, the same request may succeed later; wait for `Retry-After` if it is given.
- **Limits of one request**: {max_notes} notes, {max_query_chars:,} characters in the query, {max_title_chars:,} in a title and {max_body_chars:,} in a body. A checkpoint may read less of a note; then `truncated` is true.
- **Keys**: `Authorization: Bearer KEY`, if the service has keys. `/admin/` needs a key with the role `admin`.

The folder `clients/python` of the project holds a typed Python client, with one deadline for a call and all its retries.
"""


def install_openapi(app: FastAPI, limits: RequestLimits) -> None:
    """Add an introduction, the schemas of request bodies and the problems to /docs and /openapi.json."""
    make_default = app.openapi
    app.description = ABOUT.format_map(limits.model_dump(include=set(RequestLimits.model_fields)))

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _, bodies = models_json_schema(
                [
                    (model, "validation")
                    for model in (
                        ScoreBody,
                        RerankBody,
                        VllmScoreBody,
                        ExplainBody,
                        NotesBody,
                        ModeChange,
                        Problem,
                    )
                ],
                ref_template="#/components/schemas/{model}",
            )
            document = make_default()
            for operations in document["paths"].values():
                for operation in operations.values():
                    # FastAPI's summary is the function's name; our docstring is one line that says what it does.
                    operation["summary"] = operation.pop("description").removesuffix(".")
            document.setdefault("components", {}).setdefault("schemas", {}).update(bodies["$defs"])
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend it
