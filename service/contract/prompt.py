"""Renders a pair into the prompt's token ids, by the manifest's template."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from service.contract.manifest import Criteria, Limits
from service.contract.template import Slot, SlotPiece, Template, TextPiece
from service.contract.tokenizer import ContractTokenizer, EncodedText
from service.errors import BadField, InvalidRequestError


@dataclass(frozen=True, slots=True)
class Note:
    """The document to judge, in canonical text. A note without a title has the empty title."""

    title: str
    body: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """The prompt's token ids, which end with the cue, and whether the note was truncated to its limit."""

    token_ids: tuple[int, ...]
    truncated: bool


class PromptForm(Protocol):
    """The parts of a manifest that define a prompt; the trainer has them before it has a manifest."""

    @property
    def template(self) -> Template: ...
    @property
    def criteria(self) -> tuple[Criteria, ...]: ...
    @property
    def limits(self) -> Limits: ...


class EncodedPieces:
    """The pieces of a template, whose literal text is encoded once."""

    def __init__(self, pieces: Sequence[TextPiece | SlotPiece], tokenizer: ContractTokenizer) -> None:
        self._pieces = pieces
        self._leads = {piece.slot: piece.lead for piece in pieces if isinstance(piece, SlotPiece)}
        self._text_pieces = [piece for piece in pieces if isinstance(piece, TextPiece)]
        self._literals = {piece.text: tokenizer.encode_template(piece.text) for piece in self._text_pieces}

    def lead(self, slot: Slot) -> str:
        """Return the text that is encoded together with the slot's text."""
        return self._leads[slot]

    def with_lead(self, slot: Slot, text: str) -> str:
        """Return what to encode for a slot: nothing for an empty text."""
        return self._leads[slot] + text if text else ""

    def note_texts(self, notes: Sequence[Note]) -> list[str]:
        """Return what to encode for each note's title and body, one after the other."""
        both = ((self.with_lead("title", note.title), self.with_lead("body", note.body)) for note in notes)
        return [text for texts in both for text in texts]

    def count_literal_tokens(self, *, required: bool = False) -> int:
        """Count the tokens of the literal text, or of that which every prompt has."""
        # By piece, not by text: a template may repeat a text.
        pieces = (piece for piece in self._text_pieces if not (required and piece.only_with))
        return sum(len(self._literals[piece.text]) for piece in pieces)

    def join(self, slots: Mapping[Slot, Sequence[int]]) -> tuple[int, ...]:
        """Return the token ids of all pieces, with these token ids in the slots."""
        token_ids: list[int] = []
        for piece in self._pieces:
            if isinstance(piece, SlotPiece):
                token_ids += slots[piece.slot]
            elif piece.only_with is None or slots[piece.only_with]:
                token_ids += self._literals[piece.text]
        return tuple(token_ids)


def cut_note(
    title: EncodedText, body: EncodedText, most: int
) -> tuple[tuple[int, ...], tuple[int, ...], bool]:
    """Return the first `most` tokens of title and body together, and whether any were left out."""
    title_ids = title.head(most)
    body_ids = body.head(most - len(title_ids))
    return title_ids, body_ids, len(title_ids) + len(body_ids) < len(title.token_ids) + len(body.token_ids)


def check_query(query: EncodedText, limit: int) -> tuple[int, ...]:
    """Return the query's token ids. Raises InvalidRequestError when they are more than the limit."""
    found = len(query.token_ids)
    if found > limit:
        message = f"the query has {found:,} tokens, limit {limit:,}"
        raise InvalidRequestError(message, [BadField("query", message)])
    return query.token_ids


