"""The explainer generates traces in the engine's spare time: a bounded queue that drops, and a budget of tokens per second."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Literal

from service.contract.checkpoint import Checkpoint
from service.contract.judgement import judge
from service.contract.prompt import Note
from service.contract.text import canonicalize
from service.contract.trace import EXPLANATION_CUE
from service.contract.trace_grammar import trace_grammar
from service.engines.base import Engine
from service.errors import EngineError, ExplanationDroppedError, InvalidRequestError
from service.explaining.limits import ExplanationLimits
from service.explaining.token_budget import TokenBudget
from service.explaining.traces import ExplanationResult, GradedPair, read_trace
from service.observability.background import cancel_and_wait, run_forever
from service.observability.metrics import Metrics
from service.observability.request_context import current_request
from service.observability.tracing import Trace, exemplar

logger = logging.getLogger(__name__)

# The engine serves smaller numbers first, and every score has a smaller one (scoring/admission.py).
ENGINE_PRIORITY = 1 << 61

DropReason = Literal["queue_full", "waited_too_long", "mode_off", "scoring_busy", "stopping"]
_ADVICE: dict[DropReason, str] = {
    "queue_full": "too many explanations are waiting: ask for fewer notes, or try again later",
    "waited_too_long": "the time limit passed before it was finished, because scoring goes first: try again later",
    "mode_off": "explanation mode went off before its turn",
    "scoring_busy": "scoring is over its limits and goes first: try again later",
    "stopping": "the service is stopping: ask another replica",
}


@dataclass(slots=True, eq=False)
class Job:
    """One explanation to make.

    Attributes:
        asked: whether a caller requested it; otherwise explanation mode sampled it.
        finished: the result, set once.
        pieces: the trace's text as it is generated, then None.
        on_finished: called by the worker with the result, for a caller that does not wait for it.
        trace: the request's spans.
        text: the trace's text so far.
    """

    pair: GradedPair
    asked: bool
    submitted_at: float
    finished: "asyncio.Future[ExplanationResult]"
    pieces: "asyncio.Queue[str | None]" = field(default_factory=asyncio.Queue, init=False)
    on_finished: Callable[[ExplanationResult], Awaitable[None]] | None = field(default=None, init=False)
    trace: Trace = field(default_factory=lambda: current_request.get().trace, init=False)
    text: str = field(default="", init=False)

    def abandon(self) -> None:
        """Give up the job: it is not started, or aborted in the engine."""
        self.finished.cancel()


class Explainer:
    """Generates traces for graded pairs. Start it once, close it before the engine. Used from one event loop."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        engine: Engine,
        limits: ExplanationLimits,
        drop_reason: Callable[[], DropReason | None],
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        *,
        log_texts: bool = False,
    ) -> None:
        """`drop_reason` is called before each trace and at each of its tokens; `clock` gives monotonic seconds."""
        self._checkpoint = checkpoint
        self._steps = {criteria.name: criteria.steps for criteria in checkpoint.manifest.criteria}
        self._top_grade = len(checkpoint.manifest.labels) - 1
        self._cue = checkpoint.tokenizer.encode_user_texts([EXPLANATION_CUE])[0].token_ids
        # The engine has room for the cue and what is written together.
        self._max_written = max(1, limits.explanation_max_tokens - len(self._cue))
        self._engine = engine
        self._limits = limits
        self._drop_reason = drop_reason
        self._metrics = metrics
        self._clock = clock
        self._log_texts = log_texts
        self._closing = False
        self._budget = TokenBudget(limits.explanation_tokens_per_s, clock)
        self._waiting: list[Job] = []  # in order of arrival
        self._arrival = asyncio.Event()
        # One worker at a time waits for the next job and the budget, or two would spend the same tokens.
        self._choosing = asyncio.Lock()
        self._workers: list[asyncio.Task[None]] = []
        metrics.explanation_queue.set_function(lambda: len(self._waiting))

    def start(self) -> None:
        """Start the workers."""
        self._workers = [
            asyncio.create_task(
                run_forever("an explanation worker", self._explain_next, log_texts=self._log_texts)
            )
            for _ in range(self._limits.explanation_workers)
        ]

    async def close(self) -> None:
        """Abort the traces in the engine, and drop the jobs that wait; later jobs are refused."""
        self._closing = True
        await cancel_and_wait(*self._workers)
        await self._drop(tuple(self._waiting), "stopping")

    def submit(self, pair: GradedPair, *, asked: bool) -> Job:
        """Queue an explanation; one that a caller requested goes before those that the mode samples.

        Raises ExplanationDroppedError at once when it cannot be explained now.
        """
        if reason := self._refusal(asked):
            self._count(_dropped(reason))
            raise ExplanationDroppedError(f"{reason}: {_ADVICE[reason]}", reason)
        job = Job(pair, asked, self._clock(), asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._arrival.set()
        return job

    def _refusal(self, asked: bool) -> DropReason | None:
        if self._closing:
            return "stopping"
        # Half of the queue is reserved for jobs that callers ask for, however many the mode samples.
        room = self._limits.explanation_queue if asked else (self._limits.explanation_queue + 1) // 2
        return self._drop_reason() or ("queue_full" if len(self._waiting) >= room else None)

    async def _explain_next(self) -> None:
        job = await self._next_job()
        try:
            await self._finish(job, await self._explain(job))
        except Exception:
            if not job.finished.done():  # whoever waits for it must not wait for ever
                await self._finish(job, ExplanationResult("failed", reason="internal"))
            raise
        finally:
            if not job.finished.done():  # cancelled by `close`
                await self._finish(job, _dropped("stopping"))

    async def _next_job(self) -> Job:
        """Wait for the token budget, and only then choose a job: one that a caller asks for meanwhile goes first."""
        async with self._choosing:
            while True:
                await self._drop_overdue()
                if not self._waiting:
                    self._arrival.clear()
                    await self._arrival.wait()
                elif owed_s := self._budget.wait_s():
                    await asyncio.sleep(min(owed_s, self._time_left_s(self._waiting[0])))
                else:
                    # min() keeps the order of arrival among equals.
                    job = min(self._waiting, key=lambda waiting: not waiting.asked)
                    self._waiting.remove(job)
                    return job

    async def _drop_overdue(self) -> None:
        overdue = [job for job in self._waiting if job.finished.done() or not self._time_left_s(job)]
        await self._drop(overdue, "waited_too_long")

    async def _drop(self, jobs: Sequence[Job], reason: DropReason) -> None:
        # Together: each may wait for the store of explanations, until its timeout where it hangs.
        self._waiting = [job for job in self._waiting if job not in jobs]
        await asyncio.gather(*(self._finish(job, _dropped(reason)) for job in jobs))

    async def _explain(self, job: Job) -> ExplanationResult:
        self._observe_stage(job, "queue", job.submitted_at)
        started = self._clock()
        generating = asyncio.create_task(self._generate(job))
        try:
            await asyncio.wait({generating, job.finished}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # The engine must have aborted this trace before the worker starts the next.
            await cancel_and_wait(generating)
        self._observe_stage(job, "write", started)
        return _dropped("stopping") if generating.cancelled() else generating.result()

    def _observe_stage(self, job: Job, stage: str, started: float) -> None:
        seconds, now = self._clock() - started, time.perf_counter()
        job.trace.add(f"explanation {stage}", now - seconds, now)
        self._metrics.explanation_seconds.labels(stage).observe(seconds, exemplar(job.trace))

    async def _generate(self, job: Job) -> ExplanationResult:
        try:
            async with asyncio.timeout(self._time_left_s(job)):
                if reason := await self._stream_from_engine(job):
                    return _dropped(reason)
                text_grade = await self._text_grade(job.pair)
        except TimeoutError:
            return _dropped("waited_too_long")
        except (EngineError, InvalidRequestError) as error:
            logger.error("an explanation failed", extra={"problem": error.type, "detail": str(error)})
            return ExplanationResult("failed", reason=error.type.rpartition(":")[2])
        made = read_trace(job.text, self._steps[job.pair.criteria], self._top_grade, job.pair)
        return replace(made, text_grade=text_grade)

    async def _stream_from_engine(self, job: Job) -> DropReason | None:
        """Fill `job.text`; stop early with the reason when the trace must give way."""
        if reason := self._drop_reason():
            return reason
        prompt = await asyncio.to_thread(self._prompt, job.pair)
        grammar = await asyncio.to_thread(self._grammar, job.pair)
        token_ids: list[int] = []
        # aclosing: however this block is left, the engine aborts the trace.
        async with aclosing(
            self._engine.write((*prompt, *self._cue), self._max_written, ENGINE_PRIORITY, grammar)
        ) as chunks:
            async for chunk in chunks:
                self._budget.spend(len(chunk.token_ids) + chunk.computed_tokens)
                self._metrics.explanation_tokens.inc(len(chunk.token_ids))
                token_ids += chunk.token_ids
                _publish(job, self._checkpoint.tokenizer.decode(token_ids))
                if reason := self._drop_reason():
                    return reason
        return None

    def _prompt(self, pair: GradedPair) -> tuple[int, ...]:
        query, note = _texts(pair)
        [prompt] = self._checkpoint.renderer.render(query, [note], pair.criteria)
        # The sequence that was scored, or that would have been without vectors, followed by the grade that was served.
        return (*prompt.token_ids, self._checkpoint.manifest.label_token_ids[pair.grade])

    def _grammar(self, pair: GradedPair) -> str:
        return trace_grammar(self._steps[pair.criteria], self._top_grade, *_texts(pair))

    async def _text_grade(self, pair: GradedPair) -> int | None:
        """Read the grade from the note's text, where the served one is from its vectors. The engine still has the prompt."""
        if pair.reading == "text":
            return None
        *prompt, _ = await asyncio.to_thread(self._prompt, pair)
        answer = await self._engine.score(tuple(prompt), ENGINE_PRIORITY)
        return judge(answer.distribution(), self._checkpoint.manifest, pair.criteria).grade

    def _time_left_s(self, job: Job) -> float:
        return max(0.0, job.submitted_at + self._limits.explanation_wait_s - self._clock())

    async def _finish(self, job: Job, result: ExplanationResult) -> None:
        if job.finished.done():
            self._metrics.explanations.labels("abandoned").inc()
            return
        job.finished.set_result(result)
        job.pieces.put_nowait(None)
        self._count(result)
        if job.on_finished:
            await job.on_finished(result)

    def _count(self, result: ExplanationResult) -> None:
        made = "well_formed" if result.well_formed else "malformed"
        self._metrics.explanations.labels(made if result.outcome == "made" else result.outcome).inc()
        if result.well_formed:
            self._metrics.explanation_agreement.labels(str(result.agrees).lower()).inc()
            self._metrics.explanation_grounded.labels(str(result.grounded).lower()).inc()
        if result.outcome == "dropped":
            self._metrics.explanation_drops.labels(result.reason).inc()


def _texts(pair: GradedPair) -> tuple[str, Note]:
    return canonicalize(pair.query), Note(canonicalize(pair.title), canonicalize(pair.body))


def _dropped(reason: DropReason) -> ExplanationResult:
    return ExplanationResult("dropped", reason=reason)


def _publish(job: Job, text: str) -> None:
    # A character may take several tokens: until the last of them it decodes to a replacement character.
    text = text.rstrip("\ufffd")
    if len(text) > len(job.text):
        job.pieces.put_nowait(text[len(job.text) :])
    job.text = text
