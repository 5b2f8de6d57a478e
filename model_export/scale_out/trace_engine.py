"""The interface of an engine that samples reasoning paths, with label logprobs at each token."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from model_export.data.pairs import Pair


@dataclass(frozen=True, slots=True)
class PathRequest:
    """One path to sample: the prompt's token ids, and a seed, so that a rerun samples the same path."""

    prompt: list[int]
    seed: int


@dataclass(frozen=True, slots=True)
class Completion:
    """A sampled path: its tokens, with the end token if it reached one.

    `label_logprobs` holds, for each token, the logprobs of the labels at its position, lowest grade first: natural log, over
    the whole vocabulary, before the temperature.
    """

    token_ids: list[int]
    label_logprobs: list[list[float]]


MakeRequests = Callable[[Pair], list[PathRequest]]


class TraceEngine(Protocol):
    """An engine that samples paths."""

    def complete(self, pairs: Sequence[Pair], make_requests: MakeRequests) -> Iterator[list[Completion]]:
        """Yield the completions of each pair's requests, in the order of the pairs.

        `make_requests` is called once per pair, possibly in another process. Raises LabelError when the engine fails.
        """
        ...


@dataclass(frozen=True, slots=True)
class EngineSetup:
    """Settings that an engine starts with; lengths are in tokens."""

    teacher: Path
    label_token_ids: tuple[int, ...]
    end_token_id: int
    max_prompt_tokens: int
    max_tokens: int
    temperature: float


StartEngine = Callable[[EngineSetup], AbstractContextManager[TraceEngine]]
