"""From a pair to the prompt's token ids, by the template of the manifest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from service.contract.manifest import Criteria, Limits, Slot, SlotPiece, Template, TextPiece
from service.contract.tokenizer import ContractTokenizer, EncodedText
from service.errors import BadField, InvalidRequestError


@dataclass(frozen=True, slots=True)
class Note:
    """The judged document, in canonical text; a missing title is the empty one."""

    title: str
    body: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids that end with the cue, and whether the note lost its tail to the limit."""

    token_ids: tuple[int, ...]
    truncated: bool


class PromptForm(Protocol):
    """What a prompt is made by: a manifest, or what a trainer has before there is one."""

    @property
    def template(self) -> Template: ...
    @property
    def criteria(self) -> tuple[Criteria, ...]: ...
    @property
    def limits(self) -> Limits: ...


class PromptRenderer:
    """Splices user text, encoded so that it stays text, into template pieces that were encoded once.

    Only the note is ever cut (its tail), never the criteria, the query or the cue: without the cue
    the next token is prose, and label mass falls to noise.
    """

    def __init__(self, form: PromptForm, tokenizer: ContractTokenizer) -> None:
        self._limits = form.limits
        self._tokenizer = tokenizer
        self._pieces = form.template.pieces
        self._leads = {piece.slot: piece.lead for piece in self._pieces if isinstance(piece, SlotPiece)}
        self._literals = {
            piece.text: tokenizer.encode_template(piece.text)
            for piece in self._pieces
            if isinstance(piece, TextPiece)
        }
        self._criteria = {
            criteria.name: tokenizer.encode_template(self._leads["criteria"] + criteria.text)
            for criteria in form.criteria
        }
        self.default_criteria = form.criteria[0].name

    @property
    def criteria_names(self) -> tuple[str, ...]:
        """The criteria that a request may name, the default first."""
        return tuple(self._criteria)

    def max_overhead_tokens(self, criteria: str) -> int:
        """Length of a prompt without its query and note, in tokens."""
        return sum(map(len, self._literals.values())) + len(self._criteria[criteria])

    @property
    def max_prompt_tokens(self) -> int:
        """Length of the longest prompt that `render` can make, in tokens."""
        overhead = max(self.max_overhead_tokens(name) for name in self._criteria)
        return overhead + self._limits.max_query_tokens + self._limits.max_note_tokens

    def render(self, query: str, notes: Sequence[Note], criteria: str) -> list[Prompt]:
        """One prompt per note, in order. Texts must be canonical.

        Blocks while it tokenises (about 0.1 ms a note): call it off the event loop.
        Raises InvalidRequestError when the query is over its limit of tokens.
        """
        texts = [self._with_lead("query", query)]
        for note in notes:
            texts += [self._with_lead("title", note.title), self._with_lead("body", note.body)]
        encoded = self._tokenizer.encode_user_texts(texts)
        query_ids = self._checked_query(encoded[0])
        pairs = zip(encoded[1::2], encoded[2::2], strict=True)
        return [self._render_one(criteria, query_ids, title, body) for title, body in pairs]

    def _with_lead(self, slot: Slot, text: str) -> str:
        return self._leads[slot] + text if text else ""

    def _checked_query(self, query: EncodedText) -> tuple[int, ...]:
        found, limit = len(query.token_ids), self._limits.max_query_tokens
        if found > limit:
            message = f"the query has {found:,} tokens, limit {limit:,}"
            raise InvalidRequestError(message, [BadField("query", message)])
        return query.token_ids

    def _render_one(
        self, criteria: str, query: tuple[int, ...], title: EncodedText, body: EncodedText
    ) -> Prompt:
        title_ids = title.head(self._limits.max_note_tokens)
        body_ids = body.head(self._limits.max_note_tokens - len(title_ids))
        slots = {"criteria": self._criteria[criteria], "query": query, "title": title_ids, "body": body_ids}
        token_ids: list[int] = []
        for piece in self._pieces:
            if isinstance(piece, SlotPiece):
                token_ids += slots[piece.slot]
            elif piece.only_with is None or slots[piece.only_with]:
                token_ids += self._literals[piece.text]
        truncated = len(title_ids) + len(body_ids) < len(title.token_ids) + len(body.token_ids)
        return Prompt(tuple(token_ids), truncated)
