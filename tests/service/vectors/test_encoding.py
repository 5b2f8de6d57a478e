import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable, Sequence

import numpy as np
import pytest

from service.contract.checkpoint import Checkpoint, load_checkpoint
from service.contract.prompt import Note
from service.contract.vector_prompt import NoteVectors
from service.errors import CacheUnavailableError, EncoderError
from service.vectors.encoding import CHARACTERS_A_NOTE, PAUSE_S, EncodingStatus, Offered
from service.vectors.fake_encoder import FakeEncoder
from service.vectors.packing import pack_vectors
from tests.checkpoints import make_vector_checkpoint
from tests.service.vectors.encoding_harness import Harness
from tests.waiting import until

NOTES = [Note("Cafes", f"Quiet cafe number {number}.") for number in range(8)]
A, B, C = NOTES[:3]
LONG = Note("Cafes", " ".join(f"word{number}" for number in range(100)))

Make = Callable[..., Harness]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return load_checkpoint(make_vector_checkpoint(tmp_path_factory.mktemp("vectors") / "c"))


@pytest.fixture
async def make(checkpoint: Checkpoint) -> AsyncIterator[Make]:
    made: list[Harness] = []

    def make(encoder: FakeEncoder | None = None, **options: float) -> Harness:
        harness = Harness(checkpoint, encoder, **options)
        harness.encoding.start()
        made.append(harness)
        return harness

    yield make
    for harness in made:
        await harness.encoding.close()


async def tried(harness: Harness, batches: int) -> None:
    """Wait until the encoder has tried this many batches, and no further one."""
    await until(lambda: len(harness.encoder.batches) == batches)
    await harness.turns()


async def test_offered_notes_are_encoded_and_found(make: Make) -> None:
    harness = make()
    encoding = harness.encoding
    assert await encoding.lookup([A, LONG]) == [None, None]
    assert await encoding.offer([A, LONG]) == Offered(accepted=2, known=0, refused=0)
    await until(lambda: encoding.status().stored == 2)
    expected = [
        NoteVectors(harness.encoder.rows(harness.tokens(note)), truncated)
        for note, truncated in ((A, False), (LONG, True))
    ]
    assert await encoding.lookup([LONG, B, A]) == [expected[1], None, expected[0]]
    assert harness.lookups() == {"hit": 2, "miss": 3}
    assert encoding.status() == EncodingStatus(backlog=0, stored=2, failed=0)
    assert harness.count("encoded_notes_total", outcome="encoded") == 2
    assert harness.count("encoding_seconds_count") == 1


async def test_nothing_is_encoded_while_the_service_is_busy(make: Make) -> None:
    harness = make(encoding_batch=1)
    harness.idle = False
    await harness.encoding.offer([A, B])
    await harness.turns()
    assert harness.encoder.starts == 0
    harness.encoder.hold()
    harness.idle = True
    await until(lambda: len(harness.encoder.batches) == 1)
    harness.idle = False  # a score arrives during the first batch: it ends, and the next one waits
    harness.encoder.let_go()
    await until(lambda: harness.encoding.status().stored == 1)
    await harness.turns()
    assert harness.encoding.status() == EncodingStatus(backlog=1, stored=1, failed=0)


async def test_no_note_is_encoded_twice(make: Make) -> None:
    harness = make(encoding_batch=2)
    await harness.encoding.offer([A])
    await until(lambda: harness.encoding.status().stored == 1)
    harness.encoder.hold()
    assert await harness.encoding.offer([A, B, B, C]) == Offered(accepted=2, known=2, refused=0)
    await until(lambda: len(harness.encoder.batches) == 2)
    assert await harness.encoding.offer([B]) == Offered(accepted=0, known=1, refused=0)  # at work
    assert harness.encoding.queue([C]) == Offered(accepted=0, known=1, refused=0)
    harness.encoder.let_go()
    await until(lambda: harness.encoding.status().stored == 3)
    assert [len(batch) for batch in harness.encoder.batches] == [1, 2]


async def test_a_note_that_another_replica_stored_meanwhile_is_not_encoded(make: Make) -> None:
    harness = make()
    harness.idle = False
    await harness.encoding.offer([A])
    await harness.stored.put({harness.stored.key(A): NoteVectors(harness.encoder.rows((1, 2)))})
    harness.idle = True
    await until(lambda: harness.encoding.status().backlog == 0)
    assert harness.encoder.batches == []


async def test_notes_over_the_backlog_are_refused(make: Make) -> None:
    harness = make(encoding_backlog=2)
    harness.idle = False
    assert await harness.encoding.offer(NOTES[:5]) == Offered(accepted=2, known=0, refused=3)
    assert harness.count("encoding_backlog") == 2
    assert harness.count("encoding_oldest_seconds") == 0
    harness.clock.now += 7
    harness.encoding.queue([NOTES[0]])  # it waits since then already
    assert harness.count("encoding_oldest_seconds") == 7
    assert harness.count("encoded_notes_total", outcome="refused") == 3
    harness.idle = True
    await until(lambda: harness.encoding.status().stored == 2)
    assert await harness.encoding.offer(NOTES[:3]) == Offered(accepted=1, known=2, refused=0)


