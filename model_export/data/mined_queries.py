"""The queries of a source to mine notes for: its training queries, and the titles of its notes."""

import re
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from model_export.data.bm25 import tokenize
from model_export.data.pairs import Pair, fold_query, query_hash
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
    judged: dict[str, set[str]] = {}
    spelling: dict[str, str] = {}
    for pair in pairs:
        folded, text = fold_query(pair.query), canonicalize(f"{pair.note.title} {pair.note.body}")
        notes.setdefault(text, pair.note)
        judged.setdefault(folded, set()).add(text)
        spelling.setdefault(folded, pair.query)
    number_of = {text: number for number, text in enumerate(notes)}
    refused: Counter[str] = Counter()
    queries = []
    for folded, texts in judged.items():
        if query_hash(folded) in measured:
            refused["training query is in dev or test"] += 1
        else:
            queries.append(MinedQuery(spelling[folded], frozenset(number_of[text] for text in texts)))
    titles: dict[str, MinedQuery] = {}
    for number, note in enumerate(notes.values()):
        title = note.title or _first_sentence(note.body)
        folded = fold_query(title)
        if reason := _reason_against(title, measured, most_bytes):
            refused[reason] += 1
        elif folded in judged:
            refused["title is a training query"] += 1
        elif folded in titles:
            refused["title is repeated"] += 1
        else:
            titles[folded] = MinedQuery(title, frozenset({number}), number)
    return SourceQueries(notes, tuple(queries), tuple(titles.values()), refused)


def _reason_against(title: str, measured: Container[str], most_bytes: int) -> str | None:
    if query_hash(title) in measured:
        return "title is a dev or test query"
    # No tokenizer makes more tokens than bytes, so that the model accepts the query.
    if len(title.encode()) > most_bytes:
        return "title is too long"
    if len(tokenize(title)) < _LEAST_WORDS:
        return "title is too short"
    return None


def _first_sentence(text: str) -> str:
    return _SENTENCE_END.split(text, maxsplit=1)[0]
