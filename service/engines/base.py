"""The interface of every engine."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from service.contract.labels import LabelDistribution
from service.contract.vector_prompt import VectorPrompt
from service.errors import EngineRequestError

# The service checks its engine this often, in seconds.
CHECK_EVERY_S = 1.0


EnginePrompt = tuple[int, ...] | VectorPrompt


def count_tokens(prompt: EnginePrompt, vector_width: int) -> int:
    """Return the length of a prompt; a vector counts as a token."""
    if isinstance(prompt, VectorPrompt):
        return len(prompt.prefix) + len(prompt.rows) // (2 * vector_width) + len(prompt.cue)
    return len(prompt)


@dataclass(frozen=True, slots=True)
class EngineModel:
    """The facts about a checkpoint that an engine needs.

    Attributes:
        end_token_ids: tokens that end a trace; the trace does not contain them.
        max_trace_tokens: the largest `max_tokens` that `write` accepts.
        vector_width: length of the vectors in a `VectorPrompt`; 0 where the engine is asked for none.
    """

    folder: Path
    label_token_ids: tuple[int, ...]
    max_prompt_tokens: int
    end_token_ids: tuple[int, ...] = ()
    max_trace_tokens: int = 0
    vector_width: int = 0


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """The settings that an engine chose for its hardware.

    `numbers` are what changes a probability: settings, the engine's version and its device. They are part of the cache key,
    so that replicas which differ in one never share readings. `speed` are the other settings. `/version` shows both.
    """

    dtype: str
    numbers: Mapping[str, str] = field(default_factory=dict)
    speed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EngineAnswer:
    """The result of one prefill.

    Attributes:
        label_logprobs: natural-log probability of each label over the whole vocabulary, lowest grade first.
        prompt_tokens: number of tokens in the prompt.
        reused_tokens: number of prompt tokens that came from the prefix cache.
        queued_s: time that the request waited until the engine first scheduled it.
    """

    label_logprobs: tuple[float, ...]
    prompt_tokens: int
    reused_tokens: int = 0
    queued_s: float = 0.0

    def distribution(self) -> LabelDistribution:
        """Return the labels' distribution. Raises EngineRequestError when the logprobs are not numbers."""
        try:
            return LabelDistribution.from_logprobs(self.label_logprobs)
        except ValueError as error:
            raise EngineRequestError(f"the engine returned unusable label probabilities: {error}") from error


@dataclass(frozen=True, slots=True)
class TraceChunk:
    """Tokens generated since the previous chunk.

    Attributes:
        token_ids: the new tokens, without the token that ends the trace.
        computed_tokens: prompt tokens that were not in the prefix cache; 0 in every chunk but the first.
    """

    token_ids: tuple[int, ...]
    computed_tokens: int = 0


class Engine(Protocol):
    """One loaded model. It is started once, closed once, and used from one event loop."""

    @property
    def profile(self) -> EngineProfile:
        """Return the settings that the engine runs with; known after `start`."""
        ...

    async def start(self) -> None:
        """Load the model. Raises EngineLostError when it can't be loaded."""
        ...

    async def score(self, prompt: EnginePrompt, priority: int) -> EngineAnswer:
        """Prefill one prompt and return the labels' logprobs; lower `priority` values are scheduled first.

        Cancelling the call aborts the request in the engine.
        Raises EngineRequestError when this prompt failed, EngineLostError when the engine is dead, hangs or is closed.
        """
        ...

    def write(
        self, prompt: tuple[int, ...], max_tokens: int, priority: int, grammar: str | None = None
    ) -> AsyncGenerator[TraceChunk]:
        """Generate the most probable tokens after the prompt, up to an end token or to `max_tokens`.

        A grammar, in llguidance's dialect of Lark, rules out all tokens that it does not go on with.
        Closing the generator early aborts the request in the engine. Raises the same errors as `score`.
        """
        ...

    async def check(self) -> None:
        """Return while the engine is healthy. Raises EngineLostError when it is dead or hangs. Call it periodically."""
        ...

    async def close(self) -> None:
        """Stop the engine and wait for its processes; calls in flight fail with EngineLostError."""
        ...
