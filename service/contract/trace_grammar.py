"""The grammar of an explanation: it has the steps of its criteria, and each of its citations is true.

llguidance reads it, in the service's engine and in the trainer, so that a model writes no other explanation. Its dialect of
Lark: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md. A text that the prompt cut off may be cited too.
"""

import json
import re
from collections.abc import Sequence

from service.contract.citations import CitedField, cite, cite_missing, words_of
from service.contract.prompt import Note
from service.contract.trace import write_step
from service.contract.words import SPACED

_MAX_QUOTED_WORDS = 16
# Citations and characters of free text in a finding: a model that repeats itself must come to an end.
_MAX_PARTS = 100
# Whole words, and all other characters one by one: a quote of chunks cuts no word.
_CHUNK = re.compile(rf"{SPACED}+|.")
_MAX_CHUNKS = 2000  # of a field, from its start: more than a prompt holds


def trace_grammar(steps: Sequence[str], top_grade: int, query: str, note: Note) -> str:
    """Return the grammar of explanations with a step for each of `steps`, with any grades up to the top one.

    Query and note are canonical texts. A finding has citations and free text, which is not checked and has no `"` and no `>`.
    Without steps nothing may be written.
    """
    names = [f"STEP_{number}" for number in range(len(steps))]
    lines = [f"{name}: {_line(step, top_grade)}" for name, step in zip(names, steps, strict=True)]
    return "\n".join([f"start: {' '.join(names) or _literal('')}", *lines, *_findings(query, note)])


def _line(step: str, top_grade: int) -> str:
    written = [write_step(step, "\0", grade).split("\0") for grade in range(top_grade + 1)]
    ends = " | ".join(_literal(end) for _, end in written)
    return f"{_literal(written[0][0])} FINDING ({ends})"


def _findings(query: str, note: Note) -> list[str]:
    parts, rules = [r'/[^">\n]/'], []  # no arrow, which would look like another grade
    fields: dict[CitedField, str] = {"query": query, "title": note.title, "body": note.body}
    for lead, text in fields.items():
        if chunks := _CHUNK.findall(text)[:_MAX_CHUNKS]:
            rules.append(f"{lead.upper()}: %regex {json.dumps({'substring_chunks': chunks})}")
            parts.append(_around(cite(lead, "\0"), f"({lead.upper()} & QUOTED)"))
    noted = {*words_of(note.title), *words_of(note.body)}
    if missing := [word for word in dict.fromkeys(words_of(query)) if word not in noted]:
        rules.append(f"MISSING: {' | '.join(map(_literal, missing))}")
        words = f'MISSING (" " MISSING){{0,{_MAX_QUOTED_WORDS - 1}}}'
        parts.append(_around(cite_missing("\0"), words))
    return [
        rf'QUOTED: /[^"\s]+( [^"\s]+){{0,{_MAX_QUOTED_WORDS - 1}}}/',
        *rules,
        f"FINDING: ({' | '.join(parts)}){{0,{_MAX_PARTS}}}",
    ]


def _around(written: str, inner: str) -> str:
    before, after = written.split("\0")
    return f"{_literal(before)} {inner} {_literal(after)}"


def _literal(text: str) -> str:
    return json.dumps(text)
