"""The OpenAPI document: FastAPI's, with the bodies that routes parse themselves and the problems they answer."""

from dataclasses import asdict
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from service.http.explain_routes import ExplainBody, ModeChange
from service.http.rerank import RerankBody
from service.http.schemas import Problem, RequestLimits, ScoreBody

ABOUT = """\
**Begin with `POST /score`**: a query, its notes, and by when to answer. Open it below: its example can be sent as it is.

- **Rank by `score`**, from 0 to 1. `grade` is for people and for thresholds.
- **Look at each note's `outcome`.** An answer is 200 when at least one note is scored; of the others it says why they are not.
- **Deadline**: answered by then with what is scored. {default_deadline_ms:,} ms where a request names none, {max_deadline_ms:,} ms at the most.
- **Errors** are problems of RFC 9457, and list each bad field. Where `retryable` is true, the same request may succeed later: after `Retry-After`, where that is given.
- **Limits of one request**: {max_notes} notes, {max_query_chars:,} characters of a query, {max_title_chars:,} of a title and {max_body_chars:,} of a body. Of a note, a checkpoint reads less; `truncated` tells.
- **Keys**: `Authorization: Bearer KEY`, where the service has any. `/admin/` asks for one of the role `admin`.

For Python, the project's folder `clients/python` has a typed client, with one deadline for a call and all its tries.
"""


def install_openapi(app: FastAPI, limits: RequestLimits) -> None:
    """Add to what /docs and /openapi.json show: what a caller must know, the schemas of request bodies, and problems."""
    make_default = app.openapi
    app.description = ABOUT.format(**asdict(limits))

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _, bodies = models_json_schema(
                [
                    (model, "validation")
                    for model in (ScoreBody, RerankBody, ExplainBody, ModeChange, Problem)
                ],
                ref_template="#/components/schemas/{model}",
            )
            document = make_default()
            for operations in document["paths"].values():
                for operation in operations.values():
                    # FastAPI's summary is the function's name; what it does is one line.
                    operation["summary"] = operation.pop("description").removesuffix(".")
            document.setdefault("components", {}).setdefault("schemas", {}).update(bodies["$defs"])
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend it
