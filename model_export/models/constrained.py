"""Keeps what a model writes within grammars, by llguidance, which the service's engine uses too."""

from collections.abc import Sequence

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer

from service.contract.tokenizer import ContractTokenizer


class Grammars:
    """The grammar of each row's completion, and what the row has written of it."""

    def __init__(self, matchers: Sequence[LLMatcher]) -> None:
        self._matchers = matchers

    @classmethod
    def read(cls, tokenizer: ContractTokenizer, end: int, grammars: Sequence[str]) -> "Grammars":
        """Read grammars in llguidance's dialect of Lark; the token `end` ends a whole completion. Raises ValueError."""
        tokens = LLTokenizer(tokenizer.to_json(), eos_token=end)
        matchers = [LLMatcher(tokens, LLMatcher.grammar_from_lark(each)) for each in grammars]
        for matcher in matchers:
            if matcher.is_error():
                raise ValueError(f"the grammar can't be read: {matcher.get_error()}")
        return cls(matchers)

    def of(self, rows: Sequence[int]) -> "Grammars":
        """Return those of some rows, in that order."""
        return Grammars([self._matchers[row] for row in rows])

    def restrict(self, logits: torch.Tensor, rows: Sequence[int]) -> None:
        """Set the logits, (rows, vocabulary), of tokens that the rows may not write next to minus infinity."""
        words = np.stack([np.frombuffer(self._matchers[row].compute_bitmask(), np.uint8) for row in rows])
        allowed = np.unpackbits(words, axis=1, count=logits.shape[-1], bitorder="little")
        logits.masked_fill_(torch.from_numpy(allowed == 0).to(logits.device), -torch.inf)

    def write(self, row: int, token: int) -> bool:
        """Note the next token of a row. Returns whether its grammar allows it."""
        return bool(self._matchers[row].consume_token(token))
