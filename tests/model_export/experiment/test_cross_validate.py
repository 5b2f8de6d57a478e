"""Cross-validation at its smallest: two recipes that differ in the student alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from model_export.data.prepare import read_data
from model_export.evaluation.evaluate import Evaluation
from model_export.experiment.cross_validate import FIGURES, cross_validate, format_comparison
from model_export.recipe import Recipe
from model_export.stages import RunError
from tests.tiny_teacher import micro_recipe

SMALL: dict[str, Any] = {
    "rl": {"steps": 0},
    "label": {"teacher": "cot_sft"},
    "cot_sft": {"steps": 2},
    "label_only_sft": {"steps": 3},
}


def recipe(name: str, **distil: Any) -> Recipe:
    return micro_recipe(name=name, distil={"steps": 3, **distil}, **SMALL)


def folders(out: Path, stage: str) -> int:
    """Count the folders of a stage in all folds."""
    return len(list(out.glob(f"fold-*/{stage}-*")))


def test_every_training_pair_is_measured_once(tmp_path: Path) -> None:
    longer = micro_recipe(name="longer", **{**SMALL, "label_only_sft": {"steps": 4}})
    recipes = [recipe("plain"), longer]
    titles: set[str] = set()

    def compare() -> Evaluation:
        titles.clear()
        return cross_validate(
            recipes, tmp_path, 2, tmp_path, lambda stage, *_: titles.add(stage), control_only=True
        )

    found = compare()
    trained = read_data(recipes[0], tmp_path).train
    assert found.sizes["all"]["pairs"] == len(trained)
    assert found.sizes["all"]["queries"] == len({pair.query for pair in trained})
    assert "Fold 2 of 2, longer: Train label_only_sft" in titles
    assert json.loads((tmp_path / FIGURES).read_text("utf-8"))["rows"].keys() == {"plain", "longer"}
    # Controls need no teacher.
    assert (folders(tmp_path, "label_only_sft"), folders(tmp_path, "cot_sft")) == (4, 0)

    text = format_comparison(found)
    assert "nDCG@10: " in text[text.index("all, longer minus plain") :]

    assert compare() == found
    assert not any("Train" in title for title in titles)


@pytest.mark.slow  # most of a minute: two teachers and four students
def test_stages_that_recipes_share_are_trained_once(tmp_path: Path) -> None:
    recipes = [recipe("plain"), recipe("ranked", ranking="margin", ranking_weight=1.0, group_size=4)]
    found = cross_validate(recipes, tmp_path, 2, tmp_path, lambda *_: None)
    assert [folders(tmp_path, stage) for stage in ("label_only_sft", "cot_sft", "distil")] == [2, 2, 4]
    assert found.controls == ("plain",)


@pytest.mark.parametrize(
    ("recipes", "complaint"),
    [
        ([recipe("plain")], "two or more recipes with distinct names"),
        ([recipe("plain"), recipe("plain", steps=4)], "distinct names"),
        ([recipe("plain"), micro_recipe(name="other", seed=4, **SMALL)], "other and plain differ in"),
    ],
)
def test_recipes_that_can_not_be_compared_are_refused(
    tmp_path: Path, recipes: list[Recipe], complaint: str
) -> None:
    with pytest.raises(RunError, match=complaint):
        cross_validate(recipes, tmp_path, 2, tmp_path, lambda *_: None)
