"""A model whose grade depends on known words, in place of a trained one."""

from collections.abc import Sequence
from typing import Any

import torch

from model_export.models.constrained import Grammars
from model_export.teacher.rollout import OnBatch, Sampler, Sampling
from tests.byte_tokens import TOKENIZER, encode


class WordModel(Sampler):
    """Gives grade 1, and one more for each good word of the prompt and one less for each bad one."""

    def __init__(
        self,
        good: Sequence[str] = (),
        bad: Sequence[str] = (),
        completions: Sequence[str] = (),
        end: Sequence[int] = (),
    ) -> None:
        """`completions` are what it writes, in the order of the prompts, each with the tokens `end` behind it.

        It writes them whatever its grammars allow, which it keeps.
        """
        self._good, self._bad, self._completions = good, bad, completions
        self._ending = list(end)
        self.prompts = 0
        self.grammars: list[Grammars | None] = []
        self.then: Sequence[str] = ()  # what it writes after the first call, if anything else

    def sample(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        on_batch: OnBatch = lambda *_: None,
        grammars: Grammars | None = None,
    ) -> list[list[int]]:
        self.grammars.append(grammars)
        written = [encode(text) + self._ending for _, text in zip(prompts, self._completions, strict=True)]
        self._completions = self.then or self._completions
        return written

    def distributions(
        self, sequences: Sequence[list[int]], *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.prompts += len(sequences)
        texts = [TOKENIZER.decode(sequence) for sequence in sequences]
        grades = [
            1 + sum(word in text for word in self._good) - sum(word in text for word in self._bad)
            for text in texts
        ]
        rows = torch.zeros(len(texts), 4)
        rows[range(len(texts)), [min(3, max(0, grade)) for grade in grades]] = 1.0
        return rows, torch.ones(len(texts))
