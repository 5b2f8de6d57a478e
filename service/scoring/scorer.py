"""The whole request path. `Scorer.score` reads in the order in which things happen."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import get_args

from service.caches.keys import note_key, pack_reading, query_key, scoring_fingerprint, unpack_reading
from service.caches.tiered_cache import TieredCache
from service.contract.checkpoint import Checkpoint
from service.contract.judgement import judge
from service.contract.labels import Reading
from service.contract.prompt import Note, Prompt
from service.contract.text import canonicalize
from service.engines.base import Engine
from service.errors import (
    BadField,
    DeadlineExceededError,
    EngineError,
    EngineLostError,
    EngineRequestError,
    InvalidRequestError,
    OverloadedError,
)
from service.observability.live import LiveFigures
from service.observability.metrics import Metrics, initialize_series
from service.observability.redaction import log_redacted
from service.observability.request_context import current_request
from service.observability.tracing import exemplar
from service.scoring.admission import Admission, ShedReason, Ticket
from service.scoring.deadline import Deadline
from service.scoring.single_flight import SingleFlight
from service.scoring.types import Outcome, PairResult, ScoringAnswer, ScoringRequest, Source, Timing
from service.scoring.work import CLOSING, EngineReading, FlightKey, PairFlight, Work, landed

logger = logging.getLogger(__name__)


class Scorer:
    """Scores requests on one engine. Used from one event loop; `close` it before the engine and the cache."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        engine: Engine,
        cache: TieredCache,
        admission: Admission,
        metrics: Metrics,
        live: LiveFigures,
    ) -> None:
        self._manifest = checkpoint.manifest
        self._renderer = checkpoint.renderer
        self._engine = engine
        self._cache = cache
        self._admission = admission
        self._metrics = metrics
        self._live = live
        self._in_flight: SingleFlight[FlightKey, EngineReading | EngineError] = SingleFlight()
        self._closing = False
        initialize_series(metrics.pair_outcomes, get_args(Outcome))
        initialize_series(metrics.shed, get_args(ShedReason))

    async def score(self, request: ScoringRequest, deadline: Deadline | None = None) -> ScoringAnswer:
        """Score every pair that can be scored by the deadline, which is the request's `deadline_ms` from now if none is given.

        Cancelling it aborts its engine work, except for pairs that another request waits on.
        Raises InvalidRequestError for an unknown criteria name or a query over its limit of tokens, and, when
        not a single pair was scored, OverloadedError, DeadlineExceededError or EngineError.
        """
        started = _now()
        deadline = deadline or Deadline.after_ms(request.deadline_ms)
        work = self._mint_keys(request, deadline)
        await self._read_cache(work)
        cache_read = _now()
        try:
            self._join_flights(work)
            await self._take_off(work)
            launched = _now()
            await _land(work.flights.values(), deadline)
            ended = _now()
            results = tuple(self._result(work, i) for i in range(len(request.notes)))
            await self._write_cache(work)
        finally:
            work.leave()
        timing = _timing(work, started, cache_read, launched, ended)
        outcomes, sources = self._count(work, results, timing)
        self._observe_stages(work, started, launched, timing)
        self._raise_unless_scored(work, results)
        tokens = _engine_tokens(work)
        return ScoringAnswer(request.request_id, work.criteria, results, timing, tokens, outcomes, sources)

    async def close(self) -> None:
        """Abort what is in flight and wait until it has ended; what is asked for from now on fails as if it had been."""
        self._closing = True
        await self._in_flight.close()

    def _mint_keys(self, request: ScoringRequest, deadline: Deadline) -> Work:
        criteria = self._checked_criteria(request.criteria)
        query = canonicalize(request.query)
        notes = [Note(canonicalize(note.title), canonicalize(note.body)) for note in request.notes]
        fingerprint = scoring_fingerprint(self._manifest.fingerprint, criteria, self._engine.profile.numbers)
        return Work(
            request=request,
            deadline=deadline,
            criteria=criteria,
            query=query,
            notes=notes,
            query_key=query_key(query, fingerprint),
            note_keys=[note_key(note.title, note.body) for note in notes],
            readings=[None] * len(notes),
            sources=[None] * len(notes),
        )

    def _checked_criteria(self, name: str | None) -> str:
        if name is None:
            return self._renderer.default_criteria
        if name not in self._renderer.criteria_names:
            known = ", ".join(self._renderer.criteria_names)
            message = f"this checkpoint has no such criteria; it has {known}"
            raise InvalidRequestError(message, [BadField("criteria", message)])
        return name

    async def _read_cache(self, work: Work) -> None:
        found = await self._cache.get_many(work.query_key, work.note_keys)
        for index, hit in enumerate(found):
            reading = hit and unpack_reading(hit[0], len(self._manifest.labels), *work.key(index))
            if hit and reading:
                work.readings[index], work.sources[index] = reading, hit[1]

    def _join_flights(self, work: Work) -> None:
        for index in work.missing():
            self._join_flight(work, index)

    def _join_flight(self, work: Work, index: int) -> bool:
        for key in work.flights_to_join(index):
            if flight := self._in_flight.join(key):
                work.board(index, flight, "coalesced")
                return True
        return False

    async def _take_off(self, work: Work) -> None:
        missing = work.missing()
        if not missing:
            return
        # Rendering tells the exact length; while not even a note without text would be admitted, that work is spared.
        shortest = self._renderer.max_overhead_tokens(work.criteria)
        if reason := self._admission.why_not(work.flow, shortest, work.deadline.remaining_s()):
            work.shed.update(dict.fromkeys(missing, reason))
            return
        rendering = _now()
        try:
            async with asyncio.timeout(work.deadline.remaining_s()):
                prompts = await self._render(work, missing)
        except TimeoutError:
            work.shed.update(dict.fromkeys(missing, "deadline"))
            return
        self._observe_stage("render", rendering, _now() - rendering)
        for index, prompt in zip(missing, prompts, strict=True):
            # Another request may have started the same pair meanwhile, or the same text stands twice in this one.
            if not self._join_flight(work, index):
                self._start_or_shed(work, index, prompt)

    async def _render(self, work: Work, missing: Sequence[int]) -> Sequence[Prompt]:
        notes = [work.notes[index] for index in missing]
        return await asyncio.to_thread(self._renderer.render, work.query, notes, work.criteria)

    def _start_or_shed(self, work: Work, index: int, prompt: Prompt) -> None:
        tokens = len(prompt.token_ids)
        if reason := self._admission.why_not(work.flow, tokens, work.deadline.remaining_s()):
            work.shed[index] = reason
            return
        ticket = self._admission.admit(work.flow, tokens)
        flight = self._in_flight.start(work.flight_key(index), self._read_pair(prompt, ticket.turn))
        # Not in a `finally` of the call: one that is cancelled before its first step never runs it.
        flight.task.add_done_callback(self._releaser(ticket))
        work.board(index, flight, "engine")

    def _releaser(self, ticket: Ticket) -> "Callable[[asyncio.Task[EngineReading | EngineError]], None]":
        def release(task: "asyncio.Task[EngineReading | EngineError]") -> None:
            found = None if task.cancelled() or task.exception() else task.result()
            if isinstance(found, EngineReading):
                self._admission.release(ticket, found.prompt_tokens, found.computed_tokens)
            else:
                self._admission.release(ticket)

        return release

    async def _read_pair(self, prompt: Prompt, priority: int) -> EngineReading | EngineError:
        # Returned, not raised: every sharer of the flight looks at it.
        if self._closing:
            return EngineLostError(CLOSING)
        try:
            answer = await self._engine.score(prompt.token_ids, priority)
            distribution = answer.distribution()
        except EngineError as error:
            return error
        except Exception as error:  # a fault of ours or of the engine's that shows on one pair is no reason to lose the others
            log_redacted(logger, "a pair failed", error)
            return EngineRequestError(
                f"the engine's answer to this pair can't be read: {type(error).__name__}"
            )
        computed = answer.prompt_tokens - answer.reused_tokens
        self._metrics.prompt_tokens.labels("computed").inc(computed)
        self._metrics.prompt_tokens.labels("reused").inc(answer.reused_tokens)
        reading = Reading(distribution, prompt.truncated)
        return EngineReading(reading, answer.queued_s, answer.prompt_tokens, computed)

    def _result(self, work: Work, index: int) -> PairResult:
        note_id = work.request.notes[index].id
        flight = work.flights.get(index)
        if index in work.shed:
            return PairResult(note_id, "shed")
        if flight:
            if not flight.task.done():
                return PairResult(note_id, "deadline_exceeded")
            found = landed(flight)
            if isinstance(found, EngineError):
                return PairResult(note_id, "failed")
            work.readings[index] = found.reading
        reading = work.readings[index]
        assert reading  # noqa: S101 - a note is in the cache, in flight, or shed
        judgement = judge(reading.distribution, self._manifest, work.criteria)
        return PairResult(note_id, "scored", judgement, work.sources[index], reading.truncated)

    async def _write_cache(self, work: Work) -> None:
        entries = {
            work.note_keys[index]: pack_reading(reading, *work.key(index))
            for index, flight in work.flights.items()
            if (reading := work.readings[index]) and flight.claim()
        }
        if entries:
            await self._cache.put_many_behind(work.query_key, entries)

    def _count(
        self, work: Work, results: Sequence[PairResult], timing: Timing
    ) -> tuple[Counter[Outcome], Counter[Source]]:
        for reason in work.shed.values():
            self._metrics.shed.labels(reason).inc()
        for result in results:
            self._metrics.pair_outcomes.labels(result.outcome).inc()
            if result.judgement:
                self._metrics.pair_source.labels(result.source).inc()
                self._metrics.grades.labels(str(result.judgement.grade)).inc()
                self._metrics.score.observe(result.judgement.score)
                self._metrics.label_mass.observe(result.judgement.label_mass)
        outcomes = Counter(result.outcome for result in results)
        sources = Counter(result.source for result in results if result.source)
        cached = sources["local"] + sources["redis"]
        self._live.count_pairs(outcomes["scored"], cached, outcomes["shed"], len(results))
        if work.request.priority == "online":
            self._live.count_latency(timing.total / 1000)
        return outcomes, sources

    def _observe_stages(self, work: Work, started: float, launched: float, timing: Timing) -> None:
        self._observe_stage("cache", started, timing.cache / 1000)
        # What never went to the engine has no times there: zeros would hide how long the others took.
        if work.flights:
            queued_s = timing.queue / 1000
            self._observe_stage("queue", launched, queued_s)
            self._observe_stage("engine", launched + queued_s, timing.engine / 1000)

    def _observe_stage(self, stage: str, started: float, seconds: float) -> None:
        trace = current_request.get().trace
        trace.add(stage, started, started + seconds)
        self._metrics.stage_seconds.labels(stage).observe(seconds, exemplar(trace))

    def _raise_unless_scored(self, work: Work, results: Sequence[PairResult]) -> None:
        outcomes = {result.outcome for result in results}
        if "scored" in outcomes:
            return
        if "shed" in outcomes:
            which = "every pair was shed" if len(outcomes) == 1 else "pairs were shed, and none was scored"
            retry_after_s = self._admission.retry_after_s(work.request.priority)
            raise OverloadedError(f"{which}: retry after the time given", retry_after_s)
        if "deadline_exceeded" in outcomes:
            raise DeadlineExceededError(
                f"no pair was scored within {work.request.deadline_ms} ms: allow more time or send fewer notes"
            )
        failures = [landed(flight) for flight in work.flights.values()]
        lost = next((failure for failure in failures if isinstance(failure, EngineLostError)), None)
        raise lost or EngineRequestError(
            "the engine failed on every pair: retry, then look at the service's log"
        )


async def _land(flights: Iterable[PairFlight], deadline: Deadline) -> None:
    tasks = {flight.task for flight in flights}
    if tasks:
        # `wait` never cancels what it waits for: leaving the flights does, for those nobody else is on.
        await asyncio.wait(tasks, timeout=deadline.remaining_s())


def _timing(work: Work, started: float, cache_read: float, launched: float, ended: float) -> Timing:
    in_engine = ended - launched
    waits = [found.queued_s for _, found in work.engine_readings()]
    queue = min([*waits, in_engine]) if work.flights else 0.0
    return Timing(
        total=(ended - started) * 1000,
        cache=(cache_read - started) * 1000,
        queue=queue * 1000,
        engine=(in_engine - queue) * 1000,
    )


def _engine_tokens(work: Work) -> int:
    return sum(found.prompt_tokens for i, found in work.engine_readings() if work.sources[i] == "engine")


def _now() -> float:
    # Not the loop's clock: uvloop's stands still within one turn of the loop, and ticks in whole milliseconds.
    return time.perf_counter()
