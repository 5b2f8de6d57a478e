"""The behaviour that every shadow must have, tested in memory and with a real Notegrade over HTTP."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import httpx
import pytest
from prometheus_client import CollectorRegistry

from service.app import build_app, build_stack
from service.contract.checkpoint import Checkpoint
from service.contract.comparison import Graded
from service.contract.prompt import Note
from service.errors import ShadowError
from service.settings import Settings
from service.shadowing.base import Target
from service.shadowing.http_target import HttpTarget
from service.shadowing.memory_target import MemoryTarget
from tests.checkpoints import fake_engine_for, load_tiny
from tests.service.shadowing.requests import mirrored

TOO_LONG = "x" * 50


@dataclass
class Subject:
    target: Target
    fingerprint: str
    break_it: Callable[[], None]


async def _memory_subject() -> AsyncIterator[Subject]:
    target = MemoryTarget(lambda _, note: None if note.body == TOO_LONG else Graded(2, 0.5), grades=4)

    def break_it() -> None:
        target.is_down = True

    yield Subject(target, target.fingerprint, break_it)


async def _http_subject(checkpoint: Checkpoint) -> AsyncIterator[Subject]:
    settings = Settings(max_body_chars=1000)
    engine = fake_engine_for(checkpoint)
    stack = build_stack(settings, checkpoint, CollectorRegistry(), engine)
    app = build_app(settings, stack)
    renderer = checkpoint.renderer
    async with stack.running() as bringing_up:
        await bringing_up
        note = mirrored(TOO_LONG).notes[0]
        [prompt] = renderer.render(
            "quiet cafes", [Note(note.title or "", note.body)], renderer.default_criteria
        )
        engine.fail_on(prompt.token_ids)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        yield Subject(
            HttpTarget("http://shadow", "", 30, transport), checkpoint.manifest.fingerprint, engine.kill
        )


@pytest.fixture(params=["memory", "http"])
async def subject(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Subject]:
    if request.param == "memory":
        subjects = _memory_subject()
    else:
        subjects = _http_subject(load_tiny(tmp_path_factory.mktemp("checkpoint")))
    async for made in subjects:
        yield made
        await made.target.close()


async def test_all_notes_are_graded_in_their_order(subject: Subject) -> None:
    answer = await subject.target.score(mirrored("one", TOO_LONG, "three"))
    assert (answer.fingerprint, answer.grades) == (subject.fingerprint, 4)
    one, failed, three = answer.notes
    assert failed is None
    for found in (one, three):
        assert found is not None
        assert 0 <= found.grade < 4
        assert 0 <= found.score <= 1


async def test_a_computed_answer_has_an_engine_time(subject: Subject) -> None:
    answer = await subject.target.score(mirrored("one", "two"))
    assert answer.engine_ms is not None
    assert answer.engine_ms >= 0


async def test_a_shadow_that_is_down_is_a_shadow_error(subject: Subject) -> None:
    subject.break_it()
    with pytest.raises(ShadowError, match="the shadow"):
        await subject.target.score(mirrored("one"))
