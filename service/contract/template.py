"""Prompt templates: pieces of literal text and slots for the texts of a pair."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Slot = Literal["criteria", "query", "title", "body"]
Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Strict(BaseModel):
    """A frozen part of the manifest that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TextPiece(Strict):
    """Literal template text. With `only_with`, it is rendered only if that slot's text is not empty."""

    text: str = Field(min_length=1)
    only_with: Literal["title", "body"] | None = None


class SlotPiece(Strict):
    """A placeholder for text. `lead`, usually a space, is encoded together with the text that follows it."""

    slot: Slot
    lead: str = ""


class Template(Strict):
    """The prompt as an ordered list of pieces. The last piece is the cue; the label is the token after it."""

    name: Name
    pieces: tuple[TextPiece | SlotPiece, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _slots_are_whole(self) -> Self:
        slots = [piece.slot for piece in self.pieces if isinstance(piece, SlotPiece)]
        if sorted(slots) != ["body", "criteria", "query", "title"]:
            raise ValueError(f"the template needs each of criteria, query, title, body once, and has {slots}")
        if not isinstance(self.pieces[-1], TextPiece) or self.pieces[-1].only_with:
            raise ValueError("the template must end with a cue: literal text that is always rendered")
        return self

    @property
    def cue(self) -> str:
        """Return the literal text at the end of the prompt that asks for the grade."""
        tail = self.pieces[-1]
        assert isinstance(tail, TextPiece)  # noqa: S101 - the validator guarantees it
        return tail.text


class VectorTemplate(Strict):
    """The prompt of a note that is read as vectors: prefix, padding, the note's vectors, cue; the label is the token after it.

    Attributes:
        note: what the encoder reads, pieces with the slots title and body.
        prefix: what all notes of a query share, pieces with the slots criteria and query.
        padding: a text of one token, repeated after the prefix until its length is a multiple of `block`: an engine keeps
            whole blocks, so that no token of the prefix is computed for every note.
    """

    name: Name
    note: tuple[TextPiece | SlotPiece, ...]
    prefix: tuple[TextPiece | SlotPiece, ...]
    padding: str = Field(min_length=1)
    block: int = Field(ge=1)
    cue: str = Field(min_length=1)

    @model_validator(mode="after")
    def _slots_are_whole(self) -> Self:
        for name, pieces, expected in (
            ("note", self.note, ["body", "title"]),
            ("prefix", self.prefix, ["criteria", "query"]),
        ):
            slots = sorted(piece.slot for piece in pieces if isinstance(piece, SlotPiece))
            if slots != expected:
                raise ValueError(f"{name} needs each of {', '.join(expected)} once, and has {slots}")
        return self
