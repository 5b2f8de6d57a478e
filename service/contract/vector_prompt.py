"""Renders what the encoder reads of a note, and the prompt in which the note's vectors take the place of its text.

Source: MixLM (arXiv 2512.07846), which reads an item as one to fifty vectors in the model's embedding space.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from service.contract.manifest import Criteria, Limits
from service.contract.prompt import EncodedPieces, Note, check_query, cut_note
from service.contract.template import VectorTemplate
from service.contract.tokenizer import ContractTokenizer
from service.errors import ManifestError


@dataclass(frozen=True, slots=True)
class EncoderInput:
    """The token ids of a note, and whether it was truncated to the encoder's limit."""

    token_ids: tuple[int, ...]
    truncated: bool


@dataclass(frozen=True, slots=True)
class NoteVectors:
    """The vectors of a note: `rows` of little-endian float16, and whether the note was truncated when they were made."""

    rows: bytes
    truncated: bool = False

    def count(self, width: int) -> int:
        """Return how many vectors of this width there are."""
        return len(self.rows) // (2 * width)


@dataclass(frozen=True, slots=True)
class VectorPrompt:
    """A prompt in which a note's vectors, `rows` as in `NoteVectors`, stand between two runs of token ids."""

    prefix: tuple[int, ...]
    rows: bytes
    cue: tuple[int, ...]


class VectorRenderer:
    """Inserts user text, which never becomes a special token, between template pieces that are encoded once."""

    def __init__(
        self,
        template: VectorTemplate,
        criteria: Sequence[Criteria],
        limits: Limits,
        max_note_tokens: int,
        tokenizer: ContractTokenizer,
    ) -> None:
        """`limits` are those of criteria without their own. Raises ManifestError when the padding is not one token."""
        self._tokenizer = tokenizer
        self._note = EncodedPieces(template.note, tokenizer)
        self._prefix = EncodedPieces(template.prefix, tokenizer)
        self._max_note_tokens = max_note_tokens
        self._block = template.block
        self._padding = tokenizer.encode_template(template.padding)
        if len(self._padding) != 1:
            raise ManifestError(
                f"the padding {template.padding!r} must be one token, not {len(self._padding)}"
            )
        self._max_query_tokens = {each.name: (each.limits or limits).max_query_tokens for each in criteria}
        self._criteria = {
            each.name: tokenizer.encode_template(self._prefix.lead("criteria") + each.text)
            for each in criteria
        }
        self.cue = tokenizer.encode_template(template.cue)

    @property
    def max_prefix_tokens(self) -> int:
        """Return the length in tokens of the longest prefix."""
        literal = self._prefix.count_literal_tokens()
        longest = max(len(ids) + self._max_query_tokens[name] for name, ids in self._criteria.items())
        return self._padded(literal + longest)

    def prefix(self, query: str, criteria: str) -> tuple[int, ...]:
        """Return the token ids before the vectors, a multiple of the template's block. The text must be canonical.

        Raises InvalidRequestError when the query has more tokens than its limit.
        """
        [encoded] = self._tokenizer.encode_user_texts([self._prefix.with_lead("query", query)])
        query_ids = check_query(encoded, self._max_query_tokens[criteria])
        joined = self._prefix.join({"criteria": self._criteria[criteria], "query": query_ids})
        return joined + self._padding * (self._padded(len(joined)) - len(joined))

    def notes(self, notes: Sequence[Note]) -> list[EncoderInput]:
        """Return what the encoder reads of each note. The texts must be canonical. Blocks while it tokenizes."""
        encoded = self._tokenizer.encode_user_texts(self._note.note_texts(notes))
        found = []
        for title, body in zip(encoded[::2], encoded[1::2], strict=True):
            title_ids, body_ids, truncated = cut_note(title, body, self._max_note_tokens)
            found.append(EncoderInput(self._note.join({"title": title_ids, "body": body_ids}), truncated))
        return found

    def _padded(self, tokens: int) -> int:
        return -(-tokens // self._block) * self._block