class PromptRenderer:
    """Inserts user text, which never becomes a special token, between template pieces that are encoded once.

    Only the end of the note is ever truncated, never the criteria, the query or the cue: without the cue
    the next token is prose and the label mass falls to noise.
    """

    def __init__(self, form: PromptForm, tokenizer: ContractTokenizer) -> None:
        self._limits = {criteria.name: criteria.limits or form.limits for criteria in form.criteria}
        self._tokenizer = tokenizer
        self._pieces = EncodedPieces(form.template.pieces, tokenizer)
        self._criteria = {
            criteria.name: tokenizer.encode_template(self._pieces.lead("criteria") + criteria.text)
            for criteria in form.criteria
        }
        self.default_criteria = form.criteria[0].name

    @property
    def criteria_names(self) -> tuple[str, ...]:
        """Return the names of the criteria that a request may choose, the default first."""
        return tuple(self._criteria)

    def choose_criteria(self, name: str | None) -> str:
        """Return this name, or the default's without one. Raises InvalidRequestError listing the names that exist."""
        if name is None:
            return self.default_criteria
        if name not in self._criteria:
            message = f"this checkpoint has no such criteria; it has {', '.join(self._criteria)}"
            raise InvalidRequestError(message, [BadField("criteria", message)])
        return name

    def limits(self, criteria: str) -> Limits:
        """Return the limits of query and note under these criteria."""
        return self._limits[criteria]

    def overhead_tokens(self, criteria: str) -> int:
        """Count the tokens that every prompt with these criteria has, whatever its query and note."""
        return self._pieces.count_literal_tokens(required=True) + len(self._criteria[criteria])

    @property
    def max_prompt_tokens(self) -> int:
        """Return the length in tokens of the longest prompt that `render` can return."""
        slots = (
            len(token_ids) + self._limits[name].max_query_tokens + self._limits[name].max_note_tokens
            for name, token_ids in self._criteria.items()
        )
        return self._pieces.count_literal_tokens() + max(slots)

    def render(self, query: str, notes: Sequence[Note], criteria: str) -> list[Prompt]:
        """Return one prompt per note, in order. The texts must be canonical.

        Blocks while it tokenizes, about 0.1 ms a note: call it in a thread, not on the event loop.
        Raises InvalidRequestError when the query has more tokens than its limit.
        """
        texts = [self._pieces.with_lead("query", query), *self._pieces.note_texts(notes)]
        encoded = self._tokenizer.encode_user_texts(texts)
        query_ids = check_query(encoded[0], self._limits[criteria].max_query_tokens)
        pairs = zip(encoded[1::2], encoded[2::2], strict=True)
        return [self._render_one(criteria, query_ids, title, body) for title, body in pairs]

    def cut(self, notes: Sequence[Note], max_tokens: int) -> list[Note]:
        """Return the notes, each cut to at most `max_tokens` tokens of title and body together. The texts must be canonical.

        Blocks while it tokenizes, as `render` does.
        """
        while True:
            encoded = self._tokenizer.encode_user_texts(self._pieces.note_texts(notes))
            triples = zip(notes, encoded[::2], encoded[1::2], strict=True)
            cut = [self._cut_one(note, title, body, max_tokens) for note, title, body in triples]
            if cut == list(notes):
                return cut
            notes = cut  # encoded alone, the start of a text may have more tokens than as a part of it

    def _cut_one(self, note: Note, title: EncodedText, body: EncodedText, max_tokens: int) -> Note:
        left = max_tokens - len(title.head(max_tokens))
        return Note(
            self._head("title", note.title, title, max_tokens), self._head("body", note.body, body, left)
        )

    def _head(self, slot: Slot, text: str, encoded: EncodedText, max_tokens: int) -> str:
        if len(encoded.token_ids) <= max_tokens:
            return text
        return text[: max(encoded.head_chars(max_tokens) - len(self._pieces.lead(slot)), 0)]

    def _render_one(
        self, criteria: str, query: tuple[int, ...], title: EncodedText, body: EncodedText
    ) -> Prompt:
        title_ids, body_ids, truncated = cut_note(title, body, self._limits[criteria].max_note_tokens)
        slots: dict[Slot, tuple[int, ...]] = {"criteria": self._criteria[criteria], "query": query}
        return Prompt(self._pieces.join({**slots, "title": title_ids, "body": body_ids}), truncated)
