"""The queries of a source to mine notes for: its training queries, and the titles of its notes."""

import re
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass

from model_export.data.bm25 import tokenize
from model_export.data.pairs import Pair, fold_query, folded_query, query_hash
from model_export.data.sampling import group
from service.contract.prompt import Note
from service.contract.text import canonicalize

# Fewer are chat or headings ("Thanks!", "Description"), or a title that was cut.
_LEAST_WORDS = 2
_SENTENCE_END = re.compile(r"(?<=[.!?])\s|(?<=[。！？])")


@dataclass(frozen=True, slots=True)
class MinedQuery:
    """A query to mine notes for.

    Attributes:
        known: numbers of the notes that nothing is mined for: those it is judged with, or a title's own note.
        own: number of the note that has this title; None for training queries.
    """

    text: str
    known: frozenset[int]
    own: int | None = None


@dataclass(frozen=True, slots=True)
class SourceQueries:
    """The queries of one source.

    Attributes:
        notes: the distinct notes of its pairs, by their text; their positions are the numbers in `MinedQuery`.
        judged: its training queries.
        titles: titles of its notes.
        refused: how many queries were refused, by reason.
    """

    notes: Mapping[str, Note]
    judged: tuple[MinedQuery, ...]
    titles: tuple[MinedQuery, ...]
    refused: Counter[str]


def queries_of(pairs: Sequence[Pair], measured: Container[str], most_bytes: int) -> SourceQueries:
    """Find the queries of a source's training pairs; a note without a title gives its first sentence.

    Refuses queries whose `query_hash` is in `measured`, and titles of more than `most_bytes` bytes of UTF-8 or one word.
    """
    notes: dict[str, Note] = {}
    for pair in pairs:
        notes.setdefault(_text_of(pair.note), pair.note)
    number_of = {text: number for number, text in enumerate(notes)}
    judged = group(pairs, folded_query)
    found = [*_judged_queries(judged, number_of, measured), *_titles(notes, judged, measured, most_bytes)]
    accepted = [query for query, reason in found if reason is None]
    return SourceQueries(
        notes,
        tuple(query for query in accepted if query.own is None),
        tuple(query for query in accepted if query.own is not None),
        Counter(reason for _, reason in found if reason),
    )


def _text_of(note: Note) -> str:
    return canonicalize(f"{note.title} {note.body}")


def _judged_queries(
    judged: Mapping[str, Sequence[Pair]], number_of: Mapping[str, int], measured: Container[str]
) -> Iterator[tuple[MinedQuery, str | None]]:
    """Yield each training query, and the reason against it if there is one."""
    for pairs in judged.values():
        known = frozenset(number_of[_text_of(pair.note)] for pair in pairs)
        refused = query_hash(pairs[0].query) in measured
        yield MinedQuery(pairs[0].query, known), "training query is in dev or test" if refused else None


def _titles(
    notes: Mapping[str, Note], judged: Container[str], measured: Container[str], most_bytes: int
) -> Iterator[tuple[MinedQuery, str | None]]:
    """Yield each note's title, and the reason against it if there is one."""
    seen: set[str] = set()
    for number, note in enumerate(notes.values()):
        title = note.title or _first_sentence(note.body)
        folded = fold_query(title)
        reason = None
        if query_hash(title) in measured:
            reason = "title is a dev or test query"
        elif folded in judged:
            reason = "title is a training query"
        elif folded in seen:
            reason = "title is repeated"
        # No tokenizer makes more tokens than bytes, so that the model accepts the query.
        elif len(title.encode()) > most_bytes:
            reason = "title is too long"
        elif len(tokenize(title)) < _LEAST_WORDS:
            reason = "title is too short"
        seen.add(folded)
        yield MinedQuery(title, frozenset({number}), number), reason


def _first_sentence(text: str) -> str:
    return _SENTENCE_END.split(text, maxsplit=1)[0]
