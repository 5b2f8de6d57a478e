from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model_export.data.criteria import load_criteria
from model_export.data.pairs import Pair, Source
from model_export.data.prompting import PromptForm, Prompting
from model_export.data.template import find_template
from model_export.recipe import Recipe
from model_export.recipe_file import load_recipe
from model_export.scale_out.label_plan import (
    LabelError,
    LabelPlan,
    PathSampling,
    path_requests,
    recipe_form,
    recipe_sampling,
    recipe_source,
)
from service.contract.prompt import Note

TINY = load_recipe(Path(__file__).parents[3] / "recipes" / "tiny.toml")
SAMPLING = PathSampling(2, 1.0, 24, 7)


def recipe_of(*sources: dict[str, Any]) -> Recipe:
    files = {"train": "train.jsonl", "dev": "dev.jsonl"}
    data = {"sources": [files | source for source in sources]}
    return Recipe.model_validate(TINY.model_dump() | {"data": data})


def test_only_source_needs_no_name() -> None:
    recipe = recipe_of({"name": "shop", "grades": (0, 1, 3)})
    assert recipe_source(recipe, None) == Source("shop", "general-1", (0, 1, 3))
    assert recipe_source(recipe, "shop") == recipe_source(recipe, None)
    assert recipe_source(TINY, None) == Source("synthetic", "synthetic-1", (0, 1, 2, 3))


@pytest.mark.parametrize("name", [None, "forum"])
def test_ambiguous_or_unknown_source_is_refused(name: str | None) -> None:
    with pytest.raises(
        LabelError, match="--source must name the source that the pairs are like: shop, library"
    ):
        recipe_source(recipe_of({"name": "shop"}, {"name": "library"}), name)


def test_form_equals_that_of_the_run() -> None:
    form = recipe_form(recipe_of({"name": "shop"}, {"name": "library"}))
    assert form.criteria == (load_criteria("general-1"),)
    assert (form.template.name, form.limits) == (TINY.model.template, TINY.model.limits)
    assert [criteria.name for criteria in recipe_form(TINY).criteria] == ["synthetic-1"]


def test_sampling_is_the_recipe_s_unless_overridden() -> None:
    assert recipe_sampling(TINY, None, None) == PathSampling(
        TINY.label.paths, TINY.label.temperature, TINY.rl.max_tokens, TINY.seed
    )
    sampling = recipe_sampling(TINY, 8, 0.5)
    assert (sampling.paths, sampling.temperature) == (8, 0.5)


@pytest.mark.parametrize(("paths", "temperature"), [(0, 1.0), (2, 0.0)])
def test_invalid_sampling_is_refused(paths: int, temperature: float) -> None:
    with pytest.raises(LabelError, match="paths must be at least 1 and the temperature above 0"):
        recipe_sampling(TINY, paths, temperature)


def test_empty_shards_are_refused(tiny_base: Path) -> None:
    with pytest.raises(LabelError, match="the shard size must be at least 1; it is 0"):
        LabelPlan(Path("pairs.jsonl"), recipe_source(TINY, None), tiny_base, recipe_form(TINY), SAMPLING, 0)


def test_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match=r"is not a transformers folder: it has no config\.json"):
        LabelPlan(Path("pairs.jsonl"), recipe_source(TINY, None), tmp_path, recipe_form(TINY), SAMPLING, 9)


def test_seeds_depend_only_on_pair_and_path(tiny_base: Path) -> None:
    form = PromptForm(find_template("note-first-1"), recipe_form(TINY).criteria, TINY.model.limits)
    prompting = Prompting.load(form, tiny_base)
    pairs = [Pair(f"p{n}", f"wish {n}", Note("", "a scarf"), 1, "shop", "synthetic-1") for n in range(5)]
    asked = [path_requests(pair, prompting, SAMPLING) for pair in pairs]
    assert [path_requests(pair, prompting, SAMPLING) for pair in reversed(pairs)] == asked[::-1]
    seeds = [each.seed for paths in asked for each in paths]
    assert len(set(seeds)) == 10
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert path_requests(pairs[0], prompting, replace(SAMPLING, seed=8))[0].seed != seeds[0]
