"""The engine's in-memory twin: deterministic and immediate, and a test can hold it, fail it or kill it."""

import asyncio
import hashlib
import math
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

from service.engines.base import (
    EngineAnswer,
    EngineModel,
    EngineProfile,
    EnginePrompt,
    TraceChunk,
    count_tokens,
)
from service.engines.calls import EngineCalls
from service.errors import EngineLostError, EngineRequestError

# Prompts that are remembered for tests: a service may run on this engine for long.
RECORDED = 1000


class FakeEngine:
    """Computes logprobs from a hash of the prompt, and writes `trace` after every prompt, whatever its grammar.

    `hold` keeps prompts in the engine; `fail_on` fails one of them, `kill` the whole engine.
    """

    def __init__(self, model: EngineModel, max_silent_checks: int | None = None) -> None:
        self._model = model
        self._calls = EngineCalls(lambda: self._respond_to(()), max_silent_checks)
        self._is_running = False
        self._gate = asyncio.Event()
        self._gate.set()
        self._failing: set[EnginePrompt] = set()
        self.in_flight = 0
        self.finished = 0
        self.aborted = 0
        self.priorities: list[int] = []
        self.trace: tuple[int, ...] = ()
        self.continued: list[tuple[int, ...]] = []
        self.grammars: list[str | None] = []
        self.numbers = {"engine": "fake", "version": "1", "device": "none", "dtype": "float32"}

    @property
    def profile(self) -> EngineProfile:
        return EngineProfile(dtype="float32", numbers=self.numbers)

    async def start(self) -> None:
        self._is_running = True

    async def score(self, prompt: EnginePrompt, priority: int) -> EngineAnswer:
        with self._count(priority):
            await self._respond_to(prompt)
        tokens = count_tokens(prompt, self._model.vector_width)
        return EngineAnswer(self.logprobs(prompt), prompt_tokens=tokens)

    async def write(
        self, prompt: tuple[int, ...], max_tokens: int, priority: int, grammar: str | None = None
    ) -> AsyncGenerator[TraceChunk]:
        self.continued.append(prompt)
        self.grammars.append(grammar)
        del self.continued[:-RECORDED], self.grammars[:-RECORDED]
        with self._count(priority):
            for position, token_id in enumerate(self.trace[:max_tokens]):
                await self._respond_to(prompt)
                yield TraceChunk((token_id,), 0 if position else len(prompt))

    async def check(self) -> None:
        if not self._is_running:
            raise EngineLostError("the fake engine is not running")
        self._calls.check()

    async def close(self) -> None:
        self.kill()

    def logprobs(self, prompt: EnginePrompt) -> tuple[float, ...]:
        """Return the logprobs that `score` answers for this prompt."""
        digest = hashlib.blake2b(repr(prompt).encode(), digest_size=len(self._model.label_token_ids)).digest()
        weights = [1 + byte for byte in digest]
        # 0.9: real labels never have the whole probability of the vocabulary.
        return tuple(math.log(0.9 * weight / sum(weights)) for weight in weights)

    def hold(self) -> None:
        """Keep every prompt in the engine until `let_go`."""
        self._gate.clear()

    def let_go(self) -> None:
        """Answer the prompts that were held."""
        self._gate.set()

    def fail_on(self, prompt: EnginePrompt) -> None:
        """Fail this prompt with EngineRequestError."""
        self._failing.add(prompt)

    def kill(self) -> None:
        """End the engine at once and fail its calls, as when its process dies."""
        self._is_running = False
        self._calls.lose("the fake engine is not running")

    @contextmanager
    def _count(self, priority: int) -> Iterator[None]:
        self.priorities.append(priority)
        del self.priorities[:-RECORDED]
        self.in_flight += 1
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit, EngineLostError):
            self.aborted += 1
            raise
        finally:
            self.in_flight -= 1
        self.finished += 1

    async def _respond_to(self, prompt: EnginePrompt) -> None:
        if not self._is_running:
            raise EngineLostError("the fake engine is not running")
        async with self._calls.until_lost():
            await self._gate.wait()
        if prompt in self._failing:
            raise EngineRequestError("the test made the fake engine fail on this prompt")
