"""The OpenAPI document: FastAPI's, with the bodies that routes parse themselves and the problems they answer."""

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from service.api.explaining import ExplainBody, ModeChange
from service.api.rerank import RerankBody
from service.api.schemas import Problem, ScoreBody


def install_openapi(app: FastAPI) -> None:
    """Add the schemas of request bodies and problems to what /docs and /openapi.json show."""
    make_default = app.openapi

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
            document.setdefault("components", {}).setdefault("schemas", {}).update(bodies["$defs"])
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend it
