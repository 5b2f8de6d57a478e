"""Finds the evidence that a model's grade rests on, by occlusion: it removes spans and sees how much the expected grade moves.

Source: Zeiler and Fergus, Visualizing and understanding convolutional networks, ECCV 2014 (arXiv 1311.2901), on spans of text.
A trace has three steps, whatever the criteria call them:
  asked    the span of the query whose removal moves the grade most
  for      the span of the note whose removal lowers the grade most
  against  the span of the note whose removal raises it most, or words of the query that the note lacks; nothing at the top grade
Spans are of what the prompt holds of the note; missing words are in no part of it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from model_export.data.pairs import GRADES, DataError, Pair
from model_export.data.prompting import Prompting
from model_export.data.soft_labels import SoftLabel
from model_export.data.spans import cut, spans_of
from model_export.recipe_stages import EvidenceConfig
from model_export.teacher.rollout import Sampler
from service.contract.citations import NOTHING, CitedField, cite, cite_missing, words_of
from service.contract.manifest import Criteria
from service.contract.trace import write_step

_STEPS = 3
_NO_CONTENT = (
    "a an and are as at be by can do does for from has how i in is it its me my of on or that the this to was what when "
    "where which who why will with you your"
)
# Chinese is compared by characters: these are particles, pronouns and parts of question words.
_NO_CONTENT_ZH = "的了吗呢吧啊么嘛是在有和与或什怎如何哪为我你这那"
_STOP_WORDS = frozenset((*_NO_CONTENT.split(), *_NO_CONTENT_ZH))


@dataclass(frozen=True, slots=True)
class _Cut:
    """A pair with a span of one of its texts removed."""

    field: CitedField
    text: str
    pair: Pair


@dataclass(frozen=True, slots=True)
class _Occluded:
    """A pair, its cuts, and (1 + cuts, grades) probabilities of the whole pair and without each cut."""

    pair: Pair
    cuts: Sequence[_Cut]
    probabilities: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Effect:
    """How a cut changes the model's grade: `lost` of the expected grade, and the most probable `grade` without the span."""

    cut: _Cut
    lost: float
    grade: int


def find_evidence(
    pairs: Sequence[Pair], prompting: Prompting, sampler: Sampler, config: EvidenceConfig
) -> list[SoftLabel]:
    """Return a trace for every grade of each pair, in order. Raises DataError for other than three steps.

    A served grade need not be the most probable one. A student that learns traces of probable grades alone infers the grade
    from the texts, and then explains another one than is served.
    """
    check_steps(prompting.form.criteria, pairs)
    cuts = [list(_cuts(prompting.visible(pair), config)) for pair in pairs]
    prompts = [
        [prompting.student_prompt(each) for each in (pair, *(cut.pair for cut in own))]
        for pair, own in zip(pairs, cuts, strict=True)
    ]
    # A pair's prompts share most of their tokens, so they are read together.
    by_length = sorted(range(len(pairs)), key=lambda number: len(prompts[number][0]))
    sequences = [prompt for number in by_length for prompt in prompts[number]]
    rows = iter(sampler.distributions(sequences, config.batch_size, in_order=True)[0])
    read = {number: torch.stack([next(rows) for _ in prompts[number]]) for number in by_length}
    probabilities = [read[number] for number in range(len(pairs))]
    occluded = map(_Occluded, pairs, cuts, probabilities)
    return [_evidence(each, prompting, config) for each in occluded]


def check_steps(criteria: Iterable[Criteria], pairs: Iterable[Pair]) -> None:
    """Raise DataError where the criteria of one of the pairs have other than three steps."""
    used = {pair.criteria for pair in pairs}
    for each in criteria:
        if each.name in used and len(each.steps) != _STEPS:
            raise DataError(
                f"criteria {each.name}: traces by evidence have three steps (asked, for, against): state three, or findings "
                "in the data"
            )


def _cuts(pair: Pair, config: EvidenceConfig) -> Iterator[_Cut]:
    fields: tuple[tuple[CitedField, str], ...] = (
        ("query", pair.query),
        ("title", pair.note.title),
        ("body", pair.note.body),
    )
    for field, text in fields:
        spans = spans_of(text, config.words)[: config.spans]
        if field == "query" and len(spans) == 1:
            continue  # the only span needs no comparison
        for span in spans:
            yield _Cut(field, text[slice(*span)], cut(pair, field, span))


def _evidence(occluded: _Occluded, prompting: Prompting, config: EvidenceConfig) -> SoftLabel:
    pair, probabilities = occluded.pair, occluded.probabilities
    expected = probabilities @ torch.arange(len(GRADES), dtype=probabilities.dtype)
    lost, grades = expected[0] - expected[1:], probabilities[1:].argmax(-1)
    effects = [_Effect(*each) for each in zip(occluded.cuts, lost.tolist(), grades.tolist(), strict=True)]
    noted = [each for each in effects if each.cut.field != "query"]
    asked, favour = _asked(pair, effects, config.words), _favour(noted, config.min_effect)

    def trace(grade: int) -> str:
        objection, possible = _objection(pair, noted, grade, config)
        findings = (
            (asked, GRADES[-1]),
            (favour, grade if favour == NOTHING else possible),
            (objection, grade),
        )
        steps = zip(prompting.steps(pair.criteria), findings, strict=True)
        return "".join(write_step(name, *finding) for name, finding in steps)

    return SoftLabel(pair.id, tuple(probabilities[0].tolist()), {grade: trace(grade) for grade in GRADES})


def _asked(pair: Pair, effects: Sequence[_Effect], words: int) -> str:
    """Cite the span of the query whose removal moves the grade most; an only span was not removed."""
    in_query = [each for each in effects if each.cut.field == "query"]
    if in_query:
        return cite("query", max(in_query, key=lambda each: abs(each.lost)).cut.text)
    only = spans_of(pair.query, words)[:1]
    return cite("query", pair.query[slice(*only[0])]) if only else NOTHING


def _favour(noted: Sequence[_Effect], min_effect: float) -> str:
    """Cite the span of the note whose removal lowers the grade most."""
    favour = max(noted, key=lambda each: each.lost, default=None)
    if favour is None or favour.lost < min_effect:
        return NOTHING
    return cite(favour.cut.field, favour.cut.text)


def _objection(pair: Pair, noted: Sequence[_Effect], grade: int, config: EvidenceConfig) -> tuple[str, int]:
    """Cite what keeps the pair from the top grade, and return the grade that it could have without that."""
    if grade == GRADES[-1]:
        return NOTHING, grade
    against = min(noted, key=lambda each: each.lost, default=None)
    if against is not None and against.lost <= -config.min_effect:
        return cite(against.cut.field, against.cut.text), max(grade, against.grade)
    if missing := _missing_words(pair)[: config.words]:
        return cite_missing(" ".join(missing)), GRADES[-1]
    return NOTHING, grade


def _missing_words(pair: Pair) -> list[str]:
    """Return the content words of the query that the note lacks, each once."""
    noted = {*words_of(pair.note.title), *words_of(pair.note.body)}
    return [word for word in dict.fromkeys(words_of(pair.query)) if word not in _STOP_WORDS | noted]
