import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry

from service.contract.checkpoint import Checkpoint
from service.contract.judgement import judge
from service.contract.labels import LabelDistribution
from service.contract.prompt import Note
from service.contract.trace_grammar import trace_grammar
from service.engines.fake_engine import FakeEngine
from service.errors import ExplanationDroppedError
from service.explaining.explainer import ENGINE_PRIORITY, DropReason, Explainer
from service.explaining.limits import ExplanationLimits
from service.explaining.traces import ExplanationResult, GradedPair
from service.observability.metrics import Metrics
from tests.checkpoints import explained_by, fake_engine_for
from tests.waiting import until

TRACE = "topic: both are about cafes \u6771\u4eac => 3\nconstraints: no light => 1\n"
PAIR = GradedPair("quiet cafes", "Cafes", "A quiet cafe.", "general-1", 1)


def limited(**limits: float) -> ExplanationLimits:
    return ExplanationLimits(**{f"explanation_{name}": limit for name, limit in limits.items()})  # type: ignore[arg-type]


class Rig:
    """An explainer over a fake engine that generates TRACE."""

    def __init__(self, checkpoint: Checkpoint, limits: ExplanationLimits) -> None:
        self.registry = CollectorRegistry()
        self.checkpoint = checkpoint
        self.engine: FakeEngine = fake_engine_for(checkpoint)
        self.engine.trace = checkpoint.tokenizer.encode_user_texts([TRACE])[0].token_ids
        self.why_not: DropReason | None = None
        self.explainer = Explainer(
            checkpoint, self.engine, limits, lambda: self.why_not, Metrics(self.registry)
        )

    def count(self, metric: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"notegrade_{metric}", labels) or 0.0


@pytest.fixture
def limits() -> ExplanationLimits:
    """The default; a test overrides it by parametrization."""
    return limited(queue=4, workers=1, tokens_per_s=1e9)


@pytest.fixture
async def rig(checkpoint: Checkpoint, limits: ExplanationLimits) -> AsyncIterator[Rig]:
    made = Rig(checkpoint, limits)
    await made.engine.start()
    made.explainer.start()
    yield made
    await made.explainer.close()
    await made.engine.close()


async def test_a_trace_continues_the_sequence_that_was_scored(rig: Rig) -> None:
    found = await rig.explainer.submit(PAIR, asked=True).finished
    assert (found.outcome, found.well_formed, found.agrees, len(found.steps or ())) == ("made", True, True, 2)
    assert found.text == TRACE.strip("\n")
    [prompt] = rig.checkpoint.renderer.render("quiet cafes", [_note()], "general-1")
    assert rig.engine.continued == [explained_by(rig.checkpoint, prompt, 1)]
    steps = next(each.steps for each in rig.checkpoint.manifest.criteria if each.name == "general-1")
    assert rig.engine.grammars == [trace_grammar(steps, 3, "quiet cafes", _note())]
    assert rig.engine.priorities == [ENGINE_PRIORITY]
    assert rig.count("explanations_total", outcome="well_formed") == 1
    assert rig.count("explanation_agreement_total", agrees="true") == 1
    assert rig.count("explanation_grounded_total", grounded="none") == 1
    assert rig.count("explanation_tokens_total") == len(rig.engine.trace)
    assert rig.count("explanation_seconds_count", stage="write") == 1


async def test_a_trace_that_is_not_well_formed_is_text_and_counted(rig: Rig) -> None:
    rig.engine.trace = rig.engine.trace[:9]
    found = await rig.explainer.submit(PAIR, asked=True).finished
    assert not found.well_formed
    assert found.text
    assert rig.count("explanations_total", outcome="malformed") == 1
    assert rig.count("explanation_grounded_total", grounded="none") == 0


@pytest.mark.parametrize(("cited", "grounded"), [("A QUIET cafe", "true"), ("a loud cafe", "false")])
async def test_explanations_are_counted_by_the_truth_of_their_citations(
    rig: Rig, cited: str, grounded: str
) -> None:
    trace = TRACE.replace("no light", f'body "{cited}"')
    rig.engine.trace = rig.checkpoint.tokenizer.encode_user_texts([trace])[0].token_ids
    found = await rig.explainer.submit(PAIR, asked=True).finished
    assert found.grounded is (grounded == "true")
    assert rig.count("explanation_grounded_total", grounded=grounded) == 1


async def test_streamed_pieces_add_up_to_the_text_and_never_split_a_character(rig: Rig) -> None:
    job = rig.explainer.submit(PAIR, asked=True)
    pieces = []
    while (piece := await job.pieces.get()) is not None:
        pieces.append(piece)
    assert "".join(pieces) == TRACE
    assert len(pieces) > 10
    assert "\ufffd" not in "".join(pieces)


