"""The behaviour of every engine, tested on the fake engine and on vLLM."""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import combinations

import numpy as np
import pytest
import pytest_asyncio
from safetensors import safe_open

from service.contract.checkpoint import Checkpoint
from service.contract.citations import read_citations
from service.contract.prompt import Note
from service.contract.trace import EXPLANATION_CUE, parse_explanation
from service.contract.trace_grammar import trace_grammar
from service.contract.vector_prompt import VectorPrompt
from service.engines.base import Engine, EnginePrompt
from service.engines.fake_engine import FakeEngine
from service.engines.vllm.options import VllmOptions
from service.errors import EngineLostError, EngineRequestError
from tests.checkpoints import engine_model, load_tiny

WIDTH = 576  # the hidden size of the default model

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module", params=["fake", pytest.param("vllm", marks=pytest.mark.engine)])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def checkpoint(
    kind: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    if kind != "vllm":
        return load_tiny(tmp_path_factory.mktemp("checkpoint"))
    loaded: Checkpoint = request.getfixturevalue("default_checkpoint")
    return loaded


def make_engine(kind: str, checkpoint: Checkpoint, width: int) -> Engine:
    if kind != "vllm":
        return FakeEngine(engine_model(checkpoint, width))
    from service.engines.vllm.engine import VllmEngine

    return VllmEngine(engine_model(checkpoint, width), VllmOptions(engine_dtype="float32"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(kind: str, checkpoint: Checkpoint) -> AsyncIterator[Engine]:
    engine = make_engine(kind, checkpoint, WIDTH)
    if isinstance(engine, FakeEngine):
        engine.trace = (5, 6, 7, 8)
    await engine.start()
    yield engine
    await engine.close()


@pytest.fixture
def slowed(engine: Engine) -> AbstractContextManager[None]:
    """Make the fake engine take longer than one iteration of the event loop, as a real engine does."""

    @contextmanager
    def held(fake: FakeEngine) -> Iterator[None]:
        fake.hold()
        yield
        fake.let_go()

    return held(engine) if isinstance(engine, FakeEngine) else nullcontext()


def prompts(checkpoint: Checkpoint, count: int, words: int = 10) -> list[tuple[int, ...]]:
    notes = [Note("", f"{i} " + "quiet cafe with light " * (words // 4)) for i in range(count)]
    return [
        prompt.token_ids
        for prompt in checkpoint.renderer.render("cafe", notes, checkpoint.renderer.default_criteria)
    ]


async def test_labels_get_logprobs_over_the_whole_vocabulary(engine: Engine, checkpoint: Checkpoint) -> None:
    [prompt] = prompts(checkpoint, 1)
    answer = await engine.score(prompt, priority=0)
    assert len(answer.label_logprobs) == len(checkpoint.manifest.labels)
    assert all(value < 0 for value in answer.label_logprobs)
    assert sum(map(math.exp, answer.label_logprobs)) <= 1
    assert answer.prompt_tokens == len(prompt)
    assert 0 <= answer.reused_tokens < answer.prompt_tokens
    assert answer.queued_s >= 0


async def test_answers_do_not_depend_on_the_batch(engine: Engine, checkpoint: Checkpoint) -> None:
    batch = prompts(checkpoint, 6)
    together = await asyncio.gather(*(engine.score(prompt, priority=0) for prompt in batch))
    for prompt, answer in zip(batch, together, strict=True):
        alone = await engine.score(prompt, priority=1)
        assert alone.label_logprobs == pytest.approx(answer.label_logprobs, abs=1e-4)
    assert len({answer.label_logprobs for answer in together}) == len(batch)


async def test_cancelled_requests_are_aborted_and_the_engine_continues(
    engine: Engine, checkpoint: Checkpoint, slowed: AbstractContextManager[None]
) -> None:
    tasks = [asyncio.create_task(engine.score(p, priority=0)) for p in prompts(checkpoint, 8, words=120)]
    with slowed:
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in ended)
    [prompt] = prompts(checkpoint, 1)
    await engine.score(prompt, priority=0)
    await engine.check()


async def test_writing_continues_the_prompt_up_to_max_tokens(engine: Engine, checkpoint: Checkpoint) -> None:
    [prompt] = prompts(checkpoint, 1)
    first = [chunk async for chunk in engine.write(prompt, max_tokens=3, priority=2)]
    again = [chunk async for chunk in engine.write(prompt, max_tokens=3, priority=2)]
    token_ids = [token_id for chunk in first for token_id in chunk.token_ids]
    assert token_ids == [token_id for chunk in again for token_id in chunk.token_ids]
    assert 0 < len(token_ids) <= 3
    assert not set(token_ids) & set(checkpoint.end_token_ids)
    assert 0 < first[0].computed_tokens <= len(prompt)
    assert all(chunk.computed_tokens == 0 for chunk in first[1:])


async def test_closing_a_trace_early_aborts_its_request(engine: Engine, checkpoint: Checkpoint) -> None:
    [prompt] = prompts(checkpoint, 1)
    async with contextlib.aclosing(engine.write(prompt, max_tokens=60, priority=2)) as writing:
        async for _ in writing:
            break
    await engine.score(prompt, priority=0)
    if isinstance(engine, FakeEngine):
        assert (engine.in_flight, engine.aborted) == (0, 9)  # eight of them are from the test above


async def test_a_trace_does_not_change_its_score(engine: Engine, checkpoint: Checkpoint) -> None:
    [prompt] = prompts(checkpoint, 1)
    before = await engine.score(prompt, priority=0)
    label = checkpoint.manifest.label_token_ids[0]
    assert [chunk async for chunk in engine.write((*prompt, label), max_tokens=8, priority=2)]
    after = await engine.score(prompt, priority=0)
    assert after.label_logprobs == before.label_logprobs


@pytest.mark.parametrize("grade", range(4))
async def test_a_grammar_rules_out_untrue_explanations(
    engine: Engine, checkpoint: Checkpoint, grade: int
) -> None:
    query, note = (
        "quiet cafés in Lisbon",
        Note("Lisbon by night", "Bars, and one café with WiFi (open late)."),
    )
    name = checkpoint.renderer.default_criteria
    steps = next(each.steps for each in checkpoint.manifest.criteria if each.name == name)
    [prompt] = checkpoint.renderer.render(query, [note], name)
    cue = checkpoint.tokenizer.encode_user_texts([EXPLANATION_CUE])[0].token_ids
    read = (*prompt.token_ids, checkpoint.manifest.label_token_ids[grade], *cue)
    grammar = trace_grammar(steps, len(checkpoint.manifest.labels) - 1, query, note)
    score = await engine.score(prompt.token_ids, priority=0)
    chunks = [chunk async for chunk in engine.write(read, max_tokens=200, priority=2, grammar=grammar)]
    assert (await engine.score(prompt.token_ids, priority=0)).label_logprobs == score.label_logprobs
    if isinstance(engine, FakeEngine):
        assert engine.grammars[-1] == grammar
        return
    text = checkpoint.tokenizer.decode([token for chunk in chunks for token in chunk.token_ids])
    found = parse_explanation(text, steps, 3)
    assert found is not None, text
    assert all(each.found for step in found for each in read_citations(step.finding, query, note)), text


async def test_an_unreadable_grammar_fails_its_request_alone(engine: Engine, checkpoint: Checkpoint) -> None:
    [prompt] = prompts(checkpoint, 1)
    writing = engine.write(prompt, max_tokens=5, priority=2, grammar="start: LINE")
    if isinstance(engine, FakeEngine):  # it reads no grammar
        assert (await anext(writing)).token_ids
    else:
        with pytest.raises(EngineRequestError, match="VLLMValidationError"):
            await anext(writing)
    assert [chunk async for chunk in engine.write(prompt, max_tokens=2, priority=2)]


async def test_the_profile_contains_what_changes_numbers(engine: Engine) -> None:
    profile = engine.profile
    assert profile.dtype == profile.numbers["dtype"] == "float32"
    assert profile.numbers["engine"] in ("fake", "vllm")
    assert all(profile.numbers[part] for part in ("version", "device"))
    assert not profile.numbers.keys() & profile.speed.keys()


def as_vectors(checkpoint: Checkpoint, prompt: tuple[int, ...], start: int, end: int) -> VectorPrompt:
    """Return the prompt with the embeddings of the tokens from `start` to `end` in their place."""
    rows = embeddings(checkpoint, prompt[start:end]).astype(np.float16)
    return VectorPrompt(prompt[:start], rows.tobytes(), prompt[end:])


def embeddings(checkpoint: Checkpoint, token_ids: tuple[int, ...]) -> np.ndarray:
    file = checkpoint.folder / "model.safetensors"
    if not file.stat().st_size > 1000:  # the tiny checkpoint has no weights
        return np.random.default_rng(token_ids).normal(size=(len(token_ids), WIDTH))
    with safe_open(file, "np") as weights:
        found: np.ndarray = weights.get_tensor("model.embed_tokens.weight")[list(token_ids)]
    return found


async def test_the_embeddings_of_tokens_read_as_the_tokens(
    engine: Engine, checkpoint: Checkpoint, kind: str
) -> None:
    [prompt] = prompts(checkpoint, 1, words=40)
    with_vectors = as_vectors(checkpoint, prompt, 10, 16)
    found = await engine.score(with_vectors, priority=0)
    assert found.prompt_tokens == len(prompt)
    assert (await engine.score(with_vectors, priority=0)).label_logprobs == pytest.approx(
        found.label_logprobs, abs=1e-4
    )
    if kind == "vllm":
        of_tokens = await engine.score(prompt, priority=0)
        assert found.label_logprobs == pytest.approx(of_tokens.label_logprobs, abs=0.02)


async def test_text_is_scored_to_the_bit_as_by_an_engine_without_vectors(
    engine: Engine, checkpoint: Checkpoint, kind: str
) -> None:
    notes = [Note("", f"{word} on a hill above the harbour") for word in ("zebra", "okapi", "gnu")]
    rendered = checkpoint.renderer.render("animals", notes, checkpoint.renderer.default_criteria)
    # One at a time, the first one for the shared prefix: another batch, or another reused prefix, moves the last bits.
    with_vectors = [await engine.score(each.token_ids, priority=0) for each in rendered]
    text_only = make_engine(kind, checkpoint, 0)
    await text_only.start()
    try:
        without = [await text_only.score(each.token_ids, priority=0) for each in rendered]
    finally:
        await text_only.close()
    assert [each.label_logprobs for each in with_vectors[1:]] == [each.label_logprobs for each in without[1:]]


async def test_prompts_that_differ_in_vectors_or_in_where_they_stand_share_nothing(
    engine: Engine, checkpoint: Checkpoint
) -> None:
    [prompt] = prompts(checkpoint, 1, words=120)
    base = as_vectors(checkpoint, prompt, 40, 44)
    other = VectorPrompt(base.prefix, as_vectors(checkpoint, prompt, 41, 45).rows, base.cue)
    # Token ids and rows as vLLM hashes them: the tokens' rows are zeros, and the vectors' ids are 0.
    as_tokens = (*base.prefix, 0, 0, 0, 0, *base.cue)
    shifted = VectorPrompt((*base.prefix, 0), base.rows[2 * WIDTH :], base.cue)
    different: tuple[EnginePrompt, ...] = (base, other, as_tokens, shifted)
    found = [await engine.score(each, priority=0) for each in different]
    for first, second in combinations(found, 2):
        assert max(map(abs, np.subtract(first.label_logprobs, second.label_logprobs))) > 1e-4
    # After all of them, each is still read as it was: none took a block of another's.
    for each, before in zip(different, found, strict=True):
        assert (await engine.score(each, priority=0)).label_logprobs == pytest.approx(
            before.label_logprobs, abs=1e-4
        )


async def test_notes_of_a_query_share_its_prefix(engine: Engine, checkpoint: Checkpoint, kind: str) -> None:
    [prompt] = prompts(checkpoint, 1, words=200)
    first = as_vectors(checkpoint, prompt, 64, 68)
    second = VectorPrompt(first.prefix, as_vectors(checkpoint, prompt, 70, 74).rows, first.cue)
    await engine.score(first, priority=0)
    reused = (await engine.score(second, priority=0)).reused_tokens
    assert reused == (64 if kind == "vllm" else 0)


# The last test: it closes the module's engine.
async def test_closing_the_engine_fails_its_calls(
    engine: Engine, checkpoint: Checkpoint, slowed: AbstractContextManager[None]
) -> None:
    batch = prompts(checkpoint, 120, words=40)
    with slowed:
        writing = engine.write(batch[0], max_tokens=60, priority=2)
        calls: list[asyncio.Future[object]] = [asyncio.ensure_future(anext(writing))]
        calls += [asyncio.create_task(engine.score(prompt, priority=0)) for prompt in batch[:60]]
        await asyncio.sleep(0.3)  # these calls are in the engine
        calls += [asyncio.create_task(engine.score(prompt, priority=0)) for prompt in batch[60:]]
        await asyncio.sleep(0)  # these calls have not reached it yet
        await engine.close()
        ended = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 30)
    failed = [each for each in ended if isinstance(each, BaseException)]
    assert len(failed) >= 60
    assert {type(each) for each in failed} == {EngineLostError}
    await engine.close()
    with pytest.raises(EngineLostError):
        await engine.check()
    with pytest.raises(EngineLostError):
        await engine.score(prompts(checkpoint, 1)[0], priority=0)
