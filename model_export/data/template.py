"""Prompt templates. A checkpoint chooses the order of criteria, note, query and cue."""

import re
from collections.abc import Mapping
from types import MappingProxyType

from service.contract.template import SlotPiece, Template, TextPiece, VectorTemplate
from service.contract.tokenizer import ContractTokenizer
from service.errors import NotegradeError

DEFAULT_TEMPLATE = "note-first-1"

Pieces = tuple[TextPiece | SlotPiece, ...]

_BOS = TextPiece(text="<bos>")
_BOS_TEMPLATE = "note-first-bos-1"
_QUERY: Pieces = (TextPiece(text="\nQuery:"), SlotPiece(slot="query", lead=" "))
_NOTE: Pieces = (
    TextPiece(text="\nTitle:", only_with="title"),
    SlotPiece(slot="title", lead=" "),
    TextPiece(text="\nNote:"),
    SlotPiece(slot="body", lead=" "),
)


def _chatml(*pair: Pieces) -> Pieces:
    opening = (
        TextPiece(text="<|im_start|>system\n"),
        SlotPiece(slot="criteria"),
        TextPiece(text="<|im_end|>\n<|im_start|>user"),
    )
    # The blank belongs to the cue: tokenizers split it from the following digit. Without it the next token is the blank,
    # and label mass falls to noise.
    return (*opening, *_join(pair), TextPiece(text="<|im_end|>\n<|im_start|>assistant\nGrade: "))


def _plain(*pair: Pieces) -> Pieces:
    return (SlotPiece(slot="criteria"), TextPiece(text="\n"), *_join(pair), TextPiece(text="\nGrade: "))


def _after_bos(pieces: Pieces) -> Pieces:
    """Return the template for bases that were never without a first token: Gemma's loss on text is 4.5 without it and 2.2 with it."""
    return (_BOS, *pieces)


def _join(parts: tuple[Pieces, ...]) -> Pieces:
    return tuple(piece for part in parts for piece in part)


_ALL = (
    Template(name="note-first-1", pieces=_chatml(_NOTE, _QUERY)),
    Template(name="query-first-1", pieces=_chatml(_QUERY, _NOTE)),
    Template(name="note-first-plain-1", pieces=_plain(_NOTE, _QUERY)),
    Template(name="query-first-plain-1", pieces=_plain(_QUERY, _NOTE)),
    Template(name=_BOS_TEMPLATE, pieces=_after_bos(_plain(_NOTE, _QUERY))),
)

TEMPLATES: Mapping[str, Template] = MappingProxyType({template.name: template for template in _ALL})


class TemplateError(NotegradeError):
    """Raised for a template that does not exist or that the base's tokenizer does not support."""


def find_template(name: str) -> Template:
    """Return the template of that name. Raises TemplateError listing the names that exist."""
    try:
        return TEMPLATES[name]
    except KeyError:
        raise TemplateError(f"no template {name!r}: choose one of {', '.join(TEMPLATES)}") from None


def default_template(tokenizer: ContractTokenizer) -> Template:
    """Return the template for a base without training: the one with `<bos>` where its tokenizer has one."""
    return find_template(_BOS_TEMPLATE if _has_bos(tokenizer) else DEFAULT_TEMPLATE)


def _has_bos(tokenizer: ContractTokenizer) -> bool:
    return len(tokenizer.encode_template(_BOS.text)) == 1


def vector_template(template: Template, block: int) -> VectorTemplate:
    """Return the template whose prompts have vectors in place of the note.

    Its cue is the blank at the end of the template's cue, one token, because every pair computes the cue again (decision 35).
    """
    others = tuple(piece for piece in template.pieces[:-1] if piece not in _NOTE)
    opening = tuple(piece for piece in template.pieces[:1] if piece == _BOS)
    return VectorTemplate(
        name=f"{template.name}-vectors",
        note=(*opening, *_NOTE),
        prefix=(*others, TextPiece(text="\nNote:")),
        padding="\n",
        block=block,
        cue=" ",
    )


def check_control_tokens(template: Template, tokenizer: ContractTokenizer) -> None:
    """Check that the base's tokenizer has each `<|...|>` and `<bos>` of the template as one token, and the template its `<bos>`.

    Raises TemplateError naming the first that it spells out as text, or the template to choose.
    """
    if _has_bos(tokenizer) and template.pieces[0] != _BOS:
        raise TemplateError(
            f"this base expects {_BOS.text} before every text, and the template {template.name} does not begin with it: "
            f"choose {_BOS_TEMPLATE}"
        )
    for piece in template.pieces:
        for control in re.findall(r"<\|\w+\|>|<bos>", piece.text) if isinstance(piece, TextPiece) else ():
            if len(tokenizer.encode_template(control)) != 1:
                raise TemplateError(
                    f"template {template.name} uses {control}, which this base's tokenizer does not know: "
                    "choose a plain-text template, such as note-first-plain-1"
                )
