"""The whole path of a request. `Scorer.score` calls its steps in the order in which they happen."""

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from functools import partial

from service.caches.keys import note_key, pack_reading, query_key, scoring_fingerprint, unpack_reading
from service.caches.tiered_cache import TieredCache
from service.contract.checkpoint import Checkpoint
from service.contract.judgement import judge
from service.contract.labels import Reading
from service.contract.prompt import Note
from service.contract.text import canonicalize
from service.engines.base import Engine
from service.errors import (
    DeadlineExceededError,
    EngineError,
    EngineLostError,
    EngineRequestError,
    OverloadedError,
    VectorsMissingError,
)
from service.observability.live import LiveFigures
from service.observability.metrics import Metrics
from service.observability.redaction import log_redacted
from service.scoring.admission import Admission, Flow, ShedReason, Ticket
from service.scoring.deadline import Deadline
from service.scoring.measurement import Instants, ScoringRecorder, measure_timing, now, sum_engine_tokens
from service.scoring.pairs import (
    CLOSING,
    Answers,
    Attached,
    Attachment,
    Cached,
    CachedReading,
    EngineReading,
    FlightKey,
    Pairs,
    Shed,
    result_of_flight,
)
from service.scoring.prompter import PairPrompt, Prompter
from service.scoring.single_flight import SingleFlight
from service.scoring.types import Outcome, PairResult, ScoringAnswer, ScoringRequest, Source

logger = logging.getLogger(__name__)


