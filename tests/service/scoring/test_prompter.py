"""Notes are read as vectors where these are stored, through the whole scorer."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from service.caches.memory_cache import MemoryCache
from service.contract.checkpoint import Checkpoint, load_checkpoint
from service.contract.judgement import judge
from service.contract.labels import LabelDistribution
from service.contract.prompt import Note
from service.contract.vector_prompt import NoteVectors, VectorPrompt
from service.errors import InvalidRequestError, VectorsMissingError
from service.scoring.prompter import Prompter, ReadingMode
from tests.checkpoints import load_tiny, make_vector_checkpoint
from tests.service.scoring.test_scorer import BODIES, Harness, render, request

ROWS = np.arange(1, 9, dtype=np.float16).tobytes()


class Known:
    """Vectors of some notes, by body."""

    def __init__(self, *bodies: str) -> None:
        self.vectors = {body: NoteVectors(ROWS, truncated=body == BODIES[0]) for body in bodies}
        self.asked = 0
        self.queued: list[str] = []

    async def lookup(self, notes: Sequence[Note]) -> list[NoteVectors | None]:
        self.asked += 1
        return [self.vectors.get(note.body) for note in notes]

    def queue(self, notes: Sequence[Note]) -> None:
        self.queued += [note.body for note in notes]


@pytest.fixture(scope="module")
def reading_both(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    hot = {"method": "temperature", "temperature": 3.0}
    folder = tmp_path_factory.mktemp("vectors") / "checkpoint"
    return load_checkpoint(make_vector_checkpoint(folder, calibration=hot))


async def harness_of(
    checkpoint: Checkpoint, mode: ReadingMode, known: Known, remote: MemoryCache | None = None
) -> Harness:
    harness = Harness(checkpoint, remote=remote, prompter=Prompter(checkpoint, mode, known))
    await harness.engine.start()
    return harness


async def test_known_notes_are_read_as_vectors_and_others_as_text(reading_both: Checkpoint) -> None:
    known = Known(*BODIES[:2])
    harness = await harness_of(reading_both, "auto", known)
    answer = await harness.scorer.score(request())
    assert [result.reading for result in answer.results] == ["vectors", "vectors", "text"]
    assert [result.truncated for result in answer.results] == [True, False, False]
    second = reading_both.vectors
    assert second
    prompt = VectorPrompt(second.renderer.prefix("quiet cafe", "general-1"), ROWS, second.renderer.cue)
    raw = LabelDistribution.from_logprobs(harness.engine.logprobs(prompt))
    assert answer.results[0].judgement == judge(raw, reading_both.manifest, "general-1", "vectors")
    as_text = LabelDistribution.from_logprobs(harness.engine.logprobs(render(reading_both, BODIES[2])))
    assert answer.results[2].judgement == judge(as_text, reading_both.manifest, "general-1", "text")
    assert known.queued == [BODIES[2]]


async def test_cached_readings_stay_what_they_were(reading_both: Checkpoint) -> None:
    known = Known(BODIES[0])
    harness = await harness_of(reading_both, "auto", known)
    first = await harness.scorer.score(request())
    known.vectors.clear()
    again = await harness.scorer.score(request())
    assert [result.source for result in again.results] == ["local"] * 3
    assert [(result.reading, result.judgement, result.truncated) for result in again.results] == [
        (result.reading, result.judgement, result.truncated) for result in first.results
    ]
    assert known.asked == 1


async def test_modes_never_share_cached_readings(reading_both: Checkpoint) -> None:
    known = Known(*BODIES)
    auto = await harness_of(reading_both, "auto", known)
    await auto.scorer.score(request())
    await auto.written(3)
    text = await harness_of(reading_both, "text", known, auto.remote)
    answer = await text.scorer.score(request())
    assert [(result.source, result.reading) for result in answer.results] == [("engine", "text")] * 3


async def test_with_mode_vectors_a_note_without_vectors_is_shed_and_queued(reading_both: Checkpoint) -> None:
    known = Known(BODIES[1])
    harness = await harness_of(reading_both, "vectors", known)
    answer = await harness.scorer.score(request())
    assert [result.outcome for result in answer.results] == ["shed", "scored", "shed"]
    assert harness.count("shed_total", reason="no_vectors") == 2
    assert known.queued == [BODIES[0], BODIES[2]]
    known.vectors.clear()
    with pytest.raises(VectorsMissingError):
        await harness.scorer.score(request(("Another note.",)))


async def test_mode_text_and_a_checkpoint_without_vectors_look_nothing_up(
    reading_both: Checkpoint, tmp_path: Path
) -> None:
    known = Known(*BODIES)
    cases: list[tuple[Checkpoint, ReadingMode]] = [(reading_both, "text"), (load_tiny(tmp_path), "auto")]
    for checkpoint, mode in cases:
        harness = await harness_of(checkpoint, mode, known)
        assert {result.reading for result in (await harness.scorer.score(request())).results} == {"text"}
    assert known.asked == 0
    assert not known.queued


async def test_a_query_that_is_too_long_is_refused_alike(reading_both: Checkpoint) -> None:
    harness = await harness_of(reading_both, "auto", Known(*BODIES))
    with pytest.raises(InvalidRequestError, match=r"the query has \d+ tokens, limit 64"):
        await harness.scorer.score(request(query="x" * 300))
