"""Read and answer requests: the code that several routes share."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from service.contract.checkpoint import Checkpoint
from service.contract.comparison import Graded
from service.contract.prompt import Note
from service.contract.text import canonicalize
from service.contract.validation import bad_fields
from service.engines.base import Engine
from service.errors import DeadlineExceededError, InvalidRequestError
from service.explaining.explanations import Explanations, Requester
from service.explaining.mode import ModeName
from service.explaining.traces import ExplanationResult, GradedPair
from service.http.auth import Keyring
from service.http.rate_limit import PairsLimiter
from service.http.receive import read_body
from service.http.schemas import BodyChecks, RequestLimits
from service.observability.background import cancel_and_wait
from service.observability.live import LiveFigures
from service.observability.metrics import Metrics
from service.observability.request_context import current_request
from service.scoring.deadline import Deadline
from service.scoring.readiness import Readiness
from service.scoring.scorer import Scorer
from service.scoring.types import PairResult, ScoringAnswer, ScoringNote, ScoringRequest
from service.shadowing.base import SHADOW_HEADER, Mirrored, MirroredNote
from service.shadowing.shadow import Shadow
from service.vectors.encoding import Encoding

BodyT = TypeVar("BodyT", bound=BaseModel)

# Each part of a request reads the cache. 256 reads at once miss the timeout of Redis, and its breaker opens.
PARTS_AT_ONCE = 4

PROBLEMS: dict[int, str] = {
    401: "A valid key is needed",
    403: "The key lacks the role",
    408: "The body did not arrive in time",
    413: "The body is too large",
    422: "The request is not valid; `errors` lists every bad field",
    429: "The key exceeds its rate limit; see Retry-After",
    500: "The engine failed on every pair",
    503: "Every pair was shed, or the service is not ready; see Retry-After",
    504: "No pair was scored by the deadline",
}


@dataclass(frozen=True, slots=True)
class Backend:
    """The service behind the routes and the server."""

    checkpoint: Checkpoint
    engine: Engine
    scorer: Scorer
    explanations: Explanations
    shadow: Shadow | None
    readiness: Readiness
    metrics: Metrics
    live: LiveFigures
    encoding: Encoding | None

    async def end_work(self) -> None:
        """Have every request answered now: pairs that are not scored yet fail."""
        await self.explanations.close()
        await self.scorer.close()


@dataclass(frozen=True, slots=True)
class Answer:
    """A scored request: its results, the explanation mode that applied, and explanations by note id."""

    scores: ScoringAnswer
    mode: ModeName
    explanations: Mapping[str, ExplanationResult]


@dataclass(frozen=True, slots=True)
class Api:
    """Reads requests and answers them on the backend."""

    backend: Backend
    keyring: Keyring
    limits: RequestLimits
    pairs_limiter: PairsLimiter | None
    version: str
    log_texts: bool

    async def read(self, request: Request, model: type[BodyT]) -> BodyT:
        """Read the request's body as `model`.

        Raises InvalidRequestError, which lists every bad field and quotes no value, RequestTooLargeError, BodyTimeoutError
        and ClientLeftError.
        """
        body = await read_body(request, self.limits.max_request_bytes, self.limits.request_body_timeout_s)
        checks = BodyChecks(self.limits, self.backend.checkpoint.renderer.criteria_names)
        try:
            return model.model_validate_json(body, context=checks)
        except ValidationError as error:
            raise InvalidRequestError.listing(bad_fields(error, "body")) from None

    async def answer(
        self,
        request: Request,
        scoring: ScoringRequest,
        *,
        explain: bool | None = False,
        max_note_tokens: int | None = None,
    ) -> Answer:
        """Score one request, its notes cut to `max_note_tokens`, and explain its pairs as the mode allows.

        `explain`: whether the caller asked for explanations; with None none are made, not even those that the mode samples.
        Raises RateLimitedError, and what Scorer.score raises.
        """
        self._describe(scoring)
        if self.pairs_limiter:
            await self.pairs_limiter.count(scoring.caller, len(scoring.notes))
        deadline = Deadline.after_ms(scoring.deadline_ms)
        return await self._answer(request, scoring, deadline, explain, max_note_tokens)

    async def answer_all(
        self, request: Request, scorings: Sequence[ScoringRequest], max_note_tokens: int | None
    ) -> list[ScoringAnswer]:
        """Score the parts of one request under one deadline. The first that raises cancels the others."""
        self._describe(*scorings)
        if self.pairs_limiter:
            await self.pairs_limiter.count(scorings[0].caller, sum(len(each.notes) for each in scorings))
        deadline = Deadline.after_ms(scorings[0].deadline_ms)
        turns = asyncio.Semaphore(PARTS_AT_ONCE)

        async def answer_part(scoring: ScoringRequest) -> ScoringAnswer:
            async with turns:
                answer = await self._answer(request, scoring, deadline, False, max_note_tokens)
                return answer.scores

        parts = [asyncio.create_task(answer_part(scoring)) for scoring in scorings]
        try:
            return await asyncio.gather(*parts)
        finally:
            await cancel_and_wait(*parts)

    def _describe(self, *scorings: ScoringRequest) -> None:
        """Describe the request in its log event."""
        first, context = scorings[0], current_request.get()
        context.request_id = first.request_id
        notes = [note for scoring in scorings for note in scoring.notes]
        context.event.update(notes=len(notes), deadline_ms=first.deadline_ms, priority=first.priority)
        if self.log_texts:
            queries = [scoring.query for scoring in scorings]
            context.event.update(
                query=queries if len(queries) > 1 else first.query,
                texts=[(note.title, note.body) for note in notes],
            )

    async def _cut(self, scoring: ScoringRequest, max_tokens: int, deadline: Deadline) -> ScoringRequest:
        """Cut the notes before anything else reads them: caches, shadow and explanations see the text that is graded."""
        renderer = self.backend.checkpoint.renderer
        if max_tokens >= renderer.limits(renderer.choose_criteria(scoring.criteria)).max_note_tokens:
            return scoring
        notes = [Note(canonicalize(note.title), canonicalize(note.body)) for note in scoring.notes]
        try:
            async with asyncio.timeout(deadline.remaining_s()):
                cut = await asyncio.to_thread(renderer.cut, notes, max_tokens)
        except TimeoutError:
            raise DeadlineExceededError(
                f"the notes were not cut within {scoring.deadline_ms} ms: allow more time or send fewer notes"
            ) from None
        pairs = zip(scoring.notes, cut, strict=True)
        return replace(
            scoring, notes=tuple(ScoringNote(note.id, short.title, short.body) for note, short in pairs)
        )

    async def _answer(
        self,
        request: Request,
        scoring: ScoringRequest,
        deadline: Deadline,
        explain: bool | None,
        max_note_tokens: int | None,
    ) -> Answer:
        if max_note_tokens:
            scoring = await self._cut(scoring, max_note_tokens, deadline)
        scores = await self.backend.scorer.score(scoring, deadline)
        self._report(request, scoring, scores)
        explanations = self.backend.explanations
        # Read once, so that the answer states the mode that its explanations were made under.
        now = explanations.switch.now
        # Services that share a Redis share the mode, so both would explain a mirrored request.
        if explain is None or (not explain and (now.name == "off" or is_mirrored(request))):
            return Answer(scores, now.name, {})
        results = await explanations.explain(
            Requester(scoring.request_id, scoring.caller),
            graded_pairs(scoring, scores),
            now,
            asked=explain,
            remaining_s=deadline.remaining_s(),
        )
        return Answer(scores, now.name, results)

    def _report(self, request: Request, scoring: ScoringRequest, answer: ScoringAnswer) -> None:
        """Add the scores to the request's log event, and offer them to the shadow."""
        event = current_request.get().event
        for name, counts in (("outcomes", answer.outcomes), ("sources", answer.sources)):
            # A request in several parts adds them up.
            event[name] = dict(Counter(event.get(name, {})) + Counter(counts))
        event["criteria"] = answer.criteria
        shadow = self.backend.shadow
        if shadow and not is_mirrored(request) and shadow.samples():
            shadow.offer(_mirrored(scoring, answer))


