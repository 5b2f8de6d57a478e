"""The encoder in a process of its own, at the lowest CPU priority: encoding must not delay a score."""

import asyncio
import base64
import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from service.errors import EncoderError

CHILD = (sys.executable, "-P", "-m", "service.vectors.encoder_child")
# Only for a child that hangs, since nobody waits for it: while the engine is busy, the child gets about 1 % of the CPU.
START_TIMEOUT_S = 3600.0
BATCH_TIMEOUT_S = 900.0
END_TIMEOUT_S = 1.0
KILL_TIMEOUT_S = 5.0
# Far above any batch's answer, whose size the service chooses; asyncio's own limit is 64 KiB.
_MAX_LINE_BYTES = 1 << 26
_CLOSED = "is closed"


class ProcessEncoder:
    """Starts the encoder of a checkpoint as a child process and sends it one batch at a time.

    A child that dies, or gives no answer in time, is killed; `start` then starts another one, after a wait that doubles each
    time, and at most `max_restarts` times without a batch that was encoded.
    """

    def __init__(
        self,
        folder: Path,
        per_note: int,
        *,
        threads: int = 1,
        start_timeout_s: float = START_TIMEOUT_S,
        batch_timeout_s: float = BATCH_TIMEOUT_S,
        max_restarts: int = 4,
        backoff_s: float = 1.0,
        command: Sequence[str] = CHILD,
    ) -> None:
        """Args: folder: the encoder's, as in `SecondReading`; command: what starts the child, for tests."""
        self._folder = folder
        self._command = (*command, str(folder), str(per_note), str(threads))
        # The child imports from where this process does. It leaves a GPU to the engine, and asks no host for files.
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        offline = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
        self._environment = {"PYTHONPATH": paths, "OMP_NUM_THREADS": str(threads), **offline}
        self._start_timeout_s = start_timeout_s
        self._batch_timeout_s = batch_timeout_s
        self._max_restarts = max_restarts
        self._backoff_s = backoff_s
        self._failures = 0  # without a child that outlived a batch
        self._child: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()  # one start or batch at a time
        self._closed = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """Return the child's process id, None without a child."""
        return self._child.pid if self._child else None

    async def start(self) -> bool:
        async with self._lock:
            if self._child and self._child.returncode is None:
                # Not at the first batch: that is the probes'.
                self._failures = 0
                return False
            if self._child:
                await self._lose("died")
            if self._failures > self._max_restarts:
                raise EncoderError(
                    f"the encoder was lost {self._failures} times without encoding a batch: restart the service"
                )
            await self._back_off()
            child = await self._spawn()
            answer = await self._ask(child, None, self._start_timeout_s)
            if "error" in answer:
                reason = f"can't load {self._folder}: {answer['error']}"
                raise await self._lose(reason)
            return True

    async def encode(self, notes: Sequence[tuple[int, ...]]) -> list[bytes]:
        async with self._lock:
            if self._child is None:
                raise EncoderError("the encoder is not running")
            answer = await self._ask(self._child, notes, self._batch_timeout_s)
        if "error" in answer:
            raise EncoderError(f"the encoder failed on these notes: {answer['error']}")
        rows = [base64.b64decode(each) for each in answer["rows"]]
        if len(rows) != len(notes):
            raise EncoderError(f"the encoder made vectors of {len(rows)} notes, not of {len(notes)}")
        return rows

    async def close(self) -> None:
        self._closed.set()
        if self._child:
            await _end(self._child)
        async with self._lock:  # a call in flight ends first
            await self._kill()

    async def _back_off(self) -> None:
        if self._failures:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._backoff_s * 2 ** (self._failures - 1)):
                    await self._closed.wait()
        if self._closed.is_set():
            raise EncoderError(f"the encoder {_CLOSED}")

    async def _spawn(self) -> asyncio.subprocess.Process:
        pipe, devnull = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        try:
            # In this process's session: in another one, a terminal's kernel would not let the engine go first (sched(7), autogroup).
            self._child = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=pipe,
                stdout=pipe,
                stderr=devnull,  # plain text, where the service logs JSON; errors are in the answers
                limit=_MAX_LINE_BYTES,
                env={**os.environ, **self._environment},
            )
        except OSError as error:
            raise await self._lose(f"can't be started: {type(error).__name__}") from error
        if self._closed.is_set():
            raise await self._lose(_CLOSED)
        return self._child

    async def _ask(
        self,
        child: asyncio.subprocess.Process,
        batch: Sequence[tuple[int, ...]] | None,
        timeout_s: float,
    ) -> dict[str, Any]:
        """Send a batch, unless it is None, and return the child's next answer. A child that gives none is killed."""
        writer, reader = cast("asyncio.StreamWriter", child.stdin), cast("asyncio.StreamReader", child.stdout)
        try:
            async with asyncio.timeout(timeout_s):
                if batch is not None:
                    writer.write(json.dumps(batch).encode() + b"\n")
                    await writer.drain()
                return cast("dict[str, Any]", json.loads(await reader.readline()))
        except TimeoutError:
            raise await self._lose(f"gave no answer within {timeout_s:g} s") from None
        except (OSError, ValueError):  # a closed pipe, and a line that is empty because the child ended
            raise await self._lose("died") from None
        except asyncio.CancelledError:
            # Its answer would be taken for that of the next batch.
            await self._kill()
            raise

    async def _lose(self, reason: str) -> EncoderError:
        self._failures += 1
        await self._kill()
        return EncoderError(f"the encoder {_CLOSED if self._closed.is_set() else reason}")

    async def _kill(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        await _end(child)
        with suppress(TimeoutError):
            async with asyncio.timeout(KILL_TIMEOUT_S):
                await child.communicate()  # reads to the end, so that asyncio closes the pipes


async def _end(child: asyncio.subprocess.Process) -> None:
    """Wait until the child has ended because its standard input is closed; kill it if it does not."""
    cast("asyncio.StreamWriter", child.stdin).close()
    # Not killed at once: asyncio can't safely signal a child that may have ended (python/cpython#87744, #127049).
    try:
        async with asyncio.timeout(END_TIMEOUT_S):
            await child.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            child.kill()
