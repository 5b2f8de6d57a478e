"""Citations: what a finding quotes from the query or the note, and whether it is there.

    asked: query "k cups" => 3
    for: title "Starbucks Caramel K-Cups" => 3
    against: missing "decaf" => 2

A citation is one of the words `query`, `title`, `body` and `missing`, and a text in double quotes; `missing` names words of the
query that the note lacks. The rest of a finding is free text, which is not checked.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from service.contract.prompt import Note
from service.contract.words import SPACED, split_words

CitedField = Literal["query", "title", "body"]
NOTHING = "nothing"
"""The finding of a step for which neither query nor note has anything to cite."""
_CITATION = re.compile(rf'(?<!{SPACED})(?P<lead>query|title|body|missing) "(?P<text>[^"]*)"')


@dataclass(frozen=True, slots=True)
class Citation:
    """A quoted text.

    Attributes:
        field: the text that is quoted; that of missing words is the query.
        found: whether the citation is true: the text is in its field or, if `missing`, its words are in the query and not in the note.
        span: where the quoted text starts and ends in the finding, in characters.
    """

    field: CitedField
    text: str
    found: bool
    missing: bool
    span: tuple[int, int]


def cite(field: CitedField, text: str) -> str:
    """Write a citation. The text must be canonical and without double quotes."""
    return f'{field} "{text}"'


def cite_missing(words: str) -> str:
    """Write that the note lacks these words of the query."""
    return f'missing "{words}"'


def read_citations(finding: str, query: str, note: Note) -> tuple[Citation, ...]:
    """Return the citations of a finding, in their order. Query and note are canonical texts."""
    fields = {"query": query, "title": note.title, "body": note.body}
    found = []
    for match in _CITATION.finditer(finding):
        lead, text = match["lead"], match["text"]
        is_missing = lead == "missing"
        is_true = _is_missing(text, query, note) if is_missing else locate(text, fields[lead]) is not None
        field: CitedField = "query" if is_missing else lead  # type: ignore[assignment]  # the pattern has no others
        found.append(Citation(field, text, is_true, is_missing, match.span("text")))
    return tuple(found)


def are_true(found: Sequence[bool]) -> bool | None:
    """Return whether all citations were found; None where there are none, so that nothing can be checked."""
    return all(found) if found else None


def locate(text: str, field: str) -> tuple[int, int] | None:
    """Return where a field has the text first, in any case, without cutting a word; None where it has not."""
    uncut = rf"(?<!{SPACED}(?={SPACED})){re.escape(text)}(?!(?<={SPACED}){SPACED})"
    found = re.search(uncut, field, re.IGNORECASE) if text else None
    return found.span() if found else None


def words_of(text: str) -> list[str]:
    """Return the text's words in lower case; of Chinese, Japanese and Korean the characters."""
    # Overlapping bigrams would repeat each character in the trace.
    return list(split_words(text.casefold(), cjk_characters=1))


def _is_missing(text: str, query: str, note: Note) -> bool:
    words, noted = set(words_of(text)), {*words_of(note.title), *words_of(note.body)}
    return bool(words) and words <= set(words_of(query)) and words.isdisjoint(noted)
