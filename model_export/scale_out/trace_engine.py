"""What labelling asks of an engine: paths, sampled with what the labels had in the place of each of their tokens."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from model_export.data.pairs import Pair


@dataclass(frozen=True, slots=True)
class Asked:
    """One path to sample: the prompt's token ids, and a seed of its own, so that a rerun takes the same path."""

    prompt: list[int]
    seed: int


@dataclass(frozen=True, slots=True)
class Completion:
    """A sampled path: its tokens, the end token included where it came to one.

    `label_logprobs`: for each token, what the labels had in its place, lowest grade first: natural log, over the
    whole vocabulary, before the temperature.
    """

    token_ids: list[int]
    label_logprobs: list[list[float]]


Ask = Callable[[Pair], list[Asked]]


class TraceEngine(Protocol):
    """Samples paths."""

    def complete(self, pairs: Sequence[Pair], ask: Ask) -> Iterator[list[Completion]]:
        """What came of all that is asked of each pair, pair by pair in their order.

        `ask` is called once a pair, maybe in another process. Raises LabelError when the engine fails.
        """
        ...


@dataclass(frozen=True, slots=True)
class EngineSetup:
    """What an engine is started with; lengths are in tokens."""

    teacher: Path
    label_token_ids: tuple[int, ...]
    end_token_id: int
    max_prompt_tokens: int
    max_tokens: int
    temperature: float


StartEngine = Callable[[EngineSetup], AbstractContextManager[TraceEngine]]
