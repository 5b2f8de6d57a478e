"""The routes of explanation mode: reading and flipping it, explanations, and the figures of the console."""

import json
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request
from pydantic import BaseModel, Field, ValidationError
from starlette.responses import Response, StreamingResponse

from service.errors import ExplanationStoreError, ModeConflictError, ModeUnconditionalError
from service.explaining.explainer import Job
from service.explaining.explanations import Explanations
from service.explaining.mode import Flip, Mode, ModeName
from service.explaining.switch import ModeNow
from service.explaining.traces import ExplanationResult
from service.http.answering import Api, documents, graded_pairs, to_json
from service.http.auth import Caller, require
from service.http.receive import unless_disconnected
from service.http.routes import to_result
from service.http.schemas import Body, Criteria, RequestLimits, Title, Wire
from service.http.schemas import Query as QueryText
from service.observability.live import WINDOW_S, Figures
from service.observability.request_context import current_request
from service.scoring.types import ScoringAnswer, ScoringNote, ScoringRequest

HISTORY_LIMIT = 1000
# X-Accel-Buffering is nginx's: it would otherwise hold events back until its buffer is full.
UNBUFFERED = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class EventStream(StreamingResponse):
    """A response of server-sent events (WHATWG HTML, section 9.2). FastAPI's own class allows no problem to be answered first."""

    media_type = "text/event-stream"


class ModeChange(Wire):
    """A flip of explanation mode. Every mode but `off` needs a time to live; every flip needs a reason."""

    mode: ModeName
    reason: str
    ttl_s: float | None = Field(
        None, description="How long the mode applies, in seconds; leave it out for `off`"
    )
    rate: float | None = Field(None, description="Share of pairs to explain, for `sample` only")


class ModeBody(BaseModel):
    """The mode that applies on this replica now, and the last flip that it read.

    `unread_s` says for how long the shared store has not answered; until it does, the last known mode applies.
    """

    mode: ModeName
    left_s: float | None
    unread_s: float | None
    last: Mode


class HistoryBody(BaseModel):
    """The last flips, newest first."""

    flips: list[Mode]


class NoteText(Wire):
    """The texts of the one note; it needs no id."""

    title: Title | None = None
    body: Body


class ExplainBody(Wire):
    """One pair to score and to explain."""

    query: QueryText
    note: NoteText
    criteria: Criteria = None
    deadline_ms: int | None = Field(None, ge=1, description="For the score; the trace has its own limit")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptExplanation(ExplanationResult):
    """A deferred explanation that is finished."""

    note_id: str


class ExplanationsBody(BaseModel):
    """The deferred explanations of a request that are finished and still stored."""

    request_id: str
    explanations: list[KeptExplanation]


class LiveBody(BaseModel):
    """This replica's last minute as a whole and by second, oldest first."""

    minute: Figures
    seconds: list[Figures]