async def test_a_full_queue_drops_at_once_and_half_of_it_is_reserved_for_asked_for_jobs(rig: Rig) -> None:
    rig.engine.hold()
    rig.explainer.submit(PAIR, asked=True)
    await until(lambda: rig.engine.in_flight == 1)
    for _ in range(2):
        rig.explainer.submit(PAIR, asked=False)
    with pytest.raises(ExplanationDroppedError) as caught:
        rig.explainer.submit(PAIR, asked=False)
    assert caught.value.reason == "queue_full"
    for _ in range(2):
        rig.explainer.submit(PAIR, asked=True)
    with pytest.raises(ExplanationDroppedError):
        rig.explainer.submit(PAIR, asked=True)
    assert rig.count("explanation_drops_total", reason="queue_full") == 2
    assert rig.count("explanations_total", outcome="dropped") == 2
    assert rig.count("explanation_queue") == 4
    rig.engine.let_go()


async def test_an_asked_for_job_overtakes_a_sampled_one(rig: Rig) -> None:
    rig.engine.hold()
    first = rig.explainer.submit(PAIR, asked=True)
    await until(lambda: rig.engine.in_flight == 1)
    sampled = rig.explainer.submit(PAIR, asked=False)
    asked = rig.explainer.submit(PAIR, asked=True)
    order: list[str] = []
    sampled.finished.add_done_callback(lambda _: order.append("sampled"))
    asked.finished.add_done_callback(lambda _: order.append("asked"))
    rig.engine.let_go()
    await asyncio.gather(first.finished, sampled.finished, asked.finished)
    assert order == ["asked", "sampled"]


@pytest.mark.parametrize("limits", [limited(queue=8, workers=2, tokens_per_s=100)])
async def test_an_asked_for_job_overtakes_sampled_ones_that_wait_for_the_budget(rig: Rig) -> None:
    """However many workers are idle: a worker that took a sampled job while tokens are owed would block the other."""
    # Two seconds of tokens are owed: on a busy machine the three jobs may arrive more than half a second apart.
    rig.explainer._budget.spend(300)
    rig.engine.hold()
    jobs = []
    for asked in (False, False, True):
        jobs.append(rig.explainer.submit(PAIR, asked=asked))
        await asyncio.sleep(0.01)  # idle workers have had their turn
    await until(lambda: rig.engine.in_flight == 2)
    assert rig.explainer._waiting == [jobs[1]]
    rig.engine.let_go()
    await asyncio.gather(*(job.finished for job in jobs))


@pytest.mark.parametrize("limits", [limited(queue=4, workers=2, tokens_per_s=1, wait_s=0.2)])
async def test_jobs_that_wait_for_the_budget_are_dropped_at_their_deadline(rig: Rig) -> None:
    rig.explainer._budget.spend(1000)
    jobs = [rig.explainer.submit(PAIR, asked=True) for _ in range(3)]
    assert [_reason(await job.finished) for job in jobs] == ["waited_too_long"] * 3
    assert rig.engine.continued == []
    assert rig.count("explanation_queue") == 0


@pytest.mark.parametrize("reason", ["mode_off", "scoring_busy"])
async def test_explanations_give_way_before_and_while_they_are_generated(
    rig: Rig, reason: DropReason
) -> None:
    rig.engine.hold()
    writing, waiting = (rig.explainer.submit(PAIR, asked=True) for _ in range(2))
    await until(lambda: rig.engine.in_flight == 1)
    rig.why_not = reason
    rig.engine.let_go()
    for job in (writing, waiting):
        assert _reason(await job.finished) == reason
    with pytest.raises(ExplanationDroppedError, match=reason):
        rig.explainer.submit(PAIR, asked=True)
    await until(lambda: rig.engine.in_flight == 0)
    assert rig.count("explanation_drops_total", reason=reason) == 3
    assert rig.count("explanation_tokens_total") == 1


async def test_an_abandoned_job_is_aborted_in_the_engine_or_never_starts(rig: Rig) -> None:
    rig.engine.hold()
    writing, waiting = (rig.explainer.submit(PAIR, asked=True) for _ in range(2))
    await until(lambda: rig.engine.in_flight == 1)
    writing.abandon()
    waiting.abandon()
    await until(lambda: rig.count("explanations_total", outcome="abandoned") == 2)
    assert rig.engine.in_flight == 0
    assert len(rig.engine.continued) == 1


@pytest.mark.parametrize("limits", [limited(queue=4, workers=1, wait_s=0.05)])
async def test_the_deadline_holds_in_the_queue_and_in_the_engine(rig: Rig) -> None:
    rig.engine.hold()
    jobs = [rig.explainer.submit(PAIR, asked=True) for _ in range(2)]
    assert [_reason(await job.finished) for job in jobs] == ["waited_too_long"] * 2
    assert rig.engine.in_flight == 0


async def test_the_grade_of_the_text_is_told_where_the_served_one_is_of_vectors(rig: Rig) -> None:
    from_vectors = replace(PAIR, reading="vectors")
    of_text, of_vectors = [
        await rig.explainer.submit(pair, asked=True).finished for pair in (PAIR, from_vectors)
    ]
    [prompt] = rig.checkpoint.renderer.render("quiet cafes", [_note()], "general-1")
    raw = LabelDistribution.from_logprobs(rig.engine.logprobs(prompt.token_ids))
    expected = judge(raw, rig.checkpoint.manifest, "general-1").grade
    assert of_text.text_grade is None
    assert of_vectors == replace(of_text, text_grade=expected)


