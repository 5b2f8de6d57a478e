"""The figures of explanations, worked by hand on a model whose grade depends on known words."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from model_export.data.pairs import Pair
from model_export.data.prompting import PromptForm, Prompting
from model_export.data.template import find_template
from model_export.evaluation.explanations import Explainer, Figures, format_figures, to_json
from model_export.teacher.rollout import Sampling
from service.contract.manifest import Criteria, Limits
from service.contract.prompt import Note
from tests.byte_tokens import TOKENIZER, encode
from tests.word_model import WordModel

STEPS = ("asked", "for", "against")
[END] = TOKENIZER.encode_template("<|im_end|>")
FORM = PromptForm(
    find_template("note-first-plain-1"),
    (Criteria(name="three", text="x", steps=STEPS),),
    Limits(max_query_tokens=200, max_note_tokens=400),
)
PROMPTING = Prompting(FORM, TOKENIZER, END)
# The model gives grade 2 for the word "calm", and 1 without it.
PAIR = Pair(
    "1", "quiet cafes", Note("Lisbon", "three calm places, a view, two old boats"), 2, "shop", "three"
)


def explanation(in_favour: str, grade: int = 2) -> str:
    return (
        f'asked: query "quiet cafes" => 3\nfor: {in_favour} => {grade}\nagainst: missing "quiet" => {grade}\n'
    )


def measure(texts: Sequence[str], pairs: Sequence[Pair] | None = None) -> dict[str, Figures]:
    return measure_by(WordModel(good=["calm"], completions=texts, end=[END]), texts, pairs)


def measure_by(
    model: WordModel,
    texts: Sequence[str],
    pairs: Sequence[Pair] | None = None,
    prompting: Prompting = PROMPTING,
) -> dict[str, Figures]:
    measured = pairs or [
        replace(PAIR, id=str(number), query=f"quiet cafes {number}") for number in range(len(texts))
    ]
    explainer = Explainer(
        prompting, model, Sampling(50, 0.0, 8), lambda probabilities, _: np.argmax(probabilities, axis=1)
    )
    return explainer.measure(measured, 1, lambda *_: None)


def test_good_explanation_is_faithful_and_sufficient() -> None:
    found = measure([explanation('body "three calm places"')])["shop"]
    assert (found.pairs, found.well_formed, found.consistent, found.cites_note) == (1, 1.0, 1.0, 1.0)
    assert (found.grounded, found.all_grounded, found.sufficient) == (1.0, 1.0, 1.0)
    assert found.faithful == pytest.approx(1.0)  # without the span the grade falls by 1, without others by 0


def test_citation_that_does_not_matter_is_neither() -> None:
    found = measure([explanation('body "two old boats"')])["shop"]
    assert found.faithful is not None
    assert found.faithful < 0  # a random span may hold the word that matters
    assert found.sufficient == 0.0


def test_random_spans_are_of_what_the_prompt_holds() -> None:
    seen = "calm, noisy places. "
    prompting = Prompting(
        replace(FORM, limits=Limits(max_query_tokens=200, max_note_tokens=len(seen))), TOKENIZER, END
    )
    pair = replace(PAIR, note=Note("", f"{seen}{'unread ' * 50}"))
    model = WordModel(good=["calm"], bad=["noisy"], completions=[explanation('body "calm"')], end=[END])
    found = measure_by(model, [""], [pair], prompting)["shop"]
    # Each removal moves the grade by 1, but that of "places": a word that is not read would have lowered the mean of others.
    assert found.faithful == pytest.approx(0.5)
    assert found.cites_note == 1.0


def test_false_citations_are_counted_and_not_removed() -> None:
    found = measure([explanation('body "four calm places"'), explanation('body "three calm places"')])["shop"]
    assert found.grounded == pytest.approx(5 / 6)
    assert found.all_grounded == 0.5
    assert found.cites_note == 0.5


def test_malformed_and_inconsistent_explanations_are_counted() -> None:
    texts = [explanation('body "three calm places"', grade=1), "asked: x => 3\n", "no steps"]
    found = measure(texts)["shop"]
    assert found.well_formed == pytest.approx(1 / 3)
    assert found.consistent == 0.0
    assert found.grounded == 1.0


def test_explanations_without_citations_have_no_figures_of_them() -> None:
    found = measure(["no steps"])["shop"]
    assert (found.grounded, found.all_grounded, found.faithful, found.sufficient) == (None, None, None, None)
    assert "| shop | 1 | 0.000 (0.000) | – (–) | 0.000 | 0.000 | – [–, –] | – |" in format_figures(
        {"shop": found}
    )
    assert to_json({"shop": found})["shop"]["faithful_low"] is None


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        (explanation('body "three calm places"'), True),
        (explanation('body "four calm places"'), False),
        (explanation('body "three calm places"', grade=1), True),
        (explanation('body "three calm places"', grade=4), False),
    ],
)
def test_the_model_writes_once_within_the_grammar_and_once_free(text: str, allowed: bool) -> None:
    model = WordModel(good=["calm"], completions=[text], end=[END])
    measure_by(model, [text])
    within, free = model.grammars
    assert within is not None
    assert free is None
    assert all(within.write(0, token) for token in [*encode(text), END]) == allowed


def test_what_it_writes_free_is_counted_apart() -> None:
    false, true = explanation('body "four calm places"'), explanation('body "three calm places"')
    model = WordModel(good=["calm"], completions=[true, true], end=[END])
    model.then = [false, "no steps"]
    found = measure_by(model, [true, true])["shop"]
    assert (found.well_formed, found.grounded, found.consistent) == (1.0, 1.0, 1.0)
    assert found.free_well_formed == 0.5
    assert found.free_grounded == pytest.approx(2 / 3)


def test_figures_are_by_source() -> None:
    pairs = [PAIR, replace(PAIR, id="2", source="forum")]
    found = measure([explanation('body "three calm places"'), "no steps"], pairs)
    assert {source: figures.well_formed for source, figures in found.items()} == {"shop": 1.0, "forum": 0.0}


def test_interval_is_over_queries() -> None:
    texts = [explanation('body "three calm places"'), explanation('body "two old boats"')] * 4
    found = measure(texts)["shop"]
    assert found.faithful_low is not None
    assert found.faithful_high is not None
    assert found.faithful_low < (found.faithful or 0) < found.faithful_high
