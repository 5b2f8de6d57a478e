"""The routes. Each reads a request, asks a part for the answer, and writes it."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.responses import JSONResponse, PlainTextResponse, Response

from service.api.auth import Keyring, Role
from service.api.disconnects import CLIENT_CLOSED_REQUEST, ClientLeftError, unless_disconnected
from service.api.rerank import RerankBody, RerankResponse, to_rerank_response
from service.api.schemas import (
    ExplanationBody,
    ModelIdentity,
    RequestLimits,
    ResultBody,
    ScoreBody,
    ScoreResponse,
    TimingBody,
    parse_body,
)
from service.contract.manifest import Manifest
from service.engines.base import Engine
from service.logs import request_id_var
from service.metrics import Metrics
from service.scoring.readiness import Readiness
from service.scoring.scorer import Scorer
from service.scoring.types import PairResult, ScoringAnswer, ScoringNote, ScoringRequest

PROBLEMS: dict[int | str, str] = {
    401: "A valid key is needed",
    403: "The key lacks the role",
    408: "The body did not arrive in time",
    413: "The body is too large",
    422: "Something is wrong with the request; `errors` lists all of it",
    500: "The engine failed on every pair",
    503: "Every pair was shed, or the service is not ready; see Retry-After",
    504: "No pair was scored by the deadline",
}


@dataclass(frozen=True, slots=True)
class Parts:
    """What the routes stand on."""

    scorer: Scorer
    engine: Engine
    manifest: Manifest
    readiness: Readiness
    metrics: Metrics
    keyring: Keyring
    limits: RequestLimits
    version: str
    log_texts: bool


_bearer = HTTPBearer(
    auto_error=False,
    description="A key with the role `score` or `admin`; none is needed while no keys are set",
)


def build_router(parts: Parts) -> APIRouter:
    """All routes over these parts."""
    router = APIRouter()
    may_score = [Depends(_require(parts.keyring, "score"))]

    @router.post("/score", tags=["score"], dependencies=may_score, **_documents(ScoreBody, ScoreResponse))
    async def score(request: Request) -> Response:
        """Grade every note against the query."""
        parts.readiness.require()
        body = parse_body(ScoreBody, await request.body(), parts.limits)
        answer = await _score(request, parts, _to_scoring(body, parts.limits))
        return _json(_to_response(parts.manifest, body, answer)) if answer else _client_left()

    @router.post("/rerank", tags=["score"], dependencies=may_score, **_documents(RerankBody, RerankResponse))
    @router.post("/v1/rerank", include_in_schema=False, dependencies=may_score)
    @router.post("/v2/rerank", include_in_schema=False, dependencies=may_score)
    async def rerank(request: Request) -> Response:
        """Put documents in order, in the shape of Cohere's and Jina's rerank clients."""
        parts.readiness.require()
        body = parse_body(RerankBody, await request.body(), parts.limits)
        answer = await _score(request, parts, body.to_scoring(request_id_var.get() or "", parts.limits))
        return _json(to_rerank_response(body, answer, parts.manifest.name)) if answer else _client_left()

    @router.get("/livez", tags=["operate"], responses={503: {"description": "Only a restart helps"}})
    async def livez() -> JSONResponse:
        """200 while the process is worth keeping; 503 when only a restart helps."""
        readiness = parts.readiness
        body = {"live": readiness.is_live, "reason": readiness.reason, "detail": readiness.detail}
        return JSONResponse(body, 200 if readiness.is_live else 503)

    @router.get("/readyz", tags=["operate"], responses={503: {"description": "Not ready, and why"}})
    async def readyz() -> JSONResponse:
        """200 when requests can be scored; 503 with the reason until then."""
        readiness = parts.readiness
        body = {"ready": readiness.is_ready, "reason": readiness.reason, "detail": readiness.detail}
        return JSONResponse(body, 200 if readiness.is_ready else 503)

    @router.get("/version", tags=["operate"])
    async def version() -> dict[str, Any]:
        """What runs: release, checkpoint, engine profile."""
        return _version(parts)

    @router.get("/metrics", tags=["operate"], response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Metrics in the Prometheus text format; vLLM's own are beside ours."""
        return Response(parts.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    return router


def _require(keyring: Keyring, role: Role) -> Callable[..., None]:
    def check(credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> None:
        keyring.check(f"{credentials.scheme} {credentials.credentials}" if credentials else None, role)

    return check


def _documents(body: type[BaseModel], response: type[BaseModel]) -> dict[str, Any]:
    """How a route that parses its own body shows up in /docs; api/openapi.py adds the schema it points to."""
    schema = {"$ref": f"#/components/schemas/{body.__name__}"}
    content = {"application/json": {"schema": schema}}
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        "response_model": response,
        "responses": {status: {"description": why, "content": problem} for status, why in PROBLEMS.items()},
        "openapi_extra": {"requestBody": {"required": True, "content": content}},
    }


def _to_scoring(body: ScoreBody, limits: RequestLimits) -> ScoringRequest:
    return ScoringRequest(
        request_id=body.request_id or request_id_var.get() or "",
        query=body.query,
        notes=tuple(ScoringNote(note.id, note.title, note.body) for note in body.notes),
        deadline_ms=limits.deadline_ms(body.deadline_ms),
        priority=body.priority,
        criteria=body.criteria,
    )


async def _score(request: Request, parts: Parts, scoring: ScoringRequest) -> ScoringAnswer | None:
    """The answer, or None when the client left before it. Adds what was done to the request's log event."""
    request_id_var.set(scoring.request_id)
    event = request.state.event
    event.update(notes=len(scoring.notes), deadline_ms=scoring.deadline_ms, priority=scoring.priority)
    if parts.log_texts:
        event.update(query=scoring.query, texts=[(note.title, note.body) for note in scoring.notes])
    try:
        answer = await unless_disconnected(request, parts.scorer.score(scoring))
    except ClientLeftError:
        return None
    event["outcomes"] = dict(Counter(result.outcome for result in answer.results))
    event["sources"] = dict(Counter(result.source for result in answer.results if result.source))
    event["criteria"] = answer.criteria
    return answer


def _to_response(manifest: Manifest, body: ScoreBody, answer: ScoringAnswer) -> ScoreResponse:
    explanation = ExplanationBody(outcome="off") if body.explain else None
    timing = answer.timing
    return ScoreResponse(
        request_id=answer.request_id,
        model=ModelIdentity(
            name=manifest.name,
            fingerprint=manifest.fingerprint,
            criteria=answer.criteria,
            calibration=manifest.calibration.name,
        ),
        results=[_to_result(result, explanation) for result in answer.results],
        timing_ms=TimingBody(
            total=round(timing.total, 3),
            cache=round(timing.cache, 3),
            queue=round(timing.queue, 3),
            engine=round(timing.engine, 3),
        ),
    )


def _to_result(result: PairResult, explanation: ExplanationBody | None) -> ResultBody:
    judgement = result.judgement
    if judgement is None:
        return ResultBody(id=result.note_id, outcome=result.outcome)
    return ResultBody(
        id=result.note_id,
        outcome=result.outcome,
        score=judgement.score,
        grade=judgement.grade,
        distribution=list(judgement.distribution),
        margin=judgement.margin,
        label_mass=judgement.label_mass,
        truncated=result.truncated,
        source=result.source,
        explanation=explanation,
    )


def _version(parts: Parts) -> dict[str, Any]:
    manifest, profile = parts.manifest, parts.engine.profile
    return {
        "version": parts.version,
        "model": {
            "name": manifest.name,
            "fingerprint": manifest.fingerprint,
            "created": manifest.created.isoformat(),
            "template": manifest.template.name,
            "criteria": [criteria.name for criteria in manifest.criteria],
            "calibration": manifest.calibration.name,
            "max_query_tokens": manifest.limits.max_query_tokens,
            "max_note_tokens": manifest.limits.max_note_tokens,
        },
        "engine": {"dtype": profile.dtype, "numbers": dict(profile.numbers), "speed": dict(profile.speed)},
    }


def _json(body: BaseModel) -> Response:
    return Response(body.model_dump_json(), media_type="application/json")


def _client_left() -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)
