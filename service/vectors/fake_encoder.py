"""The encoder's in-memory twin: deterministic and immediate, and a test can hold it, fail it or kill it."""

import asyncio
import hashlib
from collections.abc import Sequence

import numpy as np

from service.errors import EncoderError

# Batches that are remembered for tests: a service may run on this encoder for long.
RECORDED = 1000


class FakeEncoder:
    """Makes vectors from a hash of the tokens.

    `hold` keeps batches in the encoder; `fail_on` fails the batches with a note, `kill` loses the encoder.
    """

    def __init__(self, per_note: int, width: int) -> None:
        self._per_note = per_note
        self._width = width
        self._is_running = False
        self._is_closed = False
        self._is_holding = False
        self._held: set[asyncio.Future[None]] = set()
        self._failing: set[tuple[int, ...]] = set()
        self.starts = 0
        self.batches: list[list[tuple[int, ...]]] = []

    async def start(self) -> bool:
        if self._is_closed:
            raise EncoderError("the fake encoder is closed")
        if self._is_running:
            return False
        self._is_running = True
        self.starts += 1
        return True

    async def encode(self, notes: Sequence[tuple[int, ...]]) -> list[bytes]:
        if not self._is_running:
            raise EncoderError("the fake encoder is not running")
        self.batches.append(list(notes))
        del self.batches[:-RECORDED]
        if self._is_holding:
            await self._wait()
        if not self._failing.isdisjoint(notes):
            raise EncoderError("the test made the fake encoder fail on this batch")
        return [self.rows(note) for note in notes]

    async def close(self) -> None:
        self._is_closed = True
        self.kill()

    def rows(self, token_ids: tuple[int, ...]) -> bytes:
        """Return the rows that `encode` makes of this note."""
        count = min(self._per_note, len(token_ids))
        digest = hashlib.shake_256(repr(token_ids).encode()).digest(count * self._width)
        # 1 + byte: no row may be all zeros.
        rows: bytes = ((1 + np.frombuffer(digest, np.uint8).astype("<f2")) / 256).tobytes()
        return rows

    def hold(self) -> None:
        """Keep every batch in the encoder until `let_go`."""
        self._is_holding = True

    def let_go(self) -> None:
        """Encode the batches that were held."""
        self._is_holding = False
        for held in self._held:
            held.set_result(None)

    def fail_on(self, token_ids: tuple[int, ...]) -> None:
        """Fail every batch with this note."""
        self._failing.add(token_ids)

    def kill(self) -> None:
        """Lose the encoder and fail its calls, as when its process dies; `start` starts it again."""
        self._is_running = False
        for held in self._held:
            held.set_exception(EncoderError("the fake encoder is not running"))

    async def _wait(self) -> None:
        held = asyncio.get_running_loop().create_future()
        self._held.add(held)
        held.add_done_callback(self._held.discard)
        await held
