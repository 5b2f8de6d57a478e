"""Writes traces in the engine's spare time: a queue that drops rather than waits, and a budget of tokens a second."""

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Literal

from service.contract.checkpoint import Checkpoint
from service.contract.prompt import Note
from service.contract.text import canonicalize
from service.engines.base import Engine
from service.errors import EngineError, EngineRequestError, ExplanationDroppedError, InvalidRequestError
from service.explaining.traces import Explanation, read_trace
from service.observability.metrics import Metrics
from service.observability.redaction import log_redacted
from service.observability.request_context import current_request
from service.observability.tracing import Trace, exemplar

logger = logging.getLogger(__name__)

# Lower than any score's turn, of whatever priority (scoring/admission.py).
ENGINE_PRIORITY = 1 << 61

DropReason = Literal["queue_full", "waited_too_long", "mode_off", "scoring_busy", "stopping"]
_ADVICE: dict[DropReason, str] = {
    "queue_full": "too many explanations are waiting: ask for fewer notes, or later",
    "waited_too_long": "its time was over before it was written, as scoring goes first: ask again later",
    "mode_off": "explanation mode went off before its turn",
    "scoring_busy": "scoring is over its limits, and goes first: ask again later",
    "stopping": "the service is stopping: ask another replica",
}


@dataclass(frozen=True, slots=True)
class GradedPair:
    """A pair and the grade that was served for it."""

    query: str
    title: str | None
    body: str
    criteria: str
    grade: int


@dataclass(frozen=True, slots=True)
class ExplainerLimits:
    """How much may be explained.

    Attributes:
        queue: most explanations waiting.
        workers: most being written at once.
        tokens_per_s: prompt and trace tokens computed in a second, over time.
        max_tokens: longest trace.
        wait_s: longest time from asking to the trace's end.
    """

    queue: int = 64
    workers: int = 2
    tokens_per_s: float = 100.0
    max_tokens: int = 160
    wait_s: float = 30.0


Finished = Explanation | ExplanationDroppedError | EngineError | InvalidRequestError
Keep = Callable[[Finished], Awaitable[None]]


@dataclass(slots=True, eq=False)
class Job:
    """One explanation under way. Whoever no longer wants it calls `abandon`.

    Attributes:
        finished: what came of it, set once.
        pieces: the trace's text as it is written, then None; only where somebody reads along.
        keep: what the worker does with the result, for when nobody waits for it any more.
        trace: of the request that it is for.
    """

    pair: GradedPair
    asked_at: float
    finished: "asyncio.Future[Finished]"
    pieces: "asyncio.Queue[str | None] | None" = None
    keep: Keep | None = None
    trace: Trace = field(default_factory=lambda: current_request.get().trace, init=False)
    text: str = field(default="", init=False)

    def abandon(self) -> None:
        """Nobody wants it: it isn't begun, or aborted."""
        self.finished.cancel()


class TokenBudget:
    """Tokens a second. Work may begin while nothing is owed; what it takes more than there was is owed by the next."""

    def __init__(self, tokens_per_s: float, clock: Callable[[], float]) -> None:
        self._rate = tokens_per_s
        self._clock = clock
        self._left = tokens_per_s
        self._looked_at = clock()

    def spend(self, tokens: int) -> None:
        """Take them, there or not."""
        self._left = self._now_left() - tokens

    def wait_s(self) -> float:
        """How long until nothing is owed."""
        return max(0.0, -self._now_left() / self._rate)

    def _now_left(self) -> float:
        now = self._clock()
        # At most one second's worth is saved up: a quiet hour must not pay for a burst.
        self._left = min(self._rate, self._left + (now - self._looked_at) * self._rate)
        self._looked_at = now
        return self._left


