from typing import Any

import pytest
from pydantic import ValidationError

from tests.tiny_teacher import micro_recipe

MINE = {"name": "mine", "train": "train.jsonl", "dev": "dev.jsonl"}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"data": {"sources": [MINE]}}, "either"),
        ({"data": {"synthetic": None}}, "either"),
        ({"data": {"synthetic": None, "sources": [MINE, MINE]}}, "distinct names"),
        ({"data": {"synthetic": None, "sources": [{**MINE, "grades": [0, 4]}]}}, "less than or equal to 3"),
        (
            {"model": {"student": "smollm2"}, "cot_sft": {"start": "label_only_sft"}},
            "the teacher has another",
        ),
        ({"model": {"student": "smollm2"}, "distil": {"start": "teacher"}}, "that has another base"),
        ({"distil": {"labelled_share": 0.5, "pairs": 3}}, "remove one"),
        ({"label": {"teacher": "self_sft"}}, r"there is no self_sft \(self_sft\.steps = 0\)"),
        ({"unlabelled": {"hard": 0.6}}, r"shares that sum to 1, not 1\.1"),
        ({"rl": {"steps": 0}}, r"there is no RL teacher .*; use cot_sft"),
        (
            {"rl": {"importance_sampling": "sequence"}},
            r"one ratio, so masked tokens would change .* mask = 'none'",
        ),
        ({"rl": {"scale_rewards": "group"}}, "divides the class weight out again"),
        ({"rl": {"loss": "luspo"}}, "Input should be 'grpo', 'bnpo'"),
        ({"rl": {"mask": "first"}}, "Input should be 'none', 'final' or 'step'"),
        ({"rl": {"resamples": 1}, "launch": {"processes": 2}}, "resamples: works in one process only"),
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


def test_student_base_defaults_to_the_teacher_base() -> None:
    assert micro_recipe().model.student_base == "tiny"
    assert micro_recipe(model={"student": "smollm2"}).model.student_base == "smollm2"
