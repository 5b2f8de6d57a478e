"""What the routes stand on, and what several of them do."""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel
from starlette.responses import Response

from service.contract.comparison import Graded
from service.contract.manifest import Manifest
from service.engines.base import Engine
from service.explaining.explanations import Explanations
from service.http.auth import Caller, Keyring, Role
from service.http.disconnects import CLIENT_CLOSED_REQUEST, unless_disconnected
from service.http.rate_limit import PairsLimiter
from service.http.schemas import RequestLimits
from service.observability.live import LiveFigures
from service.observability.logs import request_id_var
from service.observability.metrics import Metrics
from service.scoring.readiness import Readiness
from service.scoring.scorer import Scorer
from service.scoring.types import PairResult, ScoringAnswer, ScoringRequest
from service.shadowing.base import SHADOW_HEADER, Mirrored, MirroredNote
from service.shadowing.shadow import Shadow

PROBLEMS: dict[int, str] = {
    401: "A valid key is needed",
    403: "The key lacks the role",
    408: "The body did not arrive in time",
    413: "The body is too large",
    422: "Something is wrong with the request; `errors` lists all of it",
    429: "The key asks for more pairs than it may; see Retry-After",
    500: "The engine failed on every pair",
    503: "Every pair was shed, or the service is not ready; see Retry-After",
    504: "No pair was scored by the deadline",
}


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything behind the routes."""

    scorer: Scorer
    explanations: Explanations
    shadow: Shadow | None
    engine: Engine
    manifest: Manifest
    readiness: Readiness
    metrics: Metrics
    live: LiveFigures
    keyring: Keyring
    limits: RequestLimits
    pairs_limiter: PairsLimiter | None
    version: str
    log_texts: bool

    async def score(self, request: Request, scoring: ScoringRequest) -> ScoringAnswer:
        """The answer; adds what was done to the request's log event, and has the shadow score the same where it samples that.

        Raises ClientLeftError, RateLimitedError, and as Scorer does.
        """
        request_id_var.set(scoring.request_id)
        event = request.state.event
        event.update(notes=len(scoring.notes), deadline_ms=scoring.deadline_ms, priority=scoring.priority)
        if self.log_texts:
            event.update(query=scoring.query, texts=[(note.title, note.body) for note in scoring.notes])
        if self.pairs_limiter:
            await self.pairs_limiter.count(scoring.caller, len(scoring.notes))
        answer = await unless_disconnected(request, self.scorer.score(scoring))
        event["outcomes"] = dict(Counter(result.outcome for result in answer.results))
        event["sources"] = dict(Counter(result.source for result in answer.results if result.source))
        event["criteria"] = answer.criteria
        if self.shadow and not is_mirrored(request) and self.shadow.samples():
            self.shadow.offer(_mirrored(scoring, answer))
        return answer


def is_mirrored(request: Request) -> bool:
    """Whether another service's shadowing sent it: for its scores alone, once."""
    return SHADOW_HEADER in request.headers


def _mirrored(scoring: ScoringRequest, answer: ScoringAnswer) -> Mirrored:
    computed = all(result.source == "engine" for result in answer.results)
    return Mirrored(
        request_id=scoring.request_id,
        query=scoring.query,
        criteria=scoring.criteria,
        notes=tuple(
            MirroredNote(note.id, note.title, note.body, _graded(result))
            for note, result in zip(scoring.notes, answer.results, strict=True)
        ),
        engine_ms=answer.timing.engine if computed else None,
    )


def _graded(result: PairResult) -> Graded | None:
    judgement = result.judgement
    return Graded(judgement.grade, judgement.score) if judgement else None


_bearer = HTTPBearer(
    auto_error=False,
    description="A key with the role `score` or `admin`; none is needed while no keys are set",
)


def require(keyring: Keyring, role: Role) -> Callable[..., Awaitable[Caller]]:
    """A dependency that lets in callers with the role, tells who it is, and has the key's id logged."""

    # A coroutine, or FastAPI would take it to a thread and back for each request.
    async def check(
        request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
    ) -> Caller:
        header = f"{credentials.scheme} {credentials.credentials}" if credentials else None
        caller = keyring.check(header, role)
        request.state.event["key"] = caller.key_id
        return caller

    return check


def documents(
    body: type[BaseModel] | None = None, problems: Mapping[int, str] = MappingProxyType({})
) -> dict[str, Any]:
    """How a route shows up in /docs: the body that it parses itself, and its problems beside those of every route."""
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    responses: dict[int | str, Any] = {
        status: {"description": why, "content": content} for status, why in {**PROBLEMS, **problems}.items()
    }
    if body is None:
        return {"responses": responses}
    # api/openapi.py adds the schema that this points to.
    schema = {"$ref": f"#/components/schemas/{body.__name__}"}
    request_body = {"required": True, "content": {"application/json": {"schema": schema}}}
    return {"responses": responses, "openapi_extra": {"requestBody": request_body}}


def to_json(body: BaseModel, headers: dict[str, str] | None = None) -> Response:
    """A body that was made here, and needs no checking again."""
    return Response(body.model_dump_json(), media_type="application/json", headers=headers)


def client_left() -> Response:
    """For the log and the metrics: nobody reads it."""
    return Response(status_code=CLIENT_CLOSED_REQUEST)
