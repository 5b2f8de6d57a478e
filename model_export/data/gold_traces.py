"""Reasoning traces built from gold grades, to train the teacher on: an untrained small model writes none.

Each step carries the grade so far, and only the last one the gold grade. If all steps carried the gold grade, a model
would guess it at the first step and copy it from there.
"""

import math
from collections.abc import Iterator, Sequence

from model_export.data.pairs import GRADES, Finding, Pair
from service.contract.findings import (
    MISSING,
    TITLE_HAS,
    WANTS,
    content_words,
    describe_length,
    name_words,
    words_of,
)
from service.contract.trace import write_step


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
    words = content_words(pair.query)
    title = [word for word in words if word in set(words_of(pair.note.title))]
    everywhere = set(words_of(f"{pair.note.title} {pair.note.body}"))
    missing = [word for word in words if word not in everywhere]
    return (
        Finding(name_words(WANTS, words), GRADES[-1]),
        Finding(name_words(TITLE_HAS, title), _grade_by_share(title, words)),
        Finding(name_words(MISSING, missing), GRADES[-1] - _grade_by_share(missing, words)),
        Finding(describe_length(pair.note.body), pair.label),
    )


def _grade_by_share(some: Sequence[str], all_: Sequence[str]) -> int:
    return math.ceil(GRADES[-1] * len(some) / max(len(all_), 1))