async def test_long_notes_fill_the_backlog_with_fewer(make: Make) -> None:
    harness = make(encoding_backlog=3)
    harness.idle = False
    long = [Note("", letter * (3 * CHARACTERS_A_NOTE // 2)) for letter in "ab"]
    longest = Note("", "c" * 4 * CHARACTERS_A_NOTE)
    assert await harness.encoding.offer([*long, A]) == Offered(accepted=2, known=0, refused=1)
    harness.idle = True
    await until(lambda: harness.encoding.status().stored == 2)
    harness.idle = False
    assert await harness.encoding.offer([longest, A]) == Offered(accepted=1, known=0, refused=1)
    harness.idle = True
    await until(lambda: harness.encoding.status().stored == 3)
    assert await harness.encoding.offer([A]) == Offered(accepted=1, known=0, refused=0)


async def test_it_rests_so_that_encoding_has_its_share_of_the_time(make: Make) -> None:
    harness = make(encoding_batch=1, encoding_share=0.25)
    harness.encoder.hold()
    await harness.encoding.offer([A, B])
    await until(lambda: len(harness.encoder.batches) == 1)
    harness.clock.now += 2  # the batch takes 2 s, so the next one starts 6 s after its end
    harness.encoder.let_go()
    await until(lambda: harness.encoding.status().stored == 1)
    harness.clock.now += 5.9
    await harness.turns()
    assert len(harness.encoder.batches) == 1
    harness.clock.now += 0.2
    await until(lambda: harness.encoding.status().stored == 2)
    assert harness.count("encoding_seconds_sum") == pytest.approx(2)


async def test_a_batch_that_fails_twice_is_dropped_and_may_be_offered_again(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    harness = make(encoding_batch=1)
    for note in (A, B):
        harness.encoder.fail_on(harness.tokens(note))
    await harness.encoding.offer([A, B, C])
    await tried(harness, batches=1)
    assert harness.encoding.status() == EncodingStatus(backlog=3, stored=0, failed=0)
    assert harness.encoding.queue([A]) == Offered(
        accepted=0, known=1, refused=0
    )  # it waits for its second try
    for attempts in (2, 4, 5):  # after C, which succeeds, it does not rest
        harness.clock.now += PAUSE_S
        await tried(harness, attempts)
    assert harness.encoder.batches == [[harness.tokens(note)] for note in (A, B, C, A, B)]
    assert harness.encoding.status() == EncodingStatus(backlog=0, stored=1, failed=2)
    assert await harness.encoding.offer([A, C]) == Offered(accepted=1, known=1, refused=0)
    warned = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.getMessage() for record in warned] == [
        "encoding notes fails"
    ] * 2  # C ended the first outage
    assert "Quiet cafe" not in caplog.text


async def test_a_bad_note_takes_no_other_of_its_batch_with_it(make: Make) -> None:
    harness = make(encoding_batch=4)
    harness.encoder.fail_on(harness.tokens(B))
    await harness.encoding.offer([A, B, C])
    for attempts in (1, 3, 4):  # after a success it does not rest
        await tried(harness, attempts)
        harness.clock.now += PAUSE_S
    a, b, c = map(harness.tokens, (A, B, C))
    assert harness.encoder.batches == [[a, b, c], [a], [b], [c]]
    assert harness.encoding.status() == EncodingStatus(backlog=0, stored=2, failed=1)


async def test_a_note_that_was_dropped_and_offered_again_has_two_tries_again(make: Make) -> None:
    harness = make(encoding_batch=1)
    harness.encoder.fail_on(harness.tokens(A))
    for dropped in (1, 2):
        await harness.encoding.offer([A])
        for attempts in (2 * dropped - 1, 2 * dropped):
            await tried(harness, attempts)
            harness.clock.now += PAUSE_S
        assert harness.encoding.status() == EncodingStatus(backlog=0, stored=0, failed=dropped)


async def test_a_lost_encoder_is_started_again_and_encodes_the_batch_that_it_was_lost_with(
    make: Make,
) -> None:
    harness = make(encoding_batch=1)
    harness.encoder.hold()
    await harness.encoding.offer([A])
    await until(lambda: len(harness.encoder.batches) == 1)
    harness.encoder.kill()
    await harness.turns()
    harness.encoder.let_go()
    harness.clock.now += PAUSE_S
    await until(lambda: harness.encoding.status().stored == 1)
    assert harness.encoding.status() == EncodingStatus(backlog=0, stored=1, failed=0)
    assert harness.encoder.starts == 2


class BrokenEncoder(FakeEncoder):
    """Answers with `rows`, or raises them."""

    answer: bytes | Exception = b""

    async def encode(self, notes: Sequence[tuple[int, ...]]) -> list[bytes]:
        if isinstance(self.answer, Exception):
            raise self.answer
        return [self.answer for _ in notes]


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        np.array([1, 2, 3], "<f2").tobytes(),
        np.zeros(4, "<f2").tobytes(),
        np.full(4, math.nan, "<f2").tobytes(),
        EncoderError("down"),
        KeyError("Quiet cafe number 0."),
    ],
    ids=["empty", "width", "zeros", "nan", "error", "bug"],
)
async def test_bad_vectors_and_bugs_are_never_stored(
    make: Make, answer: bytes | Exception, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = BrokenEncoder(2, 4)
    encoder.answer = answer
    harness = make(encoder)

    def have_failed() -> bool:
        harness.clock.now += PAUSE_S
        return harness.encoding.status().failed == 2

    await harness.encoding.offer([A, B])
    await until(have_failed)
    assert harness.encoding.status() == EncodingStatus(backlog=0, stored=0, failed=2)
    assert await harness.encoding.lookup([A, B]) == [None, None]
    assert harness.lookups() == {"miss": 2}
    assert "Quiet cafe" not in caplog.text


@pytest.mark.parametrize(
    "poison",
    [
        b"",
        b"\xff" * 100,
        pack_vectors(NoteVectors(np.ones(6, "<f2").tobytes()), 6, b"another key"),
    ],
    ids=["empty", "foreign", "misplaced"],
)
async def test_poisoned_entries_are_counted_and_encoded_again(make: Make, poison: bytes) -> None:
    harness = make()
    key = harness.stored.key(A)
    await harness.store.put_many({key: poison})
    assert await harness.encoding.lookup([A, B]) == [None, None]
    assert harness.lookups() == {"invalid": 1, "miss": 1}
    await harness.encoding.offer([A])
    await until(lambda: harness.encoding.status().stored == 1)
    assert await harness.encoding.lookup([A]) == [NoteVectors(harness.encoder.rows(harness.tokens(A)))]


async def test_encoders_share_a_store_without_sharing_vectors(make: Make) -> None:
    harness = make()
    other = harness.stored_by(encoder_fingerprint="sha256:other")
    assert await other.put({other.key(A): NoteVectors(np.ones(8, "<f2").tobytes())}) == 1
    assert await harness.encoding.lookup([A]) == [None]
    assert harness.lookups() == {"miss": 1}


@pytest.mark.parametrize("changes", [{"width": 8}, {"per_note": 3}])
async def test_vectors_of_another_shape_under_the_same_key_are_invalid(
    make: Make, changes: dict[str, int]
) -> None:
    harness = make()
    other = harness.stored_by(**changes)
    numbers = harness.width * 3 if "per_note" in changes else 8
    assert await other.put({other.key(A): NoteVectors(np.ones(numbers, "<f2").tobytes())}) == 1
    assert await harness.encoding.lookup([A]) == [None]
    assert harness.lookups() == {"invalid": 1}


async def test_without_its_store_no_note_has_vectors_and_none_is_encoded(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    harness = make()
    await harness.encoding.offer([A])
    await until(lambda: harness.encoding.status().stored == 1)
    harness.store.read_error = CacheUnavailableError("down")
    for _ in range(2):
        assert await harness.encoding.lookup([A, B]) == [None, None]
    calls = harness.store.calls
    assert await harness.encoding.lookup([A]) == [None]  # the breaker is open
    assert harness.store.calls == calls
    assert harness.lookups() == {"unavailable": 5}
    assert await harness.encoding.offer([B]) == Offered(accepted=1, known=0, refused=0)
    await harness.turns()
    assert len(harness.encoder.batches) == 1
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    harness.store.read_error = None
    harness.clock.now += 10
    await until(lambda: harness.encoding.status().stored == 2)
    assert None not in await harness.encoding.lookup([A, B])


async def test_vectors_that_can_not_be_stored_have_failed(make: Make) -> None:
    harness = make()
    harness.store.put_error = CacheUnavailableError("full")
    await harness.encoding.offer([A])
    await until(lambda: harness.encoding.status().failed == 1)
    assert harness.encoding.status() == EncodingStatus(backlog=0, stored=0, failed=1)


async def test_close_ends_a_batch_and_drops_the_backlog(make: Make) -> None:
    before = asyncio.all_tasks()
    harness = make(encoding_batch=1)
    harness.encoder.hold()
    await harness.encoding.offer([A, B])
    await until(lambda: len(harness.encoder.batches) == 1)
    await harness.encoding.close()
    assert asyncio.all_tasks() == before
    assert harness.encoding.status().backlog == 0
    assert await harness.encoding.offer([A]) == Offered(accepted=0, known=0, refused=1)
    assert await harness.encoding.lookup([A]) == [None]
