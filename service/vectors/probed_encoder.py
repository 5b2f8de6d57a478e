"""An encoder that must reproduce the checkpoint's probes before it encodes any other note."""

import asyncio
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from service.contract.checkpoint import SecondReading
from service.errors import EncoderError
from service.vectors.base import NoteEncoder

# bfloat16 instead of float32 moves a vector of SmolLM2 by less than this.
MIN_COSINE = 0.99
_PROBES = 4  # wrong weights or a wrong template change them all


class ProbedEncoder:
    """Passes all calls on, and compares the vectors of a few probes each time the encoder was loaded.

    An encoder that does not reproduce them is closed: its folder must be mended and the service restarted.
    """

    def __init__(self, encoder: NoteEncoder, second: SecondReading) -> None:
        self._encoder = encoder
        self._second = second
        self._is_checked = False

    async def start(self) -> bool:
        loaded = await self._encoder.start()
        if loaded:
            self._is_checked = False
        if not self._is_checked:
            await self._check()
            self._is_checked = True
        return loaded

    async def encode(self, notes: Sequence[tuple[int, ...]]) -> list[bytes]:
        return await self._encoder.encode(notes)

    async def close(self) -> None:
        await self._encoder.close()

    async def _check(self) -> None:
        probes = self._second.probes[:_PROBES]
        notes = [probe.canonical()[1] for probe in probes]
        inputs = await asyncio.to_thread(self._second.renderer.notes, notes)
        rows = await self._encoder.encode([each.token_ids for each in inputs])
        width = self._second.reading.width
        least = min(
            _least_cosine(found, probe.vectors, width) for found, probe in zip(rows, probes, strict=True)
        )
        # `not >=` and not `<`, so that NaN fails.
        if not least >= MIN_COSINE:
            await self._encoder.close()
            raise EncoderError(
                f"the encoder's vectors are not the checkpoint's: a cosine with a probe's is {least:.3f}, and must be "
                f"{MIN_COSINE:g} or more"
            )


def _least_cosine(found: bytes, expected: bytes, width: int) -> float:
    if len(found) != len(expected):
        return 0.0
    ours, theirs = _unit(found, width), _unit(expected, width)
    return float((ours * theirs).sum(axis=1).min())


def _unit(rows: bytes, width: int) -> npt.NDArray[np.float64]:
    vectors = np.frombuffer(rows, dtype="<f2").astype(np.float64).reshape(-1, width)
    found: npt.NDArray[np.float64] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return found
