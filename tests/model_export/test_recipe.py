import tomllib
from typing import Any

import pytest
from pydantic import ValidationError

from model_export.recipe import Recipe
from tests.tiny_teacher import MICRO

SOURCE = {"name": "mine", "train": "train.jsonl", "dev": "dev.jsonl"}


def micro() -> dict[str, Any]:
    return tomllib.loads(MICRO)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ({}, "either"),
        ({"synthetic": micro()["data"]["synthetic"], "sources": [SOURCE]}, "either"),
        ({"sources": [SOURCE, SOURCE]}, "distinct names"),
        ({"sources": [{**SOURCE, "grades": [0, 4]}]}, "less than or equal to 3"),
    ],
)
def test_data_is_synthetic_or_from_sources(data: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        Recipe.model_validate({**micro(), "data": data})


@pytest.mark.parametrize(
    ("section", "changes", "complaint"),
    [
        ("cot_sft", {"start": "label_only_sft"}, "the teacher has another"),
        ("distil", {"start": "teacher"}, "that has another base"),
    ],
)
def test_stage_can_not_start_from_another_base(section: str, changes: dict[str, Any], complaint: str) -> None:
    recipe = micro()
    recipe[section] |= changes
    assert Recipe.model_validate(recipe).name == "micro"
    recipe["model"]["student"] = "smollm2"
    with pytest.raises(ValidationError, match=complaint):
        Recipe.model_validate(recipe)


def test_labelled_share_and_pairs_exclude_each_other() -> None:
    recipe = micro()
    recipe["distil"] |= {"labelled_share": 0.5, "pairs": 3}
    with pytest.raises(ValidationError, match="remove one"):
        Recipe.model_validate(recipe)


def test_without_rl_only_the_sft_teacher_can_label() -> None:
    recipe = micro()
    recipe["rl"] |= {"steps": 0}
    with pytest.raises(ValidationError, match=r"there is no sam without RL .*; use cot_sft"):
        Recipe.model_validate(recipe)
    recipe["label"] |= {"teacher": "cot_sft"}
    assert Recipe.model_validate(recipe).rl.steps == 0


def test_student_base_defaults_to_the_teacher_base() -> None:
    recipe = micro()
    assert Recipe.model_validate(recipe).model.student_base == "tiny"
    recipe["model"]["student"] = "smollm2"
    assert Recipe.model_validate(recipe).model.student_base == "smollm2"
