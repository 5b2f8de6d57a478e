"""Findings that compare words: what the trainer writes into traces for data without findings, and whether one is true.

A model that learned them writes the same forms. Findings of any other form are free text, which can't be checked.
"""

from collections.abc import Sequence

from service.contract.prompt import Note
from service.contract.words import split_words

WANTS, TITLE_HAS, MISSING = "wants", "title has", "missing"
_NOTHING = "nothing"
_MUCH, _LITTLE, _NOTHING_TO_READ = "much to read", "little to read", "nothing to read"
_LONG_BODY = 30
_SOME_BODY = 8
_MOST_WORDS = 4
_NO_CONTENT = (
    "a an and are as at be by can do does for from has how i in is it its me my of on or that the this to was what when "
    "where which who why will with you your"
)
_STOP_WORDS = frozenset(_NO_CONTENT.split())


def words_of(text: str) -> list[str]:
    """Return the text's words in lower case; of Chinese, Japanese and Korean the characters."""
    # Overlapping bigrams would repeat each character in the trace.
    return list(split_words(text.casefold(), cjk_characters=1))


def content_words(query: str) -> list[str]:
    """Return the query's words, each once, without stop words unless it has no others."""
    words = list(dict.fromkeys(words_of(query)))
    return [word for word in words if word not in _STOP_WORDS] or words


def name_words(lead: str, words: Sequence[str]) -> str:
    """Write the finding `lead` about the first of these words."""
    return f"{lead} {' '.join(words[:_MOST_WORDS]) or _NOTHING}"


def describe_length(body: str) -> str:
    """Write the finding about the length of the note's body."""
    count = len(body.split())
    if count >= _LONG_BODY:
        return _MUCH
    return _LITTLE if count >= _SOME_BODY else _NOTHING_TO_READ


def is_true(finding: str, query: str, note: Note) -> bool | None:
    """Return whether the words that the finding names are where it says; None for free text. Texts are canonical."""
    if finding in (_MUCH, _LITTLE, _NOTHING_TO_READ):
        return finding == describe_length(note.body)
    wanted, title = content_words(query), set(words_of(note.title))
    missing = set(words_of(query)) - title - set(words_of(note.body))
    for lead, right in ((WANTS, set(words_of(query))), (TITLE_HAS, title), (MISSING, missing)):
        if finding.startswith(f"{lead} "):
            named = finding.removeprefix(f"{lead} ")
            return right.isdisjoint(wanted) if named == _NOTHING else right.issuperset(words_of(named))
    return None