async def test_an_engine_error_fails_one_job_and_the_next_is_made(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    [prompt] = rig.checkpoint.renderer.render("quiet cafes", [_note()], "general-1")
    rig.engine.fail_on(explained_by(rig.checkpoint, prompt, 1))
    failed = await rig.explainer.submit(PAIR, asked=True).finished
    assert (failed.outcome, failed.reason) == ("failed", "engine-request")
    [logged] = [record for record in caplog.records if record.message == "an explanation failed"]
    assert "made the fake engine fail" in vars(logged)["detail"]
    other = GradedPair("quiet cafes", "Cafes", "A quiet cafe.", "general-1", 2)
    assert (await rig.explainer.submit(other, asked=True).finished).outcome == "made"
    assert rig.count("explanations_total", outcome="failed") == 1


async def test_a_bug_fails_one_job_and_the_next_is_made(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def explode(pair: GradedPair) -> None:
        raise RuntimeError(f"can't render {pair.body}")

    with monkeypatch.context() as broken:
        broken.setattr(rig.explainer, "_prompt", explode)
        failed = await rig.explainer.submit(PAIR, asked=True).finished
        assert (failed.outcome, failed.reason) == ("failed", "internal")
    await until(lambda: "an explanation worker failed unexpectedly" in caplog.text)
    assert re.search(r'test_explainer\.py", line \d+, in explode', caplog.text)
    assert "RuntimeError" in caplog.text
    assert PAIR.body not in caplog.text
    assert (await rig.explainer.submit(PAIR, asked=True).finished).outcome == "made"


async def test_a_pair_that_cannot_be_rendered_fails(rig: Rig) -> None:
    pair = GradedPair("cafe " * 200, None, "", "general-1", 1)
    failed = await rig.explainer.submit(pair, asked=True).finished
    assert (failed.outcome, failed.reason) == ("failed", "invalid-request")


async def test_a_result_that_nobody_waits_for_is_handed_over(rig: Rig) -> None:
    stored: list[ExplanationResult] = []

    async def store(result: ExplanationResult) -> None:
        stored.append(result)

    job = rig.explainer.submit(PAIR, asked=False)
    job.on_finished = store
    await until(lambda: bool(stored))
    assert stored == [job.finished.result()]


async def test_closing_drops_running_and_waiting_jobs(rig: Rig) -> None:
    rig.engine.hold()
    jobs = [rig.explainer.submit(PAIR, asked=True) for _ in range(2)]
    await until(lambda: rig.engine.in_flight == 1)
    await rig.explainer.close()
    assert [_reason(await job.finished) for job in jobs] == ["stopping"] * 2
    assert rig.engine.in_flight == 0


async def test_results_are_handed_over_together(rig: Rig) -> None:
    """Where the store of explanations hangs, each waits for its timeout."""
    waits, most = 0, 0

    async def store(_: ExplanationResult) -> None:
        nonlocal waits, most
        waits += 1
        most = max(most, waits)
        await asyncio.sleep(0)
        waits -= 1

    rig.engine.hold()
    rig.explainer.submit(PAIR, asked=True)
    await until(lambda: rig.engine.in_flight == 1)
    for _ in range(4):
        rig.explainer.submit(PAIR, asked=True).on_finished = store
    await rig.explainer.close()
    assert (waits, most) == (0, 4)


async def test_jobs_are_refused_from_the_start_of_closing(rig: Rig) -> None:
    rig.engine.hold()
    rig.explainer.submit(PAIR, asked=True)
    await until(lambda: rig.engine.in_flight == 1)
    closing = asyncio.create_task(rig.explainer.close())
    await asyncio.sleep(0)  # closing has started
    for _ in ("while it closes", "afterwards"):
        with pytest.raises(ExplanationDroppedError) as caught:
            rig.explainer.submit(PAIR, asked=True)
        assert caught.value.reason == "stopping"
        await closing
    assert rig.count("explanation_queue") == 0
    assert rig.count("explanation_drops_total", reason="stopping") == 3


@pytest.mark.parametrize("limits", [limited(queue=4, workers=1, tokens_per_s=200)])
async def test_the_next_job_waits_for_the_budget(rig: Rig) -> None:
    loop = asyncio.get_running_loop()
    started = loop.time()
    await asyncio.gather(*(rig.explainer.submit(PAIR, asked=True).finished for _ in range(3)))
    each = len(rig.engine.continued[0]) + len(rig.engine.trace)
    # The third starts when the first two's tokens are paid for; one second's tokens were there from the start.
    assert loop.time() - started > 2 * each / 200 - 1
    assert 2 * each > 200


def _note() -> Note:
    return Note("Cafes", "A quiet cafe.")


def _reason(result: ExplanationResult) -> str | None:
    assert result.outcome == "dropped"
    return result.reason
