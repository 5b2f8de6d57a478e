import asyncio
import math
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from service.caches.breaker import Breaker
from service.caches.keys import note_key, query_key, scoring_fingerprint
from service.caches.memory_cache import MemoryCache
from service.caches.tiered_cache import TieredCache
from service.contract.checkpoint import Checkpoint
from service.contract.judgement import judge
from service.contract.labels import LabelDistribution
from service.contract.prompt import Note
from service.engines.base import EngineAnswer
from service.engines.fake_engine import FakeEngine
from service.errors import (
    DeadlineExceededError,
    EngineLostError,
    EngineRequestError,
    InvalidRequestError,
    OverloadedError,
)
from service.observability.live import LiveFigures
from service.observability.metrics import Metrics
from service.scoring.admission import Admission, Flow, FullStep
from service.scoring.deadline import Deadline
from service.scoring.prompter import Prompter
from service.scoring.scorer import Scorer
from service.scoring.types import ScoringAnswer, ScoringNote, ScoringRequest
from tests.checkpoints import fake_engine_for, load_tiny
from tests.clock import Clock
from tests.service.caches.harness import read_values
from tests.waiting import until

BODIES = ("A quiet cafe with good light.", "The best surf beaches.", "Laptops welcome, slow wifi.")


class Harness:
    """A scorer over in-memory twins, with its parts and metrics."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        max_backlog_tokens: int = 100_000,
        remote: MemoryCache | None = None,
        saturated_tokens: int = 1_024,
        prompter: Prompter | None = None,
    ) -> None:
        self.registry = CollectorRegistry()
        metrics = Metrics(self.registry)
        self.checkpoint = checkpoint
        self.engine: FakeEngine = fake_engine_for(checkpoint)
        self.local, self.remote = MemoryCache(1_000, 60), remote or MemoryCache(1_000, 60)
        self.cache = TieredCache(self.local, self.remote, Breaker(5, 1), metrics)
        self.clock = Clock()
        self.admission = Admission(max_backlog_tokens, FullStep(saturated_tokens, 64), self.clock, metrics)
        self.live = LiveFigures()
        self.scorer = Scorer(
            checkpoint,
            prompter or Prompter(checkpoint),
            self.engine,
            self.cache,
            self.admission,
            metrics,
            self.live,
        )

    def count(self, metric: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"notegrade_{metric}", labels) or 0.0

    async def held(self, prompts: int) -> None:
        """Wait until that many prompts are in the engine."""
        await until(lambda: self.engine.in_flight == prompts)

    async def hold(self, request: ScoringRequest, prompts: int) -> "asyncio.Task[ScoringAnswer]":
        """Start a request, hold its prompts in the engine, and wait until that many are there."""
        self.engine.hold()
        task = asyncio.create_task(self.scorer.score(request))
        await self.held(prompts)
        return task

    async def written(self, pairs: int) -> None:
        """Wait until that many pairs are written to Redis, which happens after the answer."""
        await until(lambda: self.count("cache_operations_total", tier="redis", result="written") == pairs)

    async def other_replica(self, checkpoint: Checkpoint | None = None) -> "Harness":
        """Start another replica, which shares only Redis with this one."""
        other = Harness(checkpoint or self.checkpoint, remote=self.remote)
        await other.engine.start()
        return other


@pytest.fixture
async def harness(checkpoint: Checkpoint) -> AsyncIterator[Harness]:
    harness = Harness(checkpoint)
    await harness.engine.start()
    yield harness
    await harness.scorer.close()
    await harness.cache.close()
    assert harness.admission.backlog_tokens == 0


def request(bodies: tuple[str, ...] = BODIES, **changes: Any) -> ScoringRequest:
    notes = tuple(ScoringNote(f"n{i}", None, body) for i, body in enumerate(bodies))
    return replace(ScoringRequest("r-1", "quiet cafe", notes, deadline_ms=5_000), **changes)


def render(checkpoint: Checkpoint, body: str, query: str = "quiet cafe") -> tuple[int, ...]:
    return checkpoint.renderer.render(query, [Note("", body)], "general-1")[0].token_ids


async def test_results_are_the_engines_in_request_order(harness: Harness) -> None:
    answer = await harness.scorer.score(request())
    assert [result.note_id for result in answer.results] == ["n0", "n1", "n2"]
    for body, result in zip(BODIES, answer.results, strict=True):
        raw = LabelDistribution.from_logprobs(harness.engine.logprobs(render(harness.checkpoint, body)))
        assert result.judgement == judge(raw, harness.checkpoint.manifest, "general-1")
        assert (result.outcome, result.source, result.truncated) == ("scored", "engine", False)
    assert answer.criteria == "general-1"


async def test_second_identical_request_comes_from_the_local_cache(harness: Harness) -> None:
    first = await harness.scorer.score(request())
    second = await harness.scorer.score(request())
    assert [result.source for result in second.results] == ["local"] * 3
    assert [r.judgement for r in second.results] == [r.judgement for r in first.results]
    assert harness.engine.finished == 3


async def test_another_replica_reads_it_from_redis(harness: Harness) -> None:
    first = await harness.scorer.score(request())
    await harness.written(3)
    other = await harness.other_replica()
    second = await other.scorer.score(request())
    assert [result.source for result in second.results] == ["redis"] * 3
    assert [r.judgement for r in second.results] == [r.judgement for r in first.results]


async def test_canonically_equal_text_is_one_pair(harness: Harness) -> None:
    await harness.scorer.score(request(("caf\u00e9 de   paris",)))
    answer = await harness.scorer.score(request((" cafe\u0301 de\tparis\x00",), query=" quiet\ncafe "))
    assert answer.results[0].source == "local"


async def test_a_cached_result_says_that_its_note_was_truncated(harness: Harness) -> None:
    bodies = ("word " * 200, "short")
    fresh = await harness.scorer.score(request(bodies))
    cached = await harness.scorer.score(request(bodies))
    assert [r.truncated for r in fresh.results] == [r.truncated for r in cached.results] == [True, False]


async def test_criteria_are_part_of_the_key(harness: Harness) -> None:
    await harness.scorer.score(request())
    answer = await harness.scorer.score(request(criteria="strict-1"))
    assert [result.source for result in answer.results] == ["engine"] * 3
    assert answer.criteria == "strict-1"


async def test_a_new_checkpoint_never_reads_an_old_ones_entries(harness: Harness, tmp_path: Path) -> None:
    await harness.scorer.score(request())
    await harness.written(3)
    new = load_tiny(tmp_path, limits={"max_query_tokens": 64, "max_note_tokens": 40})
    other = await harness.other_replica(new)
    answer = await other.scorer.score(request())
    assert [result.source for result in answer.results] == ["engine"] * 3


@pytest.mark.parametrize("part", ["version", "device"])
async def test_replicas_of_another_engine_version_or_device_share_no_entries(
    harness: Harness, part: str
) -> None:
    await harness.scorer.score(request())
    await harness.written(3)
    other = await harness.other_replica()
    other.engine.numbers[part] = "another"
    answer = await other.scorer.score(request())
    assert [result.source for result in answer.results] == ["engine"] * 3


async def test_a_new_calibration_reuses_entries_and_leaves_them_as_they_are(
    harness: Harness, tmp_path: Path
) -> None:
    fresh = await harness.scorer.score(request())
    await harness.written(3)
    softened = {"name": "temperature-1", "method": "temperature", "temperature": 3.0}
    highest = [{"criteria": "general-1", "utilities": [[0, 0, 0, 1]] * 4}]
    new = load_tiny(tmp_path, calibration=softened, decisions=highest)
    other = await harness.other_replica(new)
    answer = await other.scorer.score(request((*BODIES, "A new note.")))
    await other.written(1)
    for old, result in zip(fresh.results, answer.results[:3], strict=True):
        assert result.source == "redis"
        assert old.judgement is not None
        assert result.judgement is not None
        assert result.judgement.margin < old.judgement.margin
        assert result.judgement.grade == 3
    # The entry that the recalibrated replica wrote is as good for the first checkpoint as its own.
    [shared] = (await harness.scorer.score(request(("A new note.",)))).results
    raw = LabelDistribution.from_logprobs(harness.engine.logprobs(render(harness.checkpoint, "A new note.")))
    assert (shared.source, shared.judgement) == (
        "redis",
        judge(raw, harness.checkpoint.manifest, "general-1"),
    )


async def test_unknown_criteria_are_refused_with_the_known_ones(harness: Harness) -> None:
    with pytest.raises(InvalidRequestError, match="it has general-1, strict-1"):
        await harness.scorer.score(request(criteria="nope"))


async def test_a_query_over_its_limit_is_refused(harness: Harness) -> None:
    with pytest.raises(InvalidRequestError, match="limit 64"):
        await harness.scorer.score(request(query="x1" * 70))
    assert harness.engine.priorities == []


async def test_same_note_twice_is_scored_once(harness: Harness) -> None:
    answer = await harness.scorer.score(request(("same", "same", "other")))
    assert [result.source for result in answer.results] == ["engine", "coalesced", "engine"]
    assert answer.results[0].judgement == answer.results[1].judgement
    assert harness.engine.finished == 2


async def test_concurrent_requests_share_pairs_in_flight(harness: Harness) -> None:
    first = await harness.hold(request(), 3)
    second = await harness.hold(request((*BODIES, "one more")), 4)
    harness.engine.let_go()
    one, two = await first, await second
    assert [result.source for result in one.results] == ["engine"] * 3
    assert [result.source for result in two.results] == ["coalesced"] * 3 + ["engine"]
    assert [r.judgement for r in two.results[:3]] == [r.judgement for r in one.results]


async def test_online_requests_do_not_join_the_flights_of_batch_requests(harness: Harness) -> None:
    batch = await harness.hold(request(priority="batch"), 3)
    online = await harness.hold(request(), 6)
    assert max(harness.engine.priorities[3:]) < min(harness.engine.priorities[:3])
    harness.engine.let_go()
    one, two = await batch, await online
    assert [result.source for result in two.results] == ["engine"] * 3
    assert [r.judgement for r in two.results] == [r.judgement for r in one.results]


async def test_batch_requests_join_the_flights_of_online_requests(harness: Harness) -> None:
    online = await harness.hold(request(), 3)
    batch = await harness.hold(request((*BODIES, "one more"), priority="batch"), 4)
    harness.engine.let_go()
    await online
    assert [result.source for result in (await batch).results] == ["coalesced"] * 3 + ["engine"]


async def test_pairs_that_miss_the_deadline_are_reported_and_aborted(harness: Harness) -> None:
    await harness.scorer.score(request(BODIES[:1]))
    harness.engine.hold()
    answer = await harness.scorer.score(request(deadline_ms=500))
    assert [result.outcome for result in answer.results] == ["scored"] + ["deadline_exceeded"] * 2
    await harness.held(0)
    assert harness.engine.aborted == 2


async def test_a_request_without_a_scored_pair_at_the_deadline_is_an_error(harness: Harness) -> None:
    harness.engine.hold()
    with pytest.raises(DeadlineExceededError, match="within 500 ms"):
        await harness.scorer.score(request(deadline_ms=500))
    await harness.held(0)
    assert harness.count("pair_outcomes_total", outcome="deadline_exceeded") == 3


async def test_what_an_idle_engine_could_not_score_in_time_is_late_and_the_rest_is_shed(
    checkpoint: Checkpoint,
) -> None:
    harness = Harness(checkpoint, saturated_tokens=1)
    await harness.engine.start()
    cost = max(len(render(checkpoint, body)) for body in BODIES)
    ticket = harness.admission.admit(Flow("online", "before"), cost)
    harness.clock.now += 1
    harness.admission.release(ticket, cost, cost)  # the engine scores a pair per second
    answer = await harness.scorer.score(request(deadline_ms=1_000))
    assert [result.outcome for result in answer.results] == ["scored"] + ["deadline_exceeded"] * 2
    assert harness.count("shed_total", reason="deadline") == 0
    other = await harness.hold(request((*BODIES, "more"), deadline_ms=60_000), 3)
    with pytest.raises(OverloadedError):  # alone, this pair would be scored in time
        await harness.scorer.score(request(("another",), deadline_ms=2_000))
    harness.engine.let_go()
    await other


async def test_a_deadline_that_was_set_before_the_call_has_precedence(harness: Harness) -> None:
    harness.engine.hold()
    with pytest.raises(DeadlineExceededError):
        await harness.scorer.score(request(deadline_ms=60_000), Deadline.after_ms(500))


async def test_an_answer_counts_its_outcomes_and_sources(harness: Harness) -> None:
    await harness.scorer.score(request(BODIES[:1]))
    answer = await harness.scorer.score(request((*BODIES, BODIES[1])))
    assert answer.outcomes == {"scored": 4}
    assert answer.sources == {"local": 1, "engine": 2, "coalesced": 1}


async def test_cancelled_request_aborts_its_engine_work(harness: Harness) -> None:
    task = await harness.hold(request(), 3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await harness.held(0)
    assert (harness.engine.aborted, harness.engine.finished) == (3, 0)


async def test_a_cancelled_request_does_not_abort_shared_pairs(harness: Harness) -> None:
    leaver = await harness.hold(request(), 3)
    stayer = await harness.hold(request((BODIES[0], "one more")), 4)
    leaver.cancel()
    await asyncio.wait({leaver})
    await harness.held(2)
    harness.engine.let_go()
    answer = await stayer
    assert answer.results[0].outcome == "scored"
    # The request that started the pair was cancelled: the other one has written it to the cache.
    again = await harness.scorer.score(request(BODIES[:1]))
    assert again.results[0].source == "local"


async def test_over_budget_pairs_are_shed_and_the_rest_is_scored(checkpoint: Checkpoint) -> None:
    cost = len(render(checkpoint, BODIES[0]))
    harness = Harness(checkpoint, max_backlog_tokens=cost)
    await harness.engine.start()
    answer = await harness.scorer.score(request())
    assert [result.outcome for result in answer.results] == ["scored", "shed", "shed"]
    assert harness.count("shed_total", reason="backlog") == 2
    assert len(harness.engine.priorities) == 1, "shed pairs never reach the engine"
    await until(lambda: harness.admission.backlog_tokens == 0)


async def test_a_request_whose_pairs_are_all_shed_is_an_error_with_retry_after(
    checkpoint: Checkpoint,
) -> None:
    harness = Harness(checkpoint, max_backlog_tokens=1)
    await harness.engine.start()
    first = await harness.hold(request(BODIES[:1]), 1)
    with pytest.raises(OverloadedError) as caught:
        await harness.scorer.score(request(BODIES[1:]))
    assert (caught.value.retry_after_s or 0) >= 1
    harness.engine.let_go()
    assert (await first).results[0].outcome == "scored"


async def test_the_error_says_when_only_some_pairs_were_shed(checkpoint: Checkpoint) -> None:
    harness = Harness(checkpoint, max_backlog_tokens=1)
    await harness.engine.start()
    harness.engine.hold()
    with pytest.raises(OverloadedError, match="2 of the query's 3 pairs were shed"):
        await harness.scorer.score(request(deadline_ms=500))
    await harness.held(0)


async def test_one_failing_pair_fails_alone(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
    harness.engine.fail_on(render(harness.checkpoint, BODIES[1]))
    answer = await harness.scorer.score(request())
    assert [result.outcome for result in answer.results] == ["scored", "failed", "scored"]
    [logged] = [record for record in caplog.records if record.message == "pairs failed"]
    assert (logged.levelname, vars(logged)["pairs"]) == ("ERROR", 1)
    assert "made the fake engine fail" in vars(logged)["detail"]
    # A failure is not cached.
    harness.engine.fail_on(())
    assert harness.count("pair_outcomes_total", outcome="failed") == 1


async def test_a_request_whose_pairs_all_fail_is_an_engine_error(harness: Harness) -> None:
    harness.engine.fail_on(render(harness.checkpoint, BODIES[0]))
    with pytest.raises(EngineRequestError, match="failed on 1 of the query's 1 pairs"):
        await harness.scorer.score(request(BODIES[:1]))


async def test_a_pair_with_nan_logprobs_fails(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeEngine, "logprobs", lambda *_: (math.nan,) * 4)
    with pytest.raises(EngineRequestError, match="failed on 1 of the query's 1 pairs"):
        await harness.scorer.score(request(BODIES[:1]))


async def test_an_unexpected_error_fails_only_its_pair_and_logs_no_text(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    score, unlucky = harness.engine.score, render(harness.checkpoint, BODIES[1])

    async def score_most(prompt: tuple[int, ...], priority: int) -> EngineAnswer:
        if prompt == unlucky:
            raise KeyError(BODIES[1])
        return await score(prompt, priority)

    monkeypatch.setattr(harness.engine, "score", score_most)
    answer = await harness.scorer.score(request())
    assert [result.outcome for result in answer.results] == ["scored", "failed", "scored"]
    assert "a pair failed" in caplog.text
    assert BODIES[1] not in caplog.text


async def test_pairs_that_are_not_rendered_in_time_are_late_and_not_shed(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendering = threading.Event()

    def render_late(*_: Any) -> None:
        rendering.wait(30)

    monkeypatch.setattr(harness.checkpoint.renderer, "render", render_late)
    try:
        with pytest.raises(DeadlineExceededError) as caught:
            await harness.scorer.score(request(deadline_ms=20))
    finally:
        rendering.set()
    assert not caught.value.retryable
    assert harness.count("shed_total", reason="deadline") == 0
    assert harness.engine.priorities == []


@pytest.mark.parametrize(("closed", "why"), [("engine", "not running"), ("scorer", "shutting down")])
async def test_pairs_in_flight_fail_when_engine_or_scorer_close(
    harness: Harness, closed: str, why: str
) -> None:
    task = await harness.hold(request(), 3)
    await getattr(harness, closed).close()
    with pytest.raises(EngineLostError, match=why):
        await task


async def test_a_lost_engine_is_the_error_even_where_other_pairs_were_shed(checkpoint: Checkpoint) -> None:
    harness = Harness(checkpoint, max_backlog_tokens=1)
    await harness.engine.start()
    task = await harness.hold(request(), 1)
    await harness.engine.close()
    with pytest.raises(EngineLostError, match="not running"):
        await task
    assert harness.count("shed_total", reason="backlog") == 2


async def test_a_request_after_closing_fails_like_those_in_flight(harness: Harness) -> None:
    await harness.scorer.close()
    with pytest.raises(EngineLostError, match="shutting down"):
        await harness.scorer.score(request())
    assert harness.engine.priorities == []


async def test_online_requests_have_precedence_over_batch_requests(harness: Harness) -> None:
    await harness.scorer.score(request(BODIES[:1], priority="batch"))
    await harness.scorer.score(request(BODIES[1:2], priority="online"))
    batch, online = harness.engine.priorities
    assert online < batch


async def test_a_broken_cache_does_not_prevent_scoring(harness: Harness) -> None:
    await harness.local.close()
    await harness.remote.close()
    for _ in range(2):
        answer = await harness.scorer.score(request())
        assert [result.source for result in answer.results] == ["engine"] * 3


async def test_a_foreign_cache_entry_is_recomputed(harness: Harness) -> None:
    good = await harness.scorer.score(request())
    await harness.written(3)

    numbers = harness.engine.profile.numbers
    fingerprint = scoring_fingerprint(harness.checkpoint.manifest.fingerprint, "general-1", numbers)
    foreign = {note_key("", body): b"not ours" for body in BODIES}
    for cache in (harness.local, harness.remote):
        assert all(await read_values(cache, query_key("quiet cafe", fingerprint), list(foreign)))
        await cache.put_many(query_key("quiet cafe", fingerprint), foreign)
    answer = await harness.scorer.score(request())
    assert [result.source for result in answer.results] == ["engine"] * 3
    assert [r.judgement for r in answer.results] == [r.judgement for r in good.results]


async def test_metrics_add_up_to_the_requested_pairs(harness: Harness) -> None:
    await harness.scorer.score(request())
    await harness.scorer.score(request((*BODIES, "new", "new")))
    outcomes = harness.count("pair_outcomes_total", outcome="scored")
    sources = {
        s: harness.count("pair_source_total", source=s) for s in ("engine", "local", "redis", "coalesced")
    }
    assert outcomes == 8
    assert sources == {"engine": 4, "local": 3, "redis": 0, "coalesced": 1}
    assert harness.count("score_count") == harness.count("label_mass_count") == 8
    assert sum(harness.count("grade_total", grade=str(g)) for g in range(4)) == 8


async def test_stage_times_add_up_to_at_most_the_total(harness: Harness) -> None:
    timing = (await harness.scorer.score(request())).timing
    assert min(timing.total, timing.cache, timing.engine) >= 0
    assert timing.cache + timing.queue + timing.engine <= timing.total
    cached = (await harness.scorer.score(request())).timing
    assert cached.queue == 0
    observed = {
        s: harness.count("stage_seconds_count", stage=s) for s in ("cache", "render", "queue", "engine")
    }
    assert observed == {"cache": 2, "render": 1, "queue": 1, "engine": 1}
