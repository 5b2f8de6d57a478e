"""Splits texts into spans that a trace can cite, and removes spans from texts."""

import re
from dataclasses import replace

from model_export.data.pairs import Pair
from service.contract.text import canonicalize
from service.contract.words import CJK

Span = tuple[int, int]
# Punctuation of those scripts, around which there are no blanks either.
_OPENING, _CLOSING = "（［【《〈「『", "，。、；：！？）］】》〉」』"
_UNSPACED = f"{CJK}{_OPENING}{_CLOSING}"
# A character of a script without blanks, or a run of others up to the next blank.
_TOKEN = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
_CLAUSE_END = re.compile(rf"[.,;:!?)\]|{_CLOSING}]$")
_CLAUSE_STARTS = f"([{_OPENING}"
_JOINS = re.compile(f"[{_UNSPACED}]")
_EDGES = re.compile(r"^\W+|\W+$")


def spans_of(text: str, most_words: int) -> list[Span]:
    """Return the spans of a canonical text, in order: its clauses, cut into parts of at most `most_words` words.

    Punctuation around a span is left out, and so are words with a double quote, which a citation can't contain.
    """
    found: list[Span] = []
    words: list[Span] = []

    def end() -> None:
        if words:
            first, last = words[0][0], words[-1][1]
            part = text[first:last]
            trimmed = _EDGES.sub("", part)
            if trimmed:
                start = first + part.index(trimmed)
                found.append((start, start + len(trimmed)))
        words.clear()

    for token in _TOKEN.finditer(text):
        if token[0][0] in _CLAUSE_STARTS or '"' in token[0]:
            end()
        if '"' in token[0]:
            continue
        words.append(token.span())
        if len(words) == most_words or _CLAUSE_END.search(token[0]):
            end()
    end()
    return found


def cut(pair: Pair, field: str, span: Span) -> Pair:
    """Return the pair without a span of its `query`, or of its note's `title` or `body`."""
    if field == "query":
        return replace(pair, query=without(pair.query, span))
    return replace(pair, note=replace(pair.note, **{field: without(getattr(pair.note, field), span)}))


def without(text: str, span: Span) -> str:
    """Return the canonical text without the span, and with a blank in its place where the script has blanks."""
    head, tail = text[: span[0]], text[span[1] :]
    blank = "" if _JOINS.match(head[-1:]) or _JOINS.match(tail) else " "
    return canonicalize(f"{head}{blank}{tail}")