def is_mirrored(request: Request) -> bool:
    """Return whether another service sent the request to compare scores: it is neither explained nor mirrored again."""
    return SHADOW_HEADER in request.headers


def graded_pairs(scoring: ScoringRequest, answer: ScoringAnswer) -> dict[str, GradedPair]:
    """Return the pairs that were scored, by note id."""
    return {
        note.id: GradedPair(
            scoring.query,
            note.title,
            note.body,
            answer.criteria,
            result.judgement.grade,
            result.reading or "text",
        )
        for note, result in zip(scoring.notes, answer.results, strict=True)
        if result.judgement
    }


def _mirrored(scoring: ScoringRequest, answer: ScoringAnswer) -> Mirrored:
    computed = all(result.source == "engine" for result in answer.results)
    return Mirrored(
        request_id=scoring.request_id,
        query=scoring.query,
        criteria=scoring.criteria,
        notes=tuple(
            MirroredNote(note.id, note.title, note.body, _graded(result), result.reading or "text")
            for note, result in zip(scoring.notes, answer.results, strict=True)
        ),
        engine_ms=answer.timing.engine if computed else None,
    )


def _graded(result: PairResult) -> Graded | None:
    judgement = result.judgement
    return Graded(judgement.grade, judgement.score) if judgement else None


def documents(
    body: type[BaseModel] | None = None, problems: Mapping[int, str] = MappingProxyType({})
) -> dict[str, Any]:
    """Return what /docs shows of a route: the body that it parses itself, its own problems, and those of every route."""
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    responses: dict[int | str, Any] = {
        status: {"description": why, "content": content} for status, why in {**PROBLEMS, **problems}.items()
    }
    if body is None:
        return {"responses": responses}
    # http/openapi.py adds the schema that this points to.
    schema = {"$ref": f"#/components/schemas/{body.__name__}"}
    request_body = {"required": True, "content": {"application/json": {"schema": schema}}}
    return {"responses": responses, "openapi_extra": {"requestBody": request_body}}


def to_json(
    body: BaseModel, headers: dict[str, str] | None = None, *, exclude_none: bool = False, status: int = 200
) -> Response:
    """Write a body that was made here, so it is not validated again."""
    content = body.model_dump_json(exclude_none=exclude_none)
    return Response(content, status, headers, media_type="application/json")
