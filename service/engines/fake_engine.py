"""The engine's in-memory twin: deterministic, instant, and held or broken at a test's will."""

import asyncio
import hashlib
import math
from collections.abc import AsyncGenerator

from service.engines.base import EngineAnswer, EngineModel, EngineProfile, Written
from service.errors import EngineLostError, EngineRequestError


class FakeEngine:
    """Logprobs from a hash of the prompt, and `trace` after any. `hold` keeps prompts in it, `fail_on` and `kill` break it."""

    def __init__(self, model: EngineModel) -> None:
        self._model = model
        self._alive = False
        self._gate = asyncio.Event()
        self._gate.set()
        self._died = asyncio.Event()
        self._failing: set[tuple[int, ...]] = set()
        self.in_flight = 0
        self.finished = 0
        self.aborted = 0
        self.priorities: list[int] = []
        self.trace: tuple[int, ...] = ()
        self.continued: list[tuple[int, ...]] = []

    @property
    def profile(self) -> EngineProfile:
        return EngineProfile(dtype="float32", numbers={"engine": "fake", "dtype": "float32"})

    async def start(self) -> None:
        self._alive = True

    async def score(self, prompt: tuple[int, ...], priority: int) -> EngineAnswer:
        self.priorities.append(priority)
        self.in_flight += 1
        try:
            await self._pass_gate()
            if prompt in self._failing:
                raise EngineRequestError("the fake engine was told to fail on this prompt")
        except asyncio.CancelledError:
            self.aborted += 1
            raise
        finally:
            self.in_flight -= 1
        self.finished += 1
        return EngineAnswer(self.logprobs(prompt), prompt_tokens=len(prompt))

    async def write(self, prompt: tuple[int, ...], max_tokens: int, priority: int) -> AsyncGenerator[Written]:
        self.priorities.append(priority)
        self.continued.append(prompt)
        self.in_flight += 1
        try:
            for position, token_id in enumerate(self.trace[:max_tokens]):
                await self._pass_gate()
                if prompt in self._failing:
                    raise EngineRequestError("the fake engine was told to fail on this prompt")
                yield Written((token_id,), 0 if position else len(prompt))
        except (asyncio.CancelledError, GeneratorExit):
            self.aborted += 1
            raise
        finally:
            self.in_flight -= 1
        self.finished += 1

    async def check(self) -> None:
        if not self._alive:
            raise EngineLostError("the fake engine is not running")

    async def close(self) -> None:
        self.kill()

    def logprobs(self, prompt: tuple[int, ...]) -> tuple[float, ...]:
        """What `score` answers for this prompt."""
        digest = hashlib.blake2b(repr(prompt).encode(), digest_size=len(self._model.label_token_ids)).digest()
        weights = [1 + byte for byte in digest]
        # 0.9: the labels never hold the whole vocabulary's mass.
        return tuple(math.log(0.9 * weight / sum(weights)) for weight in weights)

    def hold(self) -> None:
        """Keep every prompt in the engine until `let_go`."""
        self._gate.clear()

    def let_go(self) -> None:
        """Answer what is held."""
        self._gate.set()

    def fail_on(self, prompt: tuple[int, ...]) -> None:
        """Fail this prompt with EngineRequestError."""
        self._failing.add(prompt)

    def kill(self) -> None:
        """Die as a lost engine does: at once, failing what is in flight."""
        self._alive = False
        self._died.set()

    async def _pass_gate(self) -> None:
        await self.check()
        if not self._gate.is_set():
            passes = asyncio.create_task(self._gate.wait())
            dies = asyncio.create_task(self._died.wait())
            try:
                await asyncio.wait({passes, dies}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                passes.cancel()
                dies.cancel()
        await self.check()
