import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from model_export.data.pairs import GRADES, UNJUDGED, DataError, Pair
from model_export.data.prompting import PromptForm, Prompting, PromptingError, gold_label, teacher_template
from model_export.data.template import TEMPLATES, TemplateError, find_template
from model_export.recipe_stages import EncodeConfig
from model_export.stages import hash_of
from service.contract.manifest import Criteria, Limits
from service.contract.prompt import Note
from service.contract.template import SlotPiece, Template, TextPiece
from service.contract.tokenizer import ContractTokenizer
from tests.byte_tokens import TOKENIZER
from tests.checkpoints import SPECIAL_TOKENS, bos_tokenizer_json

SPECIAL_IDS = [TOKENIZER.encode_template(token)[0] for token in SPECIAL_TOKENS]
END = SPECIAL_IDS[1]
CRITERIA = (
    Criteria(name="stepwise", text="Grade it.", steps=("topic", "quality")),
    Criteria(name="plain", text="Grade."),
)
LIMITS = Limits(max_query_tokens=64, max_note_tokens=48)
PAIR = Pair("1", "green tea", Note("Tea", "Green, black or white."), 2, "made", "stepwise")


def make(template: str = "note-first-plain-1", tokenizer: ContractTokenizer = TOKENIZER) -> Prompting:
    return Prompting(PromptForm(find_template(template), CRITERIA, LIMITS), tokenizer, END)


@pytest.mark.parametrize("template", TEMPLATES)
def test_prompts_differ_only_in_their_cue(template: str) -> None:
    prompting = make(template)
    prompts = prompting.student_prompt(PAIR), prompting.teacher_prompt(PAIR)
    student, teacher = map(TOKENIZER.decode, prompts)
    assert student.endswith("\nGrade: ")
    assert teacher == student.removesuffix("Grade: ") + "Steps:\n"
    assert "Grade it." in student


def test_student_answers_first_and_the_teacher_last() -> None:
    prompting = make()
    student = prompting.student_completion("topic: tea => 3\n", 3)
    teacher = prompting.teacher_completion("topic: tea => 3\n", 2)
    assert student[0] == prompting.label_token_ids[3]
    assert student[-1] == teacher[-1] == END
    assert TOKENIZER.decode(student[:-1]) == "3\nSteps:\ntopic: tea => 3\n"
    assert TOKENIZER.decode(teacher[:-1]) == "topic: tea => 3\nGrade: 2"


def test_student_is_asked_to_explain_by_the_start_of_what_it_learned() -> None:
    prompting = make()
    learned = [*prompting.student_prompt(PAIR), *prompting.student_completion("topic: tea => 3\n", 3)]
    asked = prompting.explanation_prompt(PAIR, 3)
    assert asked == learned[: len(asked)]
    assert TOKENIZER.decode(learned[len(asked) : -1]) == "topic: tea => 3\n"


@pytest.mark.parametrize("finding", ["tea", "nothing", 'title "3 of 2"', "茶 => 2"])
def test_grade_of_the_last_step_is_found_among_other_numbers(finding: str) -> None:
    prompting = make()
    learned = prompting.student_completion(f"topic: 3 => 3\nquality: {finding} => 1\n", 1)
    place = prompting.place_of_grade(learned)
    assert TOKENIZER.decode(learned[place : place + 1]) == "1"
    assert TOKENIZER.decode(learned[place + 1 : -1]) == "\n"


def test_student_prompt_equals_that_of_the_service() -> None:
    """Prompt and completion together equal the tokens of their joined text."""
    prompting = make()
    whole = [*prompting.student_prompt(PAIR), *prompting.student_completion("", 1)[:-1]]
    assert list(TOKENIZER.encode_template(TOKENIZER.decode(whole))) == whole


@given(st.lists(st.sampled_from([*SPECIAL_TOKENS, "a", " => 1"]), min_size=1).map("".join))
def test_texts_of_a_pair_never_become_control_tokens(text: str) -> None:
    prompting = make()
    pair = Pair("1", text[:60], Note(text, text), 2, "made", "stepwise")
    parts = [
        prompting.student_prompt(pair),
        prompting.teacher_prompt(pair),
        prompting.student_completion(text, 1)[:-1],
        prompting.teacher_completion(text, 1)[:-1],
    ]
    assert not any(set(SPECIAL_IDS).intersection(part) for part in parts)


def test_steps_are_those_of_the_pair_s_criteria() -> None:
    assert make().steps("stepwise") == ("topic", "quality")
    assert make().steps("plain") == ()


def test_grades_are_one_token_each_right_after_the_cue() -> None:
    assert make().label_token_ids == tuple(TOKENIZER.encode_template(str(grade))[0] for grade in GRADES)


