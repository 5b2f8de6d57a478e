"""The routes of scoring and operating. Each reads a request, has it answered, and writes the answer."""

from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.routing import APIRoute
from starlette.responses import JSONResponse, PlainTextResponse, Response

from service.explaining.traces import ExplanationResult
from service.http.answering import Answer, Api, documents, to_json
from service.http.auth import Caller, require
from service.http.receive import unless_disconnected
from service.http.rerank import RerankBody, RerankResponse, to_rerank_response
from service.http.schemas import (
    ModelIdentity,
    RequestLimits,
    ResultBody,
    ScoreBody,
    ScoreResponse,
    TimingBody,
)
from service.http.vllm_score import VllmScoreBody, VllmScoreResponse, to_vllm_response
from service.observability.metrics import initialize_series
from service.observability.request_context import current_request
from service.scoring.readiness import Readiness
from service.scoring.types import PairResult, ScoringNote, ScoringRequest

# The statuses that service level objectives count: answers, and failures that are not the caller's fault.
SCORING_STATUSES = ("200", "500", "503", "504")
# vLLM's answer can't say that a pair was not scored, so the whole request fails.
ALL_OR_NOTHING = {
    500: "The engine failed on a pair",
    503: "A pair was shed, or the service is not ready; see Retry-After",
    504: "A pair was not scored by the deadline",
}


def build_scoring_router(api: Api) -> APIRouter:
    """Build /score, /rerank and /v1/score."""
    router = APIRouter()
    may_score = Depends(require(api.keyring, "score"))
    manifest = api.backend.checkpoint.manifest
    identify = partial(
        ModelIdentity,
        name=manifest.name,
        calibration=manifest.calibration.name,
        **manifest.versions,
    )

    @router.post("/score", tags=["score"], response_model=ScoreResponse, **documents(ScoreBody))
    async def score(request: Request, caller: Annotated[Caller, may_score]) -> Response:
        """Grade every note against the query."""
        api.backend.readiness.require()
        body = await api.read(request, ScoreBody)
        scoring = _to_scoring(body, api.limits, caller)
        answer = await unless_disconnected(request, api.answer(request, scoring, explain=body.explain))
        return to_json(_to_response(identify(criteria=answer.scores.criteria), answer))

    @router.post("/rerank", tags=["score"], response_model=RerankResponse, **documents(RerankBody))
    @router.post("/v1/rerank", include_in_schema=False)
    @router.post("/v2/rerank", include_in_schema=False)
    async def rerank(request: Request, caller: Annotated[Caller, may_score]) -> Response:
        """Put documents in order, in the shape of Cohere's and Jina's rerank clients."""
        api.backend.readiness.require()
        body = await api.read(request, RerankBody)
        scoring = body.to_scoring(api.limits, caller.key_id)
        # A rerank answer holds no explanations: those that the mode makes are read by the answer's `id`.
        work = api.answer(request, scoring, max_note_tokens=body.max_tokens_per_doc)
        answer = await unless_disconnected(request, work)
        # Each path keeps the default of its API: Jina and vLLM return documents, Cohere's v2 does not.
        returns = request.scope["route"].path != "/v2/rerank"
        response = to_rerank_response(body, answer.scores, manifest.name, return_documents=returns)
        return to_json(response, exclude_none=True)

    @router.post(
        "/v1/score",
        tags=["score"],
        response_model=VllmScoreResponse,
        **documents(VllmScoreBody, ALL_OR_NOTHING),
    )
    async def score_as_vllm(request: Request, caller: Annotated[Caller, may_score]) -> Response:
        """Score pairs, in the shape of vLLM's Score API."""
        api.backend.readiness.require()
        body = await api.read(request, VllmScoreBody)
        scorings = body.to_scoring(api.limits, caller.key_id)
        work = api.answer_all(request, scorings, body.max_tokens_per_doc)
        answers = await unless_disconnected(request, work)
        return to_json(to_vllm_response(answers, manifest.name))

    paths = [route.path for route in router.routes if isinstance(route, APIRoute)]
    initialize_series(api.backend.metrics.request_seconds, paths, SCORING_STATUSES)
    return router


def build_operating_router(api: Api) -> APIRouter:
    """Build the routes of probes, metrics and the version, which need no key."""
    router = APIRouter()
    readiness = api.backend.readiness

    @router.get("/livez", tags=["operate"], responses={503: {"description": "Only a restart helps"}})
    async def livez() -> JSONResponse:
        """Answer 200 while the process is worth keeping; 503 when only a restart helps."""
        return _probe("live", readiness, passes=readiness.is_live)

    @router.get("/readyz", tags=["operate"], responses={503: {"description": "Not ready, and why"}})
    async def readyz() -> JSONResponse:
        """Answer 200 when requests can be scored; 503 with the reason until then."""
        return _probe("ready", readiness, passes=readiness.is_ready)

    @router.get("/version", tags=["operate"])
    async def version() -> dict[str, Any]:
        """Return the running release, checkpoint and engine profile."""
        return _version(api)

    @router.get("/metrics", tags=["operate"], response_class=PlainTextResponse)
    async def metrics(request: Request) -> Response:
        """Return the metrics in the Prometheus text format or in OpenMetrics, including vLLM's own."""
        text, content_type = api.backend.metrics.render(request.headers.get("accept", ""))
        return Response(text, headers={"content-type": content_type})

    return router


def _probe(name: str, readiness: Readiness, *, passes: bool) -> JSONResponse:
    body = {name: passes, "reason": readiness.reason, "detail": readiness.detail}
    return JSONResponse(body, 200 if passes else 503)


def _to_scoring(body: ScoreBody, limits: RequestLimits, caller: Caller) -> ScoringRequest:
    return ScoringRequest(
        request_id=body.request_id or current_request.get().request_id or "",
        query=body.query,
        notes=tuple(ScoringNote(note.id, note.title, note.body) for note in body.notes),
        deadline_ms=limits.deadline_ms(body.deadline_ms),
        priority=body.priority,
        criteria=body.criteria,
        caller=caller.key_id,
    )


def _to_response(model: ModelIdentity, answer: Answer) -> ScoreResponse:
    scores = answer.scores
    stages = asdict(scores.timing).items()
    return ScoreResponse(
        request_id=scores.request_id,
        model=model,
        explanation_mode=answer.mode,
        results=[to_result(result, answer.explanations.get(result.note_id)) for result in scores.results],
        timing_ms=TimingBody(**{stage: round(milliseconds, 3) for stage, milliseconds in stages}),
    )


def to_result(result: PairResult, explanation: ExplanationResult | None = None) -> ResultBody:
    """Write one note's result as the wire has it."""
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
        reading=result.reading,
        explanation=explanation,
    )


def _version(api: Api) -> dict[str, Any]:
    manifest, profile = api.backend.checkpoint.manifest, api.backend.engine.profile
    return {
        "version": api.version,
        "model": {
            "name": manifest.name,
            **manifest.versions,
            "created": manifest.created.isoformat(),
            "template": manifest.template.name,
            "criteria": [criteria.name for criteria in manifest.criteria],
            "calibration": manifest.calibration.name,
            "decisions": [decision.criteria for decision in manifest.decisions],
            "max_query_tokens": manifest.limits.max_query_tokens,
            "max_note_tokens": manifest.limits.max_note_tokens,
            "criteria_limits": {
                criteria.name: criteria.limits.model_dump()
                for criteria in manifest.criteria
                if criteria.limits
            },
        },
        "engine": {"dtype": profile.dtype, "numbers": dict(profile.numbers), "speed": dict(profile.speed)},
    }