class Scorer:
    """Scores requests on one engine. It is used from one event loop; close it before the engine and the cache."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        prompter: Prompter,
        engine: Engine,
        cache: TieredCache,
        admission: Admission,
        metrics: Metrics,
        live: LiveFigures,
    ) -> None:
        self._manifest = checkpoint.manifest
        self._renderer = checkpoint.renderer
        self._prompter = prompter
        self._engine = engine
        self._cache = cache
        self._admission = admission
        self._recorder = ScoringRecorder(metrics, live)
        self._in_flight: SingleFlight[FlightKey, EngineReading | EngineError] = SingleFlight()
        self._closing = False

    async def score(self, request: ScoringRequest, deadline: Deadline | None = None) -> ScoringAnswer:
        """Score every pair that can be scored by the deadline, which is `deadline_ms` from now if none is given.

        Cancelling the call aborts its engine work, except for pairs that another request is attached to.
        Raises InvalidRequestError for an unknown criteria name or a query over its limit of tokens, and, when no
        pair was scored, or not all of an all-or-nothing request, OverloadedError, VectorsMissingError,
        DeadlineExceededError or EngineError.
        """
        started = now()
        deadline = deadline or Deadline.after_ms(request.deadline_ms)
        pairs = self._identify_pairs(request)
        cached = await self._read_cache(pairs)
        cache_read = now()
        attached = self._join_flights(pairs, pairs.missing(cached))
        try:
            launched, shed = await self._launch_missing(pairs, pairs.missing(cached, attached), deadline)
            attached |= launched
            launched_at = now()
            answers = await _wait_for_flights(attached, deadline)
            instants = Instants(started, cache_read, launched_at, ended=now())
            await self._write_cache(pairs, attached, answers)
        finally:
            for attachment in attached.values():
                attachment.flight.detach()
        results = self._collect_results(request, pairs, cached, attached, answers, shed)
        timing = measure_timing(instants, attached, answers)
        outcomes, sources = self._recorder.count(results, shed)
        if outcomes["failed"]:
            _log_failures(answers)
        self._recorder.observe_request(instants, timing, request.priority, used_engine=bool(attached))
        self._raise_unless_scored(request, outcomes, answers, shed)
        tokens = sum_engine_tokens(attached, answers)
        return ScoringAnswer(request.request_id, pairs.criteria, results, timing, tokens, outcomes, sources)

    async def close(self) -> None:
        """Abort the calls in flight and wait for their end. Later requests fail as if they had been in flight."""
        self._closing = True
        await self._in_flight.close()

    def _identify_pairs(self, request: ScoringRequest) -> Pairs:
        criteria = self._renderer.choose_criteria(request.criteria)
        query = canonicalize(request.query)
        notes = tuple(Note(canonicalize(note.title), canonicalize(note.body)) for note in request.notes)
        numbers = dict(self._engine.profile.numbers)
        if (mode := self._prompter.mode) != "text":
            numbers["reading"] = mode  # else the keys are as they were before there were vectors
        fingerprint = scoring_fingerprint(self._manifest.fingerprint, criteria, numbers)
        return Pairs(
            flow=Flow(request.priority, request.caller),
            criteria=criteria,
            query=query,
            notes=notes,
            query_key=query_key(query, fingerprint),
            note_keys=tuple(note_key(note.title, note.body) for note in notes),
        )

    async def _read_cache(self, pairs: Pairs) -> Cached:
        hits = await self._cache.get_many(pairs.query_key, pairs.note_keys)
        labels = len(self._manifest.labels)
        return {
            index: CachedReading(reading, hit[1])
            for index, hit in enumerate(hits)
            if hit and (reading := unpack_reading(hit[0], labels, *pairs.key(index)))
        }

    def _join_flights(self, pairs: Pairs, missing: Sequence[int]) -> dict[int, Attachment]:
        joined = {index: self._join_flight(pairs, index) for index in missing}
        return {index: attachment for index, attachment in joined.items() if attachment}

    def _join_flight(self, pairs: Pairs, index: int) -> Attachment | None:
        for key in pairs.joinable_keys(index):
            if flight := self._in_flight.join(key):
                return Attachment(flight, "coalesced")
        return None

    async def _launch_missing(
        self, pairs: Pairs, missing: Sequence[int], deadline: Deadline
    ) -> tuple[Attached, Shed]:
        """Start or join a flight for each missing pair, or shed it; a pair whose deadline is too short gets neither.

        Awaits nothing after the first flight has started.
        """
        if not missing:
            return {}, {}
        # Rendering gives the exact length. It is skipped while not even an empty note would be admitted.
        overhead = self._prompter.least_tokens(pairs.criteria)
        if reason := self._admission.why_not(pairs.flow, overhead, deadline.remaining_s()):
            return {}, {} if reason == "too_short" else dict.fromkeys(missing, reason)
        started, notes = now(), [pairs.notes[index] for index in missing]
        try:
            async with asyncio.timeout(deadline.remaining_s()):
                prompts = await self._prompter.make(pairs.query, notes, pairs.criteria)
        except TimeoutError:
            return {}, {}
        self._recorder.observe_stage("render", started, now() - started)
        attached: dict[int, Attachment] = {}
        shed: dict[int, ShedReason] = {}
        of_others = self._admission.tokens_of(pairs.flow)
        for index, prompt in zip(missing, prompts, strict=True):
            # Another request may have started the pair meanwhile, or this request has the same note twice.
            if attachment := self._join_flight(pairs, index):
                attached[index] = attachment
                continue
            if prompt is None:
                shed[index] = "no_vectors"
                continue
            own = self._admission.tokens_of(pairs.flow) - of_others
            left_s = deadline.remaining_s()
            reason = self._admission.why_not(pairs.flow, prompt.tokens, left_s, own, prompt.kind)
            if reason is None:
                attached[index] = self._start_flight(pairs, index, prompt)
            elif reason != "too_short":
                shed[index] = reason
        return attached, shed

    def _start_flight(self, pairs: Pairs, index: int, prompt: PairPrompt) -> Attachment:
        ticket = self._admission.admit(pairs.flow, prompt.tokens, prompt.kind)
        flight = self._in_flight.start(pairs.flight_key(index), self._read_pair(prompt, ticket.turn))
        # Not in a `finally` of the call, which does not run if the call is cancelled before its first step.
        flight.task.add_done_callback(partial(self._release, ticket))
        return Attachment(flight, "engine")

    def _release(self, ticket: Ticket, task: "asyncio.Task[EngineReading | EngineError]") -> None:
        answer = None if task.cancelled() or task.exception() else task.result()
        if isinstance(answer, EngineReading):
            self._admission.release(ticket, answer.prompt_tokens, answer.computed_tokens)
        else:
            self._admission.release(ticket)

    async def _read_pair(self, prompt: PairPrompt, priority: int) -> EngineReading | EngineError:
        # Errors are returned, not raised: every request that is attached to the flight reads the result.
        if self._closing:
            return EngineLostError(CLOSING)
        try:
            answer = await self._engine.score(prompt.prompt, priority)
            distribution = answer.distribution()
        except EngineError as error:
            return error
        except Exception as error:  # an unexpected error on one pair must not fail the other pairs
            log_redacted(logger, "a pair failed", error)
            return EngineRequestError(
                f"the engine's answer to this pair can't be read: {type(error).__name__}"
            )
        computed = self._recorder.count_engine_tokens(answer.prompt_tokens, answer.reused_tokens)
        reading = Reading(distribution, prompt.truncated, prompt.kind)
        return EngineReading(reading, answer.queued_s, answer.prompt_tokens, computed)

    async def _write_cache(self, pairs: Pairs, attached: Attached, answers: Answers) -> None:
        entries = {
            pairs.note_keys[index]: pack_reading(answer.reading, *pairs.key(index))
            for index, answer in answers.items()
            if isinstance(answer, EngineReading) and attached[index].flight.claim()
        }
        if entries:
            await self._cache.put_many_behind(pairs.query_key, entries)

    def _collect_results(
        self,
        request: ScoringRequest,
        pairs: Pairs,
        cached: Cached,
        attached: Attached,
        answers: Answers,
        shed: Shed,
    ) -> tuple[PairResult, ...]:
        results = []
        for index, note in enumerate(request.notes):
            if index in shed:
                results.append(PairResult(note.id, "shed"))
            elif index in cached:
                results.append(self._to_result(note.id, pairs.criteria, *cached[index]))
            elif index not in answers:
                results.append(PairResult(note.id, "deadline_exceeded"))
            elif isinstance(answer := answers[index], EngineReading):
                source = attached[index].source
                results.append(self._to_result(note.id, pairs.criteria, answer.reading, source))
            else:
                results.append(PairResult(note.id, "failed"))
        return tuple(results)

    def _to_result(self, note_id: str, criteria: str, reading: Reading, source: Source) -> PairResult:
        judgement = judge(reading.distribution, self._manifest, criteria, reading.kind)
        return PairResult(note_id, "scored", judgement, source, reading.truncated, reading.kind)

    def _raise_unless_scored(
        self, request: ScoringRequest, outcomes: Counter[Outcome], answers: Answers, shed: Shed
    ) -> None:
        scored, pairs = outcomes["scored"], len(request.notes)
        if scored == pairs or (scored and not request.all_or_nothing):
            return
        # A lost engine is the first reason: its restart takes longer than a backlog or a deadline.
        if lost := next((answer for answer in answers.values() if isinstance(answer, EngineLostError)), None):
            raise lost
        if set(shed.values()) == {"no_vectors"}:
            raise VectorsMissingError(
                f"{outcomes['shed']} of the query's {pairs} notes have no vectors yet: they are encoded while the service "
                "is idle, so retry later"
            )
        if outcomes["shed"]:
            retry_after_s = self._admission.retry_after_s(request.priority)
            message = f"{outcomes['shed']} of the query's {pairs} pairs were shed: retry after the time given"
            raise OverloadedError(message, retry_after_s)
        if outcomes["deadline_exceeded"]:
            raise DeadlineExceededError(
                f"{scored} of the query's {pairs} pairs were scored within {request.deadline_ms} ms: "
                "allow more time or send fewer notes"
            )
        raise EngineRequestError(
            f"the engine failed on {outcomes['failed']} of the query's {pairs} pairs: "
            "retry, then look at the service's log"
        )


def _log_failures(answers: Answers) -> None:
    """Log a request's failed pairs with the first one's reason. A lost engine changes the readiness, which logs it."""
    reasons = [
        str(answer)
        for answer in answers.values()
        if isinstance(answer, EngineError) and not isinstance(answer, EngineLostError)
    ]
    if reasons:
        logger.error("pairs failed", extra={"pairs": len(reasons), "detail": reasons[0]})


async def _wait_for_flights(attached: Attached, deadline: Deadline) -> Answers:
    """Wait until every flight is done, or until the deadline, and return the results of those that are done."""
    tasks = {attachment.flight.task for attachment in attached.values()}
    if tasks:
        # `wait` never cancels the tasks. Detaching from a flight does, when no other request is attached.
        await asyncio.wait(tasks, timeout=deadline.remaining_s())
    return {
        index: result_of_flight(attachment.flight)
        for index, attachment in attached.items()
        if attachment.flight.task.done()
    }
