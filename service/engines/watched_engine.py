"""An engine that is given up once it hangs: vLLM notices when its process dies, not when it stands still."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from service.engines.base import Engine, EngineAnswer, EngineProfile, Written
from service.engines.in_flight import CallsInFlight


class WatchedEngine:
    """Another engine. What is in flight fails with EngineLostError once it had work and told nothing for too many checks.

    Checks are counted, not seconds: when the whole process was stopped for a while, or its clock leapt, that is one.
    """

    def __init__(self, engine: Engine, max_silent_checks: int) -> None:
        self._engine = engine
        self._max_silent_checks = max_silent_checks
        self._silent_checks = 0
        self._calls = CallsInFlight()

    @property
    def profile(self) -> EngineProfile:
        return self._engine.profile

    async def start(self) -> None:
        await self._engine.start()

    async def score(self, prompt: tuple[int, ...], priority: int) -> EngineAnswer:
        async with self._calls.until_lost():
            answer = await self._engine.score(prompt, priority)
        self._silent_checks = 0
        return answer

    async def write(self, prompt: tuple[int, ...], max_tokens: int, priority: int) -> AsyncGenerator[Written]:
        async with aclosing(self._engine.write(prompt, max_tokens, priority)) as stream:
            while True:
                # Around each step and not around the whole: a reader who takes his time is no engine that hangs.
                async with self._calls.until_lost():
                    written = await anext(stream, None)
                self._silent_checks = 0
                if written is None:
                    return
                yield written

    async def check(self) -> None:
        self._calls.check()
        await self._engine.check()
        self._silent_checks = self._silent_checks + 1 if self._calls else 0
        if self._silent_checks > self._max_silent_checks:
            self._calls.lose(
                f"the engine has told nothing for {self._silent_checks} checks: the service must be restarted"
            )
            self._calls.check()

    async def close(self) -> None:
        await self._engine.close()