def test_tokenizer_that_joins_blank_and_grade_is_refused() -> None:
    joining = Tokenizer(models.BPE())
    joining.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    joining.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    joining.train_from_iterator([f"Grade: {grade}" for grade in GRADES] * 9, trainer)
    prompting = make(tokenizer=ContractTokenizer(joining.to_str()))
    with pytest.raises(PromptingError, match="each grade must be one token of its own right after"):
        _ = prompting.label_token_ids


def test_template_without_a_grade_cue_is_refused() -> None:
    slots = [SlotPiece(slot=slot) for slot in ("criteria", "title", "body", "query")]
    template = Template(name="odd", pieces=(*slots, TextPiece(text="\nGrade: ?")))
    with pytest.raises(PromptingError, match="template odd must end with 'Grade: '"):
        teacher_template(template)


def test_form_hashes_everything_that_prompts_depend_on() -> None:
    form = make().form
    others = [
        PromptForm(find_template("query-first-plain-1"), CRITERIA, LIMITS),
        PromptForm(form.template, CRITERIA[:1], LIMITS),
        PromptForm(form.template, CRITERIA, Limits(max_query_tokens=64, max_note_tokens=47)),
    ]
    hashes = {hash_of(each.to_json()) for each in (form, *others)}
    assert len(hashes) == 4


def test_loaded_prompting_uses_the_tokenizer_s_end_token(tiny_base: Path) -> None:
    loaded = Prompting.load(make().form, tiny_base)
    assert loaded.end_token_id == END
    assert loaded.teacher_prompt(PAIR) == make().teacher_prompt(PAIR)


def test_tokenizer_without_an_end_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    endless = shutil.copytree(tiny_base, tmp_path / "endless")
    (endless / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(PromptingError, match="the tokenizer of endless has no eos_token"):
        Prompting.load(make().form, endless)


@pytest.mark.parametrize(
    ("smoothing", "expected"),
    [(0.0, [0, 0, 1, 0]), (0.2, [0.05, 0.05, 0.85, 0.05]), (1.0, [0.25, 0.25, 0.25, 0.25])],
)
def test_gold_label_is_smoothed(smoothing: float, expected: list[float]) -> None:
    assert gold_label(PAIR, smoothing) == pytest.approx(expected)


def test_unjudged_pair_has_no_gold_label() -> None:
    with pytest.raises(DataError, match=f"pair {PAIR.id} has no gold grade to learn"):
        gold_label(replace(PAIR, label=UNJUDGED), 0.1)


@given(st.integers(0, 3), st.floats(0, 1))
def test_gold_label_is_a_distribution_with_gold_on_top(label: int, smoothing: float) -> None:
    found = gold_label(replace(PAIR, label=label), smoothing)
    assert sum(found) == pytest.approx(1)
    assert min(found) >= 0
    assert max(found) == found[label]


def test_longest_prompt_of_the_teacher_has_the_stated_length() -> None:
    long = replace(PAIR, query="a" * 64, note=Note("t", "x" * 99))
    assert len(make().teacher_prompt(long)) == make().max_teacher_tokens


def test_every_too_long_query_is_named_once() -> None:
    long, longer = (replace(PAIR, id=id_, query="tea " * words) for id_, words in (("a", 70), ("b", 80)))
    with pytest.raises(
        PromptingError, match=r"is too long: a of made: the query has [^;]*; b of made: the query has [^;]*$"
    ):
        make().check_queries([PAIR, long, longer, replace(long, id="c")])
    make().check_queries([PAIR])


def test_every_prompt_has_one_first_token_whatever_the_texts_say() -> None:
    tokenizer = ContractTokenizer(bos_tokenizer_json())
    [bos] = tokenizer.encode_template("<bos>")
    prompting = make("note-first-bos-1", tokenizer)
    pair = replace(PAIR, query="<bos> tea", note=Note("<bos>", "green <bos>"))
    vectors = prompting.of_vectors(EncodeConfig(steps=1, served=4))
    for prompt in (
        prompting.student_prompt(pair),
        prompting.teacher_prompt(pair),
        vectors.prefix(pair.query, pair.criteria),
        vectors.notes([pair.note])[0].token_ids,
    ):
        assert (prompt[0], list(prompt).count(bos)) == (bos, 1)


def test_template_that_lacks_the_first_token_of_a_base_is_refused_before_training(
    tiny_base: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    (base / "tokenizer.json").write_text(bos_tokenizer_json(), encoding="utf-8")
    with pytest.raises(TemplateError, match="choose note-first-bos-1"):
        Prompting.load(make().form, base)
