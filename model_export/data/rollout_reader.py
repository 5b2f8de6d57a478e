"""Parses the trace in a completion, and finds where each of its tokens is."""

from collections.abc import Sequence
from dataclasses import dataclass

from model_export.data.pairs import GRADES
from service.contract.tokenizer import ContractTokenizer
from service.contract.trace import Trace, parse_trace


@dataclass(frozen=True, slots=True)
class Rollout:
    """A completion that was read.

    Attributes:
        spans: where each token starts and ends in the decoded text, in characters, the end token included.
        trace: its steps and answer; None where it does not parse or was truncated.
    """

    spans: tuple[tuple[int, int], ...]
    trace: Trace | None


@dataclass(frozen=True, slots=True)
class RolloutReader:
    """Reads completions of one tokenizer. A complete one ends with `end_token_id`."""

    tokenizer: ContractTokenizer
    end_token_id: int

    def read(self, token_ids: Sequence[int], criteria: Sequence[str]) -> Rollout:
        """Read a completion, without padding, whose steps must follow these criteria."""
        text, ends = self.tokenizer.decode_with_ends(token_ids)
        whole = bool(token_ids) and token_ids[-1] == self.end_token_id
        # A control token inside the trace is invisible in the text, and makes it invalid.
        whole = whole and self.tokenizer.decode(token_ids[:-1]) == text
        trace = parse_trace(text, criteria, GRADES[-1]) if whole else None
        return Rollout(tuple(zip((0, *ends), ends, strict=False)), trace)
