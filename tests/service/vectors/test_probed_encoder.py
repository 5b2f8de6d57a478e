import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from service.contract.checkpoint import SecondReading, load_checkpoint
from service.errors import EncoderError
from service.vectors.fake_encoder import FakeEncoder
from service.vectors.probed_encoder import ProbedEncoder
from tests.checkpoints import make_vector_checkpoint
from tests.waiting import until


class Off(FakeEncoder):
    """Makes vectors that are a little, or quite, other than they should be."""

    def __init__(self, second: SecondReading, size: float) -> None:
        super().__init__(second.reading.per_note, second.reading.width)
        self.size = size

    async def encode(self, notes: Sequence[tuple[int, ...]]) -> list[bytes]:
        noise = np.random.default_rng(1)
        right = [np.frombuffer(rows, dtype="<f2") for rows in await super().encode(notes)]
        return [
            (rows + self.size * noise.normal(size=rows.size) * np.abs(rows).mean()).astype("<f2").tobytes()
            for rows in right
        ]


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> SecondReading:
    loaded = load_checkpoint(make_vector_checkpoint(tmp_path_factory.mktemp("vectors") / "c")).vectors
    assert loaded
    return loaded


async def test_an_encoder_that_reproduces_the_probes_encodes(second: SecondReading) -> None:
    encoder = Off(second, 0.005)
    probed = ProbedEncoder(encoder, second)
    assert [await probed.start() for _ in range(2)] == [True, False]
    assert len(encoder.batches) == 1  # checked once
    assert len(await probed.encode([(1, 2, 3)])) == 1
    await probed.close()


async def test_an_encoder_that_was_lost_is_checked_again(second: SecondReading) -> None:
    encoder = Off(second, 0.005)
    probed = ProbedEncoder(encoder, second)
    await probed.start()
    encoder.kill()
    encoder.size = 1.0  # the folder was changed meanwhile
    with pytest.raises(EncoderError, match="the encoder's vectors are not the checkpoint's"):
        await probed.start()


async def test_an_encoder_that_was_lost_during_its_check_is_checked_again(second: SecondReading) -> None:
    encoder = Off(second, 0.005)
    probed = ProbedEncoder(encoder, second)
    encoder.hold()
    start = asyncio.create_task(probed.start())
    await until(lambda: len(encoder.batches) == 1)
    encoder.kill()
    with pytest.raises(EncoderError, match="is not running"):
        await start
    encoder.let_go()
    assert await probed.start()
    assert len(encoder.batches) == 2


@pytest.mark.parametrize("size", [1.0, float("nan")])
async def test_another_encoder_is_refused_and_closed(second: SecondReading, size: float) -> None:
    encoder = Off(second, size)
    probed = ProbedEncoder(encoder, second)
    with pytest.raises(EncoderError, match="the encoder's vectors are not the checkpoint's"):
        await probed.start()
    with pytest.raises(EncoderError, match="is closed"):
        await probed.start()
    assert len(encoder.batches) == 1


async def test_an_encoder_with_another_number_of_vectors_is_refused(
    second: SecondReading, tmp_path: Path
) -> None:
    fewer = FakeEncoder(second.reading.per_note - 1, second.reading.width)
    with pytest.raises(EncoderError, match=r"cosine with a probe's is 0\.000"):
        await ProbedEncoder(fewer, second).start()
