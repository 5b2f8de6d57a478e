"""Reasoning traces built from gold grades, to train the teacher on: an untrained small model writes none.

Each step carries the grade so far, and only the last one the gold grade. If all steps carried the gold grade, a model
would guess it at the first step and copy it from there.
"""

import math
from collections.abc import Iterator, Sequence

from model_export.data.pairs import GRADES, Finding, Pair
from model_export.data.words import split_words
from service.contract.trace import write_step

_NO_CONTENT = (
    "a an and are as at be by can do does for from has how i in is it its me my of on or that the this to was what when "
    "where which who why will with you your"
)
_STOP_WORDS = frozenset(_NO_CONTENT.split())
_MOST_WORDS = 4
_LONG_BODY = 30
_SOME_BODY = 8


def gold_steps(pair: Pair, steps: Sequence[str]) -> str:
    """Return the lines of a trace's steps; the last step carries the gold grade.

    Findings come from the data where it has them. Otherwise they compare words: which words the query has, which of them the
    title has, which are missing from title and body, and how long the body is.
    """
    found = zip(steps, _findings(pair, steps), strict=True)
    return "".join(write_step(step, finding.text, finding.grade) for step, finding in found)


def _findings(pair: Pair, steps: Sequence[str]) -> Iterator[Finding]:
    evidence = _findings_from_words(pair)
    for index, step in enumerate(steps):
        finding = pair.findings.get(step) or evidence[index % len(evidence)]
        yield Finding(finding.text, pair.label) if index == len(steps) - 1 else finding


def _findings_from_words(pair: Pair) -> tuple[Finding, Finding, Finding, Finding]:
    words = _content_words(pair.query)
    title = [word for word in words if word in set(_words(pair.note.title))]
    everywhere = set(_words(f"{pair.note.title} {pair.note.body}"))
    missing = [word for word in words if word not in everywhere]
    return (
        Finding(_name_words("wants", words), GRADES[-1]),
        Finding(_name_words("title has", title), _grade_by_share(title, words)),
        Finding(_name_words("missing", missing), GRADES[-1] - _grade_by_share(missing, words)),
        Finding(_describe_length(pair.note.body), pair.label),
    )


def _grade_by_share(some: Sequence[str], all_: Sequence[str]) -> int:
    return math.ceil(GRADES[-1] * len(some) / max(len(all_), 1))


def _words(text: str) -> list[str]:
    # Overlapping bigrams would repeat each character in the trace.
    return list(split_words(text.casefold(), cjk_characters=1))


def _content_words(query: str) -> list[str]:
    words = list(dict.fromkeys(_words(query)))
    return [word for word in words if word not in _STOP_WORDS] or words


def _name_words(lead: str, words: Sequence[str]) -> str:
    return f"{lead} {' '.join(words[:_MOST_WORDS]) or 'nothing'}"


def _describe_length(body: str) -> str:
    count = len(body.split())
    if count >= _LONG_BODY:
        return "much to read"
    return "little to read" if count >= _SOME_BODY else "nothing to read"
