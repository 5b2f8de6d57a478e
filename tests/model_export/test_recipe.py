from typing import Any

import pytest
from pydantic import ValidationError

from tests.tiny_teacher import control_as_teacher, micro_recipe

MINE = {"name": "mine", "train": "train.jsonl", "dev": "dev.jsonl"}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"data": {"sources": [MINE]}}, "either"),
        ({"data": {"synthetic": None}}, "either"),
        ({"data": {"synthetic": None, "sources": [MINE, MINE]}}, "distinct names"),
        ({"data": {"fold": 1}}, "set both fold and folds"),
        ({"data": {"fold": 5, "folds": 5}}, r"5 is out of range 0\.\.4"),
        ({"data": {"synthetic": None, "sources": [{**MINE, "grades": [0, 4]}]}}, "less than or equal to 3"),
        (
            {
                "data": {
                    "synthetic": None,
                    "sources": [
                        {**MINE, "name": "other"},
                        {**MINE, "limits": {"max_query_tokens": 9, "max_note_tokens": 9}},
                    ],
                }
            },
            "other: sources with the same criteria must have the same limits",
        ),
        (
            {"model": {"student": "smollm2"}, "cot_sft": {"start": "label_only_sft"}},
            "the teacher has another",
        ),
        ({"model": {"student": "smollm2"}, "distil": {"start": "teacher"}}, "that has another base"),
        ({"distil": {"traced_share": 0.5, "pairs": 3}}, "remove one"),
        ({"distil": {"ranking": "listwise"}}, r"ranking_weight: 0.0 with ranking = 'listwise'"),
        ({"distil": {"ranking_weight": 0.1}}, r"ranking_weight: 0.1 with ranking = 'none'"),
        (
            {"distil": {"ranking": "margin", "ranking_weight": 0.1, "group_size": 9}},
            "9 examples do not fit a batch of 8",
        ),
        (
            {"distil": {"ranking": "margin", "ranking_weight": 0.1}, "launch": {"processes": 2}},
            "ranking: works in one process only",
        ),
        ({"label": {"teacher": "self_sft"}}, r"there is no self_sft \(self_sft\.steps = 0\)"),
        ({"unlabelled": {"hard": 0.6}}, r"shares that sum to 1, not 1\.1"),
        ({"rl": {"steps": 0}}, r"there is no RL teacher .*; use cot_sft"),
        (
            {"cot_sft": {"steps": 0}},
            r"cot_sft\.steps: state how many, or set label\.teacher = 'label_only_sft'",
        ),
        ({"label": {"teacher": "label_only_sft"}}, "learns from no other teacher; leave out cot_sft, rl"),
        (
            {"label": {"teacher": "label_only_sft"}, "cot_sft": {"steps": 0}, "rl": {"steps": 0}},
            r"label\.batch_size: label_only_sft samples no paths",
        ),
        ({"distil": {"start_rank": 4}}, "a base has no difference to reduce"),
        (
            {"distil": {"start_rank": 4, "start": "label_only_sft"}, "export": {"adapter_rank": 8}},
            r"with distil\.lora_rank it must be at most export\.adapter_rank",
        ),
        (
            {"rl": {"importance_sampling": "sequence"}},
            r"one ratio, so masked tokens would change .* mask = 'none'",
        ),
        ({"rl": {"scale_rewards": "group"}}, "divides the class weight out again"),
        ({"rl": {"loss": "luspo"}}, "Input should be 'grpo', 'bnpo'"),
        ({"rl": {"mask": "first"}}, "Input should be 'none', 'final' or 'step'"),
        ({"unlabelled": {"pairs": 9}}, r"no stage learns from them; set stack\.teachers or encode\.steps"),
        ({"distil": {"traced_share": 0.5, "unlabelled_share": 0.2}}, "no teacher labels such pairs"),
        (
            {
                "encode": {"steps": 1},
                "unlabelled": {"pairs": 9},
                "distil": {"traced_share": 0.5, "unlabelled_share": 0.2},
            },
            "no teacher labels such pairs",
        ),
        ({"distil": {"unlabelled_share": 0.2}}, "needs a traced_share"),
        ({"distil": {"traced_share": 0.9, "unlabelled_share": 0.2}}, "at most 1 together"),
        ({"stack": {"teachers": ["lexical", "lexical"]}}, "name each teacher once"),
        ({"stack": {"teachers": ["cross_encoder"]}}, r"not trained \(cross_encoder\.steps = 0\)"),
        ({"stack": {"teachers": ["endpoint"]}}, r"endpoint\.url: the teacher 'endpoint' needs"),
        ({"stack": {"endpoint": {"url": "http://127.0.0.1:8000/v1"}}}, "name the model"),
        ({"experiment": {"arms": ["sft", "grpo"]}}, "all arms are compared with the step mask"),
        ({"experiment": {"arms": ["step", "step"]}}, "name each arm once"),
        (
            {"encode": {"steps": 5}, "export": {"int8": True}},
            r"export\.int8: int8 weights can't read note vectors",
        ),
        ({"encode": {"vectors": [1, 2]}}, "4 vectors a note are not among the trained"),
        ({"encode": {"layers": 2, "frozen_layers": 2}}, "leaves none of the encoder's layers = 2 to train"),
        ({"stack": {"teachers": ["cosine"], "encoders": []}}, "encoders: the teacher 'cosine' needs"),
        ({"rl": {"resamples": 1}, "launch": {"processes": 2}}, "resamples: works in one process only"),
        ({"launch": {"fsdp": ["rl"]}}, "needs launch.processes of 2 or more"),
        ({"launch": {"processes": 4}}, "4 does not divide rl.prompts"),
        ({"cot_sft": {"micro_batch": 3}}, r"3 does not divide the 8 examples of a process \(cot_sft"),
        ({"rl": {"micro_batch": 8}, "launch": {"processes": 2}}, "8 does not divide the 4 examples"),
        ({"distil": {"ranking": "margin", "ranking_weight": 1, "micro_batch": 4}}, "tear the groups"),
        ({"distil": {"lora_rank": 8}}, r"distil\.lora_rank: all weights of 'tiny' learn"),
        (
            {
                "model": {"teacher": "smollm2"},
                "cot_sft": {"lora_rank": 8},
                "launch": {"processes": 2, "fsdp": ["cot_sft"]},
            },
            r"leave cot_sft out of launch\.fsdp",
        ),
    ],
)
def test_contradiction_is_refused(changes: dict[str, dict[str, Any]], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        micro_recipe(**changes)


def test_starts_and_teachers_that_exist_are_accepted() -> None:
    same_base = micro_recipe(cot_sft={"start": "label_only_sft"}, distil={"start": "teacher"})
    assert (same_base.cot_sft.start, same_base.distil.start) == ("label_only_sft", "teacher")
    without_mask = micro_recipe(rl={"mask": "none", "importance_sampling": "sequence"})
    assert without_mask.rl.importance_sampling == "sequence"
    assert micro_recipe(rl={"steps": 0}, label={"teacher": "cot_sft"}).rl.steps == 0
    assert control_as_teacher().label.teacher == "label_only_sft"
    whole = {"start": "label_only_sft", "start_rank": 20, "lora_rank": 12}
    model, export = {"teacher": "smollm2"}, {"adapter_rank": 32}
    assert micro_recipe(model=model, distil=whole, export=export).distil.start_rank == 20


def test_control_as_teacher_excludes_the_teacher_that_reasons() -> None:
    with pytest.raises(ValidationError, match="reasoning is not trained"):
        control_as_teacher(stack={"teachers": ["reasoning"]})


def test_student_base_defaults_to_the_teacher_base() -> None:
    assert micro_recipe().model.student_base == "tiny"
    assert micro_recipe(model={"student": "smollm2"}).model.student_base == "smollm2"
