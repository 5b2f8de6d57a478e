"""The behaviour of every encoder, tested on the twin and on a real child process with a toy model."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from service.errors import EncoderError
from service.vectors.base import NoteEncoder
from service.vectors.fake_encoder import FakeEncoder
from service.vectors.packing import is_sound
from tests.service.vectors.toy_child import RAISE
from tests.service.vectors.toy_encoder import PER_NOTE, WIDTH, toy_encoder

NOTES = [(1, 2, 3, 4), (5,), (6, 7)]


@pytest.fixture(params=["fake", "process"])
async def encoder(request: pytest.FixtureRequest) -> AsyncIterator[NoteEncoder]:
    made: NoteEncoder
    if request.param == "fake":
        made = fake = FakeEncoder(PER_NOTE, WIDTH)
        fake.fail_on((RAISE,))
    else:
        made = toy_encoder()
    yield made
    await made.close()


async def test_each_note_has_its_own_vectors_in_order(encoder: NoteEncoder) -> None:
    await encoder.start()
    rows = await encoder.encode(NOTES)
    assert [len(each) for each in rows] == [2 * WIDTH * min(len(note), PER_NOTE) for note in NOTES]
    assert all(is_sound(each, PER_NOTE, WIDTH) for each in rows)
    assert await encoder.encode(NOTES[::-1]) == rows[::-1]
    assert len(set(rows)) == 3


async def test_an_empty_batch_is_allowed(encoder: NoteEncoder) -> None:
    await encoder.start()
    assert await encoder.encode([]) == []


async def test_concurrent_batches_get_their_own_vectors(encoder: NoteEncoder) -> None:
    await encoder.start()
    alone = [await encoder.encode([note]) for note in NOTES]
    assert await asyncio.gather(*(encoder.encode([note]) for note in NOTES)) == alone


async def test_a_note_that_fails_does_not_end_the_encoder(encoder: NoteEncoder) -> None:
    await encoder.start()
    with pytest.raises(EncoderError) as caught:
        await encoder.encode([NOTES[0], (RAISE,)])
    assert "quiet cafes" not in str(caught.value)
    assert len(await encoder.encode(NOTES)) == 3


async def test_it_must_be_started_and_can_be_started_twice(encoder: NoteEncoder) -> None:
    with pytest.raises(EncoderError, match="not running"):
        await encoder.encode(NOTES)
    await encoder.start()
    await encoder.start()
    assert len(await encoder.encode(NOTES)) == 3


async def test_a_closed_encoder_stays_closed(encoder: NoteEncoder) -> None:
    await encoder.start()
    await encoder.close()
    await encoder.close()
    with pytest.raises(EncoderError, match="closed"):
        await encoder.start()
    with pytest.raises(EncoderError):
        await encoder.encode(NOTES)
