"""Measures the stages of a request, and counts its outcomes."""

import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, get_args

from service.observability.live import LiveFigures
from service.observability.metrics import Metrics, initialize_series
from service.observability.request_context import current_request
from service.observability.tracing import exemplar
from service.scoring.admission import ShedReason
from service.scoring.pairs import Answers, Attached, EngineReading, Shed
from service.scoring.types import Outcome, PairResult, Priority, Source, Timing

# In seconds, for differences. Not the event loop's clock: uvloop's stands still within one iteration, and counts milliseconds.
now = time.perf_counter


class Instants(NamedTuple):
    """The times at which a request's stages ended, as `now` returns them."""

    started: float
    cache_read: float
    launched: float
    ended: float


class ScoringRecorder:
    """Records requests in the metrics, the live figures and the trace."""

    def __init__(self, metrics: Metrics, live: LiveFigures) -> None:
        self._metrics = metrics
        self._live = live
        initialize_series(metrics.pair_outcomes, get_args(Outcome))
        initialize_series(metrics.shed, get_args(ShedReason))

    def count(self, results: Sequence[PairResult], shed: Shed) -> tuple[Counter[Outcome], Counter[Source]]:
        """Count every pair of a request, and return how many had each outcome and each source."""
        for reason in shed.values():
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
        hits = sources["local"] + sources["redis"]
        self._live.count_pairs(outcomes["scored"], hits, outcomes["shed"], len(results))
        return outcomes, sources

    def count_engine_tokens(self, prompt_tokens: int, reused_tokens: int) -> int:
        """Count the tokens of one prompt, and return how many of them the engine computed."""
        computed = prompt_tokens - reused_tokens
        self._metrics.prompt_tokens.labels("computed").inc(computed)
        self._metrics.prompt_tokens.labels("reused").inc(reused_tokens)
        return computed

    def observe_request(
        self, instants: Instants, timing: Timing, priority: Priority, *, used_engine: bool
    ) -> None:
        """Observe the latency of a request and of its stages."""
        if priority == "online":
            self._live.count_latency(timing.total / 1000)
        self.observe_stage("cache", instants.started, timing.cache / 1000)
        # A request that did not use the engine has no times there: zeros would hide how long the other requests took.
        if used_engine:
            queued_s = timing.queue / 1000
            self.observe_stage("queue", instants.launched, queued_s)
            self.observe_stage("engine", instants.launched + queued_s, timing.engine / 1000)

    def observe_stage(self, stage: str, started: float, seconds: float) -> None:
        """Add a stage to the request's trace, and observe its latency."""
        trace = current_request.get().trace
        trace.add(stage, started, started + seconds)
        self._metrics.stage_seconds.labels(stage).observe(seconds, exemplar(trace))


def measure_timing(instants: Instants, attached: Attached, answers: Answers) -> Timing:
    """Split the latency of a request into its stages. The queue lasts until the engine scheduled the first pair."""
    in_engine = instants.ended - instants.launched
    waits = [answer.queued_s for answer in answers.values() if isinstance(answer, EngineReading)]
    queue = min([*waits, in_engine]) if attached else 0.0
    return Timing(
        total=(instants.ended - instants.started) * 1000,
        cache=(instants.cache_read - instants.started) * 1000,
        queue=queue * 1000,
        engine=(in_engine - queue) * 1000,
    )


def sum_engine_tokens(attached: Attached, answers: Answers) -> int:
    """Sum the prompt tokens of the pairs that the request itself sent to the engine."""
    return sum(
        answer.prompt_tokens
        for index, answer in answers.items()
        if isinstance(answer, EngineReading) and attached[index].source == "engine"
    )
