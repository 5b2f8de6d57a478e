from pathlib import Path
from typing import Any

import pytest

from model_export.data.criteria import load_criteria
from model_export.data.pairs import Source
from model_export.recipe import Recipe
from model_export.scale_out.label_plan import LabelError, LabelPlan, path_seed, recipe_source
from tests.tiny_teacher import micro_recipe

MICRO = micro_recipe()


def recipe_of(*sources: dict[str, Any]) -> Recipe:
    files = {"train": "train.jsonl", "dev": "dev.jsonl"}
    return micro_recipe(data={"synthetic": None, "sources": [files | source for source in sources]})


def test_only_source_needs_no_name() -> None:
    recipe = recipe_of({"name": "shop", "grades": (0, 1, 3)})
    assert recipe_source(recipe, None) == Source("shop", "general-1", (0, 1, 3))
    assert recipe_source(recipe, "shop") == recipe_source(recipe, None)
    assert recipe_source(MICRO, None) == Source("synthetic", "synthetic-1", (0, 1, 2, 3))


@pytest.mark.parametrize("name", [None, "forum"])
def test_ambiguous_or_unknown_source_is_refused(name: str | None) -> None:
    with pytest.raises(
        LabelError, match="--source must name the source that the pairs are like: shop, library"
    ):
        recipe_source(recipe_of({"name": "shop"}, {"name": "library"}), name)


def test_form_equals_that_of_the_run(tiny_base: Path) -> None:
    recipe = recipe_of({"name": "shop"}, {"name": "library"})
    of_files, generated = (
        LabelPlan(each, Path("pairs.jsonl"), Source("shop", "x", (0,)), tiny_base, 9).form
        for each in (recipe, MICRO)
    )
    assert of_files.criteria == (load_criteria("general-1"),)
    assert (of_files.template.name, of_files.limits) == (MICRO.model.template, MICRO.model.limits)
    assert [criteria.name for criteria in generated.criteria] == ["synthetic-1"]


def test_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match=r"is not a transformers folder: it has no config\.json"):
        LabelPlan(MICRO, Path("pairs.jsonl"), recipe_source(MICRO, None), tmp_path, 9)


def test_seeds_depend_only_on_pair_and_path() -> None:
    seeds = {path_seed(7, f"p{pair}", path) for pair in range(5) for path in range(2)}
    assert len(seeds) == 10
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert path_seed(7, "p3", 1) in seeds
    assert path_seed(8, "p3", 1) not in seeds
