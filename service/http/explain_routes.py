"""The routes of explanation mode and of the console: the switch, explanations and live figures."""

import json
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import Response, StreamingResponse

from service.errors import ModeConflictError, ModeUnconditionalError
from service.explaining.explainer import Job
from service.explaining.mode import Flip, Mode, ModeName
from service.explaining.switch import ModeNow
from service.explaining.traces import to_wire
from service.http.auth import Caller
from service.http.disconnects import ClientLeftError
from service.http.parts import Parts, client_left, documents, require, to_json
from service.http.routes import graded_pairs, to_result
from service.http.schemas import Body, ExplanationBody, RequestLimits, Wire, limit, parse_body
from service.http.schemas import Query as QueryText
from service.observability.live import WINDOW_S, Figures
from service.observability.logs import request_id_var
from service.scoring.types import ScoringAnswer, ScoringNote, ScoringRequest

HISTORY_LIMIT = 1000
# X-Accel-Buffering is for nginx, which would otherwise hold events back until its buffer is full.
STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class EventStream(StreamingResponse):
    """Server-sent events (WHATWG HTML, section 9.2). With FastAPI's own class a route cannot answer with an error first."""

    media_type = "text/event-stream"


class ModeChange(Wire):
    """A flip. It needs a reason and, unless the mode is `off`, a time to live."""

    mode: ModeName
    reason: str
    ttl_s: float | None = Field(
        None, description="Time until the mode expires, in seconds; leave it out for `off`"
    )
    rate: float | None = Field(None, description="Share of pairs to explain, for `sample` only")


class FlipBody(BaseModel):
    """A flip that took place. Times are seconds since 1970; `expires` is null for `off`."""

    revision: int
    mode: ModeName
    owner: str
    reason: str
    since: float
    expires: float | None
    rate: float | None


class ModeBody(BaseModel):
    """The mode that applies on this replica now, and the last flip that the replica knows.

    `unread_s` is how long the shared store has not answered; meanwhile the last known mode applies until it expires.
    """

    mode: ModeName
    left_s: float | None
    unread_s: float | None
    last: FlipBody


class HistoryBody(BaseModel):
    """Flips, newest first."""

    flips: list[FlipBody]


class NoteText(Wire):
    """A note. It has no id, because there is only one."""

    title: Annotated[str, limit("max_title_chars", "characters")] | None = None
    body: Body


class ExplainBody(Wire):
    """One pair to score and explain."""

    query: QueryText
    note: NoteText
    criteria: str | None = None
    deadline_ms: int | None = Field(
        None, ge=1, description="Applies to the score; the trace has its own time limit"
    )


class KeptBody(ExplanationBody):
    """A deferred explanation that is finished."""

    note_id: str


class ExplanationsBody(BaseModel):
    """The request's deferred explanations that are finished; the others are missing."""

    request_id: str
    explanations: list[KeptBody]


class FiguresBody(BaseModel):
    """Aggregates over a time window; latencies are in milliseconds, of online requests. Null where nothing was counted."""

    requests: int
    p50_ms: float | None
    p99_ms: float | None
    pairs_per_s: float
    hit_rate: float | None
    shed_rate: float | None


class LiveBody(BaseModel):
    """This replica's last minute, as a whole and second by second, oldest first."""

    minute: FiguresBody
    seconds: list[FiguresBody]