class Explainer:
    """Start it once, close it before the engine. Used from one event loop."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        engine: Engine,
        limits: ExplainerLimits,
        why_not_now: Callable[[], DropReason | None],
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        *,
        log_texts: bool = False,
    ) -> None:
        """`why_not_now` is asked before a trace is begun and at each of its tokens; `clock` gives monotonic seconds."""
        self._checkpoint = checkpoint
        self._steps = {criteria.name: criteria.steps for criteria in checkpoint.manifest.criteria}
        self._engine = engine
        self._limits = limits
        self._why_not_now = why_not_now
        self._metrics = metrics
        self._clock = clock
        self._log_texts = log_texts
        self._closing = False
        self._budget = TokenBudget(limits.tokens_per_s, clock)
        # What somebody asked for goes before what the mode alone wants; then in order.
        self._queue: asyncio.PriorityQueue[tuple[bool, int, Job]] = asyncio.PriorityQueue(limits.queue)
        self._order = itertools.count()
        self._workers: list[asyncio.Task[None]] = []
        metrics.explanation_queue.set_function(self._queue.qsize)

    def start(self) -> None:
        """Begin to write."""
        self._workers = [asyncio.create_task(self._work()) for _ in range(self._limits.workers)]

    async def close(self) -> None:
        """Abort what is being written, and drop what waits and what is still asked for."""
        self._closing = True  # what is put into the queue from now on would wait for ever
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        while not self._queue.empty():
            await self._finish(self._queue.get_nowait()[-1], _dropped("stopping"))

    def submit(self, pair: GradedPair, *, asked: bool, read_along: bool = False) -> Job:
        """Put it in the queue: the front of it when somebody `asked` for this very pair.

        Raises ExplanationDroppedError at once when it can't be explained now.
        """
        if reason := self._why_not_taken(asked):
            self._count(error := _dropped(reason))
            raise error
        pieces: asyncio.Queue[str | None] | None = asyncio.Queue() if read_along else None
        job = Job(pair, self._clock(), asyncio.get_running_loop().create_future(), pieces)
        self._queue.put_nowait((not asked, next(self._order), job))
        return job

    def _why_not_taken(self, asked: bool) -> DropReason | None:
        if self._closing:
            return "stopping"
        # Half of the queue stays free for what is asked for, however much there is to sample.
        room = self._limits.queue if asked else (self._limits.queue + 1) // 2
        return self._why_not_now() or ("queue_full" if self._queue.qsize() >= room else None)

    async def _work(self) -> None:
        while True:
            *_, job = await self._queue.get()
            try:
                await self._attend(job)
            except Exception as error:
                # The next one is not to wait for ever.
                log_redacted(logger, "unforeseen error while explaining", error, log_texts=self._log_texts)
                await self._finish(job, EngineRequestError("an unforeseen error: the service's log has it"))
            finally:  # closed meanwhile
                if not job.finished.done():
                    await self._finish(job, _dropped("stopping"))

    async def _attend(self, job: Job) -> None:
        owed_s, patience_s = self._budget.wait_s(), self._patience_s(job)
        await asyncio.wait({job.finished}, timeout=min(owed_s, patience_s))
        if job.finished.done() or owed_s >= patience_s:
            await self._finish(job, _dropped("waited_too_long"))
            return
        self._observe_stage(job, "queue", job.asked_at)
        begun = self._clock()
        writing = asyncio.create_task(self._write(job))
        try:
            await asyncio.wait({writing, job.finished}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            writing.cancel()
            # Waited for: what it has in the engine must be aborted before the next one is begun.
            await asyncio.gather(writing, return_exceptions=True)
        self._observe_stage(job, "write", begun)
        await self._finish(job, _dropped("stopping") if writing.cancelled() else writing.result())

    def _observe_stage(self, job: Job, stage: str, begun: float) -> None:
        seconds, now = self._clock() - begun, time.perf_counter()
        job.trace.add(f"explanation {stage}", now - seconds, now)
        self._metrics.explanation_seconds.labels(stage).observe(seconds, exemplar(job.trace))

    async def _write(self, job: Job) -> Finished:
        try:
            async with asyncio.timeout(self._patience_s(job)):
                await self._read_along(job)
        except TimeoutError:
            return _dropped("waited_too_long")
        except (ExplanationDroppedError, EngineError, InvalidRequestError) as error:
            return error
        pair = job.pair
        top_grade = len(self._checkpoint.manifest.labels) - 1
        return read_trace(job.text, self._steps[pair.criteria], top_grade, pair.grade)

    async def _read_along(self, job: Job) -> None:
        self._go_on_or_drop()
        prompt = await asyncio.to_thread(self._prompt, job.pair)
        token_ids: list[int] = []
        # aclosing: leaving in any way aborts it in the engine.
        async with aclosing(self._engine.write(prompt, self._limits.max_tokens, ENGINE_PRIORITY)) as writing:
            async for written in writing:
                self._budget.spend(len(written.token_ids) + written.computed_tokens)
                self._metrics.explanation_tokens.inc(len(written.token_ids))
                token_ids += written.token_ids
                self._tell(job, self._checkpoint.tokenizer.decode(token_ids))
                self._go_on_or_drop()

    def _tell(self, job: Job, text: str) -> None:
        # A character may be spread over tokens: until the last of them it decodes to a replacement mark.
        text = text.rstrip("\ufffd")
        if job.pieces and len(text) > len(job.text):
            job.pieces.put_nowait(text[len(job.text) :])
        job.text = text

    def _prompt(self, pair: GradedPair) -> tuple[int, ...]:
        note = Note(canonicalize(pair.title), canonicalize(pair.body))
        [prompt] = self._checkpoint.renderer.render(canonicalize(pair.query), [note], pair.criteria)
        # The very sequence whose last token was scored, and the grade that was served.
        return (*prompt.token_ids, self._checkpoint.manifest.label_token_ids[pair.grade])

    def _go_on_or_drop(self) -> None:
        if reason := self._why_not_now():
            raise _dropped(reason)

    def _patience_s(self, job: Job) -> float:
        return max(0.0, job.asked_at + self._limits.wait_s - self._clock())

    async def _finish(self, job: Job, result: Finished) -> None:
        if job.finished.done():
            self._metrics.explanations.labels("abandoned").inc()
            return
        job.finished.set_result(result)
        if job.pieces:
            job.pieces.put_nowait(None)
        self._count(result)
        if job.keep:
            await job.keep(result)

    def _count(self, result: Finished) -> None:
        if isinstance(result, ExplanationDroppedError):
            self._metrics.explanations.labels("dropped").inc()
            self._metrics.explanation_drops.labels(result.reason).inc()
        elif not isinstance(result, Explanation):
            self._metrics.explanations.labels("failed").inc()
        else:
            self._metrics.explanations.labels("parsed" if result.parsed else "unparsed").inc()
            if result.parsed:
                self._metrics.explanation_agreement.labels(str(bool(result.agrees)).lower()).inc()


def _dropped(reason: DropReason) -> ExplanationDroppedError:
    return ExplanationDroppedError(f"{reason}: {_ADVICE[reason]}", reason)