def build_explaining_router(api: Api) -> APIRouter:
    """Build the routes of explanation mode."""
    router = APIRouter()
    explanations = api.backend.explanations
    may_score = Depends(require(api.keyring, "score"))
    admin = Depends(require(api.keyring, "admin"))

    @router.get("/admin/explanation-mode", tags=["explain"], response_model=ModeBody, **documents())
    async def read_mode(_caller: Annotated[Caller, admin]) -> Response:
        """Return the mode that applies, the last flip, and the ETag that the next flip must name."""
        return _mode_response(await explanations.switch.look())

    @router.put(
        "/admin/explanation-mode",
        tags=["explain"],
        response_model=ModeBody,
        **documents(
            ModeChange,
            {
                409: "Scoring exceeds the guard's limits: retry later",
                412: "The mode was changed in the meantime",
                428: "If-Match is missing",
            },
        ),
    )
    async def flip_mode(
        request: Request, caller: Annotated[Caller, admin], if_match: Annotated[str | None, Header()] = None
    ) -> Response:
        """Flip the mode for all replicas, if it is still the one that `If-Match` names."""
        body = await api.read(request, ModeChange)
        flip = Flip(body.mode, caller.key_id, body.reason, body.ttl_s, body.rate)
        now = await explanations.flip(flip, _revision(if_match))
        current_request.get().event.update(action="flip", mode=body.mode, revision=now.last.revision)
        return _mode_response(now)

    @router.get(
        "/admin/explanation-mode/history", tags=["explain"], response_model=HistoryBody, **documents()
    )
    async def read_history(
        _caller: Annotated[Caller, admin], most: Annotated[int, Query(ge=1, le=HISTORY_LIMIT)] = 50
    ) -> Response:
        """Return the last flips, newest first."""
        return to_json(HistoryBody(flips=await explanations.switch.history(most)))

    @router.get("/admin/figures", tags=["operate"], response_model=LiveBody, **documents())
    async def figures(_caller: Annotated[Caller, admin]) -> Response:
        """Return the figures of this replica's last minute."""
        live = api.backend.live
        return to_json(LiveBody(minute=live.over(WINDOW_S), seconds=live.by_second(WINDOW_S)))

    @router.get(
        "/explanations/{request_id:path}",  # a caller's id may contain slashes
        tags=["explain"],
        response_model=ExplanationsBody,
        **documents(problems={404: "No explanation is stored"}),
    )
    async def kept(request_id: str, caller: Annotated[Caller, may_score]) -> Response:
        """Return the deferred explanations of your own request; an admin key reads everybody's."""
        stored = await explanations.deferred(request_id, None if caller.role == "admin" else caller.key_id)
        try:
            body = ExplanationsBody.model_validate({"request_id": request_id, "explanations": stored})
        except ValidationError:  # not chained: it quotes the explanations
            raise ExplanationStoreError("an explanation in the store is not of this release") from None
        return to_json(body)

    @router.post(
        "/explain",
        tags=["explain"],
        response_class=EventStream,
        **documents(ExplainBody, {409: "Explanation mode is off"}),
    )
    async def explain(request: Request, caller: Annotated[Caller, may_score]) -> Response:
        """Score one pair, then stream its trace: events `score`, `text` (as it is generated), `explanation`."""
        api.backend.readiness.require()
        body = await api.read(request, ExplainBody)
        explanations.require_on()
        scoring = _to_scoring(body, api.limits, caller)
        # The trace is asked for below, not by the answer.
        answer = (await unless_disconnected(request, api.answer(request, scoring, explain=None))).scores
        [pair] = graded_pairs(scoring, answer).values()
        return EventStream(_events(explanations, answer, explanations.submit(pair)), headers=UNBUFFERED)

    return router


async def _events(explanations: Explanations, answer: ScoringAnswer, job: Job) -> AsyncGenerator[bytes]:
    result = to_result(answer.results[0]).model_dump(exclude={"id", "outcome", "explanation"})
    mode = explanations.switch.now.name
    yield _event("score", {**result, "criteria": answer.criteria, "explanation_mode": mode})
    async with aclosing(explanations.stream(job)) as reading:
        async for piece in reading:
            if isinstance(piece, str):
                yield _event("text", piece)
            else:
                yield _event("explanation", asdict(piece))


def _event(name: str, data: Any) -> bytes:
    # ASCII, because some of Unicode's line breaks would end an event.
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=True)}\n\n".encode()


def _to_scoring(body: ExplainBody, limits: RequestLimits, caller: Caller) -> ScoringRequest:
    note = ScoringNote("note", body.note.title, body.note.body)
    deadline_ms = limits.deadline_ms(body.deadline_ms)
    return ScoringRequest(
        current_request.get().request_id or "",
        body.query,
        (note,),
        deadline_ms,
        criteria=body.criteria,
        caller=caller.key_id,
    )


def _revision(if_match: str | None) -> int:
    if if_match is None:
        raise ModeUnconditionalError(
            "send If-Match with the ETag of GET /admin/explanation-mode, so that no other flip is overwritten"
        )
    found = re.fullmatch(r'"(\d{1,15})"', if_match.strip())
    if found is None:
        raise ModeConflictError("If-Match must be the ETag of GET /admin/explanation-mode, quotes included")
    return int(found[1])


def _mode_response(now: ModeNow) -> Response:
    body = ModeBody(mode=now.name, left_s=now.left_s, unread_s=now.unread_s, last=now.last)
    return to_json(body, {"ETag": f'"{now.last.revision}"', "Cache-Control": "no-store"})