def build_explaining_router(parts: Parts) -> APIRouter:
    """Build the router."""
    router = APIRouter()
    may_score = Depends(require(parts.keyring, "score"))
    admin = Depends(require(parts.keyring, "admin"))

    @router.get("/admin/explanation-mode", tags=["explain"], response_model=ModeBody, **documents())
    async def read_mode(_caller: Annotated[Caller, admin]) -> Response:
        """Return the mode that applies, who flipped it, and the ETag that a flip must send."""
        return _mode_response(await parts.explanations.look())

    @router.put(
        "/admin/explanation-mode",
        tags=["explain"],
        response_model=ModeBody,
        **documents(
            ModeChange,
            {
                409: "Scoring is over its limits: the mode cannot be turned on now",
                412: "Somebody else flipped the mode meanwhile",
                428: "If-Match is missing",
            },
        ),
    )
    async def flip_mode(
        request: Request, caller: Annotated[Caller, admin], if_match: Annotated[str | None, Header()] = None
    ) -> Response:
        """Flip the mode for all replicas, unless it changed since the ETag in `If-Match`."""
        body = parse_body(ModeChange, await request.body(), parts.limits)
        flip = Flip(body.mode, caller.key_id, body.reason, body.ttl_s, body.rate)
        now = await parts.explanations.flip(flip, _revision(if_match))
        request.state.event.update(action="flip", mode=body.mode, revision=now.last.revision)
        return _mode_response(now)

    @router.get(
        "/admin/explanation-mode/history", tags=["explain"], response_model=HistoryBody, **documents()
    )
    async def read_history(
        _caller: Annotated[Caller, admin], most: Annotated[int, Query(ge=1, le=HISTORY_LIMIT)] = 50
    ) -> Response:
        """Return the last flips, newest first."""
        flips = await parts.explanations.history(most)
        return to_json(HistoryBody(flips=[_to_flip(mode) for mode in flips]))

    @router.get("/admin/figures", tags=["operate"], response_model=LiveBody, **documents())
    async def figures(_caller: Annotated[Caller, admin]) -> Response:
        """Return this replica's figures of the last minute."""
        seconds = [_to_figures(second) for second in parts.live.by_second(WINDOW_S)]
        return to_json(LiveBody(minute=_to_figures(parts.live.over(WINDOW_S)), seconds=seconds))

    @router.get(
        "/explanations/{request_id:path}",  # a caller's request id may contain slashes
        tags=["explain"],
        response_model=ExplanationsBody,
        **documents(problems={404: "No explanation is stored for this request"}),
    )
    async def kept(request_id: str, caller: Annotated[Caller, may_score]) -> Response:
        """Return the deferred explanations of the caller's own request; an admin key reads those of any key."""
        found = await parts.explanations.deferred(
            request_id, None if caller.role == "admin" else caller.key_id
        )
        explanations = [KeptBody.model_validate(entry) for entry in found]
        return to_json(ExplanationsBody(request_id=request_id, explanations=explanations))

    @router.post(
        "/explain",
        tags=["explain"],
        response_class=EventStream,
        **documents(ExplainBody, {409: "Explanation mode is off"}),
    )
    async def explain(request: Request, caller: Annotated[Caller, may_score]) -> Response:
        """Score one pair, then stream its trace as events: `score`, `text` (as it is generated), `explanation`."""
        parts.readiness.require()
        body = parse_body(ExplainBody, await request.body(), parts.limits)
        parts.explanations.require_on()
        scoring = _to_scoring(body, parts.limits, caller)
        try:
            answer = await parts.score(request, scoring)
        except ClientLeftError:
            return client_left()
        [pair] = graded_pairs(scoring, answer).values()
        return EventStream(_events(parts, answer, parts.explanations.submit(pair)), headers=STREAM_HEADERS)

    return router


async def _events(parts: Parts, answer: ScoringAnswer, job: Job) -> AsyncGenerator[bytes]:
    score = to_result(answer.results[0]).model_dump(exclude={"id", "outcome", "explanation"})
    mode = parts.explanations.now.name
    yield _event("score", {**score, "criteria": answer.criteria, "explanation_mode": mode})
    async with aclosing(parts.explanations.stream(job)) as reading:
        async for piece in reading:
            if isinstance(piece, str):
                yield _event("text", piece)
            else:
                result = ExplanationBody.model_validate(to_wire(piece))
                yield _event("explanation", result.model_dump())


def _event(name: str, data: Any) -> bytes:
    # ASCII, so that the data is one line: some of Unicode's line breaks would end an event.
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=True)}\n\n".encode()


def _to_scoring(body: ExplainBody, limits: RequestLimits, caller: Caller) -> ScoringRequest:
    note = ScoringNote("note", body.note.title, body.note.body)
    deadline_ms = limits.deadline_ms(body.deadline_ms)
    return ScoringRequest(
        request_id_var.get() or "",
        body.query,
        (note,),
        deadline_ms,
        criteria=body.criteria,
        caller=caller.key_id,
    )


def _revision(if_match: str | None) -> int:
    if if_match is None:
        raise ModeUnconditionalError(
            "send If-Match with the ETag of GET /admin/explanation-mode, so that no other flip is overwritten unnoticed"
        )
    found = re.fullmatch(r'"(\d{1,15})"', if_match.strip())
    if found is None:
        raise ModeConflictError("If-Match must be the ETag of GET /admin/explanation-mode, quotes included")
    return int(found[1])


def _mode_response(now: ModeNow) -> Response:
    body = ModeBody(mode=now.name, left_s=now.left_s, unread_s=now.unread_s, last=_to_flip(now.last))
    return to_json(body, {"ETag": f'"{now.last.revision}"', "Cache-Control": "no-store"})


def _to_flip(mode: Mode) -> FlipBody:
    return FlipBody(**asdict(mode))


def _to_figures(found: Figures) -> FiguresBody:
    return FiguresBody(
        requests=found.requests,
        p50_ms=None if found.p50_s is None else round(found.p50_s * 1000, 2),
        p99_ms=None if found.p99_s is None else round(found.p99_s * 1000, 2),
        pairs_per_s=round(found.pairs_per_s, 3),
        hit_rate=found.hit_rate,
        shed_rate=found.shed_rate,
    )
