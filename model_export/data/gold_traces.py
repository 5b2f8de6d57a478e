"""Reasoning traces built from gold grades and criteria, for the warm-up: what no small model writes untaught.

Each step carries the grade so far, so that the steps have something to decide and the last one to conclude: were
all of them gold, a model would guess at the first and copy from there on.
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
    """The steps' lines, the last of which carries the gold grade.

    Findings are the data's own where it has them, else what the words alone say: what is wanted, which of it the
    title has, what is missing from title and body, how much there is to read.
    """
    found = zip(steps, _findings(pair, steps), strict=True)
    return "".join(write_step(step, finding.text, finding.grade) for step, finding in found)


def _findings(pair: Pair, steps: Sequence[str]) -> Iterator[Finding]:
    evidence = _read_off(pair)
    for index, step in enumerate(steps):
        finding = pair.findings.get(step) or evidence[index % len(evidence)]
        yield Finding(finding.text, pair.label) if index == len(steps) - 1 else finding


def _read_off(pair: Pair) -> tuple[Finding, Finding, Finding, Finding]:
    words = _content_words(pair.query)
    title = [word for word in words if word in set(_words(pair.note.title))]
    everywhere = set(_words(f"{pair.note.title} {pair.note.body}"))
    missing = [word for word in words if word not in everywhere]
    return (
        Finding(_listed("wants", words), GRADES[-1]),
        Finding(_listed("title has", title), _grade_by_share(title, words)),
        Finding(_listed("missing", missing), GRADES[-1] - _grade_by_share(missing, words)),
        Finding(_amount(pair.note.body), pair.label),
    )


def _grade_by_share(some: Sequence[str], all_: Sequence[str]) -> int:
    return math.ceil(GRADES[-1] * len(some) / max(len(all_), 1))


def _words(text: str) -> list[str]:
    # Overlapping bigrams would repeat each character in the trace.
    return list(split_words(text.casefold(), cjk_characters=1))


def _content_words(query: str) -> list[str]:
    words = list(dict.fromkeys(_words(query)))
    return [word for word in words if word not in _STOP_WORDS] or words


def _listed(lead: str, words: Sequence[str]) -> str:
    return f"{lead} {' '.join(words[:_MOST_WORDS]) or 'nothing'}"


def _amount(body: str) -> str:
    count = len(body.split())
    return (
        "much to read"
        if count >= _LONG_BODY
        else "little to read"
        if count >= _SOME_BODY
        else "nothing to read"
    )
