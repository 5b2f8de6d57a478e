"""The engine port."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from service.contract.labels import LabelDistribution
from service.errors import EngineRequestError


@dataclass(frozen=True, slots=True)
class EngineModel:
    """What an engine must know of a checkpoint.

    Attributes:
        end_token_ids: tokens that end a trace; none of them is part of it.
        max_trace_tokens: the longest trace that `write` may be asked for.
    """

    folder: Path
    label_token_ids: tuple[int, ...]
    max_prompt_tokens: int
    end_token_ids: tuple[int, ...] = ()
    max_trace_tokens: int = 0


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """What an engine chose to run with.

    `numbers` are the settings that change a probability (they are part of the cache key), `speed` those
    that don't. `/version` shows both.
    """

    dtype: str
    numbers: Mapping[str, str] = field(default_factory=dict)
    speed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EngineAnswer:
    """One prefill's result.

    Attributes:
        label_logprobs: natural-log probability of each label over the whole vocabulary, lowest grade first.
        prompt_tokens: length of the prompt.
        reused_tokens: how many of them came from the prefix cache.
        queued_s: how long the request waited before the engine first scheduled it.
    """

    label_logprobs: tuple[float, ...]
    prompt_tokens: int
    reused_tokens: int = 0
    queued_s: float = 0.0

    def distribution(self) -> LabelDistribution:
        """The labels' distribution. Raises EngineRequestError when the logprobs are no numbers."""
        try:
            return LabelDistribution.from_logprobs(self.label_logprobs)
        except ValueError as error:
            raise EngineRequestError(f"the engine gave no usable label probabilities: {error}") from error


@dataclass(frozen=True, slots=True)
class Written:
    """What an engine has written since it last told.

    Attributes:
        token_ids: without the token that ends the trace.
        computed_tokens: prompt tokens that were not in the prefix cache; told once, with the first tokens.
    """

    token_ids: tuple[int, ...]
    computed_tokens: int = 0


class Engine(Protocol):
    """One loaded model. Started once, closed once, used from one event loop."""

    @property
    def profile(self) -> EngineProfile:
        """What the engine runs with; known after `start`."""
        ...

    async def start(self) -> None:
        """Load the model. Raises EngineLostError when it can't be loaded."""
        ...

    async def score(self, prompt: tuple[int, ...], priority: int) -> EngineAnswer:
        """Prefill one prompt and read the labels' logprobs; lower `priority` values go first.

        Cancelling it aborts the work in the engine.
        Raises EngineRequestError when this prompt failed, EngineLostError when the engine is dead.
        """
        ...

    def write(self, prompt: tuple[int, ...], max_tokens: int, priority: int) -> AsyncGenerator[Written]:
        """Go on from the prompt with the most probable tokens, up to an end token or `max_tokens` of them.

        Closing it early aborts the work in the engine. Raises as `score` does.
        """
        ...

    async def check(self) -> None:
        """Return while the engine lives. Raises EngineLostError when it doesn't."""
        ...

    async def close(self) -> None:
        """Stop the engine and wait for its processes; what is in flight fails with EngineLostError."""
        ...
