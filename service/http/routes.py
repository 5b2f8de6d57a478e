"""The routes of scoring and operating. Each reads a request, asks a part for the answer, and writes it."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.routing import APIRoute
from starlette.responses import JSONResponse, PlainTextResponse, Response

from service.contract.manifest import Manifest
from service.explaining.explainer import GradedPair
from service.explaining.explanations import Requester
from service.explaining.mode import ModeName
from service.explaining.traces import ExplanationResult, to_wire
from service.http.auth import Caller
from service.http.disconnects import ClientLeftError, unless_disconnected
from service.http.parts import Parts, client_left, documents, is_mirrored, require, to_json
from service.http.rerank import RerankBody, RerankResponse, to_rerank_response
from service.http.schemas import (
    ExplanationBody,
    ModelIdentity,
    RequestLimits,
    ResultBody,
    ScoreBody,
    ScoreResponse,
    TimingBody,
    parse_body,
)
from service.observability.logs import request_id_var
from service.observability.metrics import show_from_the_start
from service.scoring.deadline import Deadline
from service.scoring.types import PairResult, ScoringAnswer, ScoringNote, ScoringRequest

# By which objectives count: answers, and what is not the caller's fault.
SCORING_STATUSES = ("200", "500", "503", "504")


def build_router(parts: Parts) -> APIRouter:
    """All routes over these parts."""
    router = APIRouter()
    may_score = Depends(require(parts.keyring, "score"))

    @router.post("/score", tags=["score"], response_model=ScoreResponse, **documents(ScoreBody))
    async def score(request: Request, caller: Annotated[Caller, may_score]) -> Response:
        """Grade every note against the query."""
        parts.readiness.require()
        body = parse_body(ScoreBody, await request.body(), parts.limits)
        scoring = _to_scoring(body, parts.limits, caller)
        try:
            answer, mode, told = await _score_and_explain(request, parts, caller, scoring, asked=body.explain)
        except ClientLeftError:
            return client_left()
        return to_json(_to_response(parts.manifest, answer, mode, told))

    @router.post("/rerank", tags=["score"], response_model=RerankResponse, **documents(RerankBody))
    @router.post("/v1/rerank", include_in_schema=False)
    @router.post("/v2/rerank", include_in_schema=False)
    async def rerank(request: Request, caller: Annotated[Caller, may_score]) -> Response:
        """Put documents in order, in the shape of Cohere's and Jina's rerank clients."""
        parts.readiness.require()
        body = parse_body(RerankBody, await request.body(), parts.limits)
        scoring = body.to_scoring(request_id_var.get() or "", parts.limits, caller.key_id)
        try:
            # What the mode explains by itself is read by the `id` of the answer.
            answer, _, _ = await _score_and_explain(request, parts, caller, scoring, asked=False)
        except ClientLeftError:
            return client_left()
        return to_json(to_rerank_response(body, answer, parts.manifest.name))

    paths = [route.path for route in router.routes if isinstance(route, APIRoute)]  # those above
    show_from_the_start(parts.metrics.request_seconds, paths, SCORING_STATUSES)

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
    async def metrics(request: Request) -> Response:
        """Metrics in the Prometheus text format, or in OpenMetrics; vLLM's own are beside ours."""
        text, content_type = parts.metrics.render(request.headers.get("accept", ""))
        return Response(text, headers={"content-type": content_type})

    return router


def _to_scoring(body: ScoreBody, limits: RequestLimits, caller: Caller) -> ScoringRequest:
    return ScoringRequest(
        request_id=body.request_id or request_id_var.get() or "",
        query=body.query,
        notes=tuple(ScoringNote(note.id, note.title, note.body) for note in body.notes),
        deadline_ms=limits.deadline_ms(body.deadline_ms),
        priority=body.priority,
        criteria=body.criteria,
        caller=caller.key_id,
    )


async def _score_and_explain(
    request: Request, parts: Parts, caller: Caller, scoring: ScoringRequest, *, asked: bool
) -> tuple[ScoringAnswer, ModeName, dict[str, ExplanationResult]]:
    """The answer, the mode that applied, and what became of explanations. Raises as Parts.score does."""
    deadline = Deadline.after_ms(scoring.deadline_ms)
    answer = await parts.score(request, scoring)
    # Read once: what is said of the mode must be what the explanations were made by.
    now = parts.explanations.now
    if now.name == "off" and not asked:
        return answer, now.name, {}
    requester = Requester(scoring.request_id, caller.key_id)
    # The mode of two services that share a Redis is one: a request would be explained by both.
    pairs = graded_pairs(scoring, answer) if asked or not is_mirrored(request) else {}
    remaining_s = deadline.remaining_s()
    explaining = parts.explanations.explain(requester, pairs, now, asked=asked, remaining_s=remaining_s)
    return answer, now.name, await unless_disconnected(request, explaining)


def graded_pairs(scoring: ScoringRequest, answer: ScoringAnswer) -> dict[str, GradedPair]:
    """The pairs that were scored, by note id."""
    return {
        note.id: GradedPair(scoring.query, note.title, note.body, answer.criteria, result.judgement.grade)
        for note, result in zip(scoring.notes, answer.results, strict=True)
        if result.judgement
    }


def _to_response(
    manifest: Manifest, answer: ScoringAnswer, mode: ModeName, told: dict[str, ExplanationResult]
) -> ScoreResponse:
    timing = answer.timing
    return ScoreResponse(
        request_id=answer.request_id,
        model=ModelIdentity(
            name=manifest.name,
            fingerprint=manifest.fingerprint,
            criteria=answer.criteria,
            calibration=manifest.calibration.name,
        ),
        explanation_mode=mode,
        results=[to_result(result, told.get(result.note_id)) for result in answer.results],
        timing_ms=TimingBody(
            total=round(timing.total, 3),
            cache=round(timing.cache, 3),
            queue=round(timing.queue, 3),
            engine=round(timing.engine, 3),
        ),
    )


def to_result(result: PairResult, told: ExplanationResult | None = None) -> ResultBody:
    """One note's result on the wire."""
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
        explanation=ExplanationBody.model_validate(to_wire(told)) if told else None,
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
            "decisions": [decision.criteria for decision in manifest.decisions],
            "max_query_tokens": manifest.limits.max_query_tokens,
            "max_note_tokens": manifest.limits.max_note_tokens,
        },
        "engine": {"dtype": profile.dtype, "numbers": dict(profile.numbers), "speed": dict(profile.speed)},
    }
