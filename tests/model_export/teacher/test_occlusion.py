"""Evidence by occlusion, with a model whose grade depends on known words."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from model_export.data.gold_traces import is_honest
from model_export.data.pairs import DataError, Pair
from model_export.data.prompting import PromptForm, Prompting
from model_export.data.template import find_template
from model_export.recipe_stages import EvidenceConfig
from model_export.teacher.occlusion import find_evidence
from model_export.teacher.step_mask import right_steps
from service.contract.manifest import Criteria, Limits
from service.contract.prompt import Note
from service.contract.trace import parse_trace
from tests.byte_tokens import TOKENIZER
from tests.word_model import WordModel

STEPS = ("asked", "for", "against")
CRITERIA = (Criteria(name="three", text="x", steps=STEPS), Criteria(name="two", text="y", steps=STEPS[:2]))
[END] = TOKENIZER.encode_template("<|im_end|>")
LIMITS = Limits(max_query_tokens=200, max_note_tokens=400)
PROMPTING = Prompting(PromptForm(find_template("note-first-plain-1"), CRITERIA, LIMITS), TOKENIZER, END)
CONFIG = EvidenceConfig(words=3)


def pair(query: str, title: str, body: str, label: int = 2) -> Pair:
    return Pair("1", query, Note(title, body), label, "made", "three")


def traces_of(made: Pair, model: WordModel, prompting: Prompting = PROMPTING) -> Mapping[int, str]:
    [found] = find_evidence([made], prompting, model, CONFIG)
    assert list(found.traces) == [0, 1, 2, 3]
    assert all(is_honest(steps, grade, made) for grade, steps in found.traces.items())
    return found.traces


def steps_of(made: Pair, model: WordModel, grade: int) -> list[str]:
    return traces_of(made, model)[grade].splitlines()


def test_spans_that_move_the_grade_are_cited() -> None:
    made = pair("quiet cafes", "Lisbon by night", "Bars, and three calm places. A noisy street.")
    assert steps_of(made, WordModel(good=["calm", "Lisbon"], bad=["noisy"]), 2) == [
        'asked: query "quiet cafes" => 3',
        'for: title "Lisbon by night" => 3',
        'against: body "A noisy street" => 2',
    ]


def test_evidence_in_chinese_cites_spans_and_missing_characters() -> None:
    made = pair("怎么找停车的咖啡馆", "里斯本夜车", "店安静，街吵闹。")
    assert steps_of(made, WordModel(good=["安静"], bad=["吵闹"]), 1) == [
        'asked: query "怎么找" => 3',
        'for: body "店安静" => 2',
        'against: body "街吵闹" => 1',
    ]
    lacks = pair("怎么在里斯本停车", "里斯本的咖啡馆", "")
    assert steps_of(lacks, WordModel(good=["里斯本"]), 2)[2] == 'against: missing "停 车" => 2'


def test_part_of_a_long_query_that_moves_the_grade_is_what_is_asked() -> None:
    made = pair("hello all of you, where are the calm cafes", "calm", "")
    assert steps_of(made, WordModel(good=["cafes"]), 2)[0] == 'asked: query "calm cafes" => 3'


def test_missing_words_speak_against_a_note_without_other_objections() -> None:
    made = pair("a quiet cafe with wifi in lisbon", "river cafe", "in Lisbon")
    assert steps_of(made, WordModel(good=["river"]), 2)[1:] == [
        'for: title "river cafe" => 3',
        'against: missing "quiet wifi" => 2',
    ]


def test_nothing_is_cited_where_no_span_matters() -> None:
    made = pair("cafe", "Cafe", "a place")
    assert steps_of(made, WordModel(), 1)[1:] == ["for: nothing => 1", "against: nothing => 1"]


def test_nothing_speaks_against_the_top_grade() -> None:
    made = pair("cafe with wifi", "by the river", "calm")  # the note lacks both words
    assert steps_of(made, WordModel(good=["calm", "river"]), 3)[2] == "against: nothing => 3"


@pytest.mark.parametrize(
    "model", [WordModel(), WordModel(["calm"]), WordModel(["calm", "night"], ["noisy", "street"])]
)
def test_every_step_of_a_trace_for_the_gold_grade_is_right(model: WordModel) -> None:
    """The step mask must not call a step of a perfect trace wrong."""
    made = pair("quiet cafes", "Lisbon by night", "Bars, and three calm places. A noisy street.")
    for grade, steps in traces_of(made, model).items():
        trace = parse_trace(f"{steps}Grade: {grade}", STEPS, 3)
        assert right_steps(trace, replace(made, label=grade), "step") == (True, True, True)


def test_evidence_of_several_pairs_is_that_of_each() -> None:
    model = WordModel(good=["calm", "Lisbon"], bad=["noisy"])
    titles = (
        "Lisbon by night",
        "Oslo",
        "Lisbon for those who work while they travel",
    )  # not in order of length
    body = "Bars, and three calm places. A noisy street."
    pairs = [replace(pair("quiet cafes", title, body), id=title) for title in titles]
    together = find_evidence(pairs, PROMPTING, model, CONFIG)
    alone = [find_evidence([each], PROMPTING, model, CONFIG)[0] for each in pairs]
    assert together == alone
    assert len({each.traces[0] for each in alone}) == 3


class UnsureModel(WordModel):
    """Gives every pair the same distribution."""

    def distributions(
        self, sequences: Sequence[list[int]], *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor([[0.5, 0.0, 0.3, 0.2]] * len(sequences)), torch.ones(len(sequences))


def test_a_trace_of_an_improbable_grade_explains_that_grade() -> None:
    made = pair("quiet cafes", "Lisbon by night", "Bars, and three calm places.")
    [found] = find_evidence([made], PROMPTING, UnsureModel(), CONFIG)
    assert found.distribution == pytest.approx((0.5, 0.0, 0.3, 0.2))
    assert [found.traces[grade].splitlines()[2] for grade in (1, 3)] == [
        'against: missing "quiet cafes" => 1',
        "against: nothing => 3",
    ]


def test_spans_are_limited() -> None:
    model = WordModel()
    body = " ".join(f"word{number}," for number in range(30))
    find_evidence([pair("cafe", "", body)], PROMPTING, model, EvidenceConfig(spans=5))
    assert model.prompts == 1 + 5


def test_only_what_the_prompt_holds_is_evidence_but_no_word_of_the_note_is_missing() -> None:
    limits = Limits(max_query_tokens=200, max_note_tokens=len("A noisy street. "))
    prompting = Prompting(PromptForm(find_template("note-first-plain-1"), CRITERIA, limits), TOKENIZER, END)
    made = pair("quiet cafes", "", "A noisy street. Calm and quiet.")
    # Without "A noisy street" the prompt would have room for "Calm": a grade that rises by this is not that of this prompt.
    traces = traces_of(made, WordModel(good=["Calm"]), prompting)
    assert traces[1].splitlines()[1:] == ["for: nothing => 1", 'against: missing "cafes" => 1']


def test_criteria_with_other_than_three_steps_are_refused() -> None:
    made = replace(pair("cafe", "", "calm"), criteria="two")
    with pytest.raises(DataError, match="criteria two: traces by evidence have three steps"):
        find_evidence([made], PROMPTING, WordModel(), CONFIG)
