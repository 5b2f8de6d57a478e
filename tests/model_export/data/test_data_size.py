import json
from pathlib import Path
from typing import Any

import pytest

from model_export.data.data_size import measure_data
from model_export.data.synthetic import generate
from model_export.recipe import Recipe
from model_export.recipe_file import load_recipe

RECIPES = Path(__file__).parents[3] / "recipes"


def recipe_of(*sources: dict[str, Any]) -> Recipe:
    recipe = load_recipe(RECIPES / "tiny.toml").model_dump()
    recipe["data"] = {"sources": sources}
    return Recipe.model_validate(recipe)


def source(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "train": f"{name}/train.jsonl", "dev": f"{name}/dev.jsonl", **more}


def write_rows(path: Path, count: int, chars: int = 40) -> None:
    path.parent.mkdir(exist_ok=True)
    row = {"query": "q" * chars, "note": {"title": None, "body": "b" * chars}}
    path.write_text((json.dumps(row) + "\n") * count + "\n", encoding="utf-8")


def test_lines_are_counted_and_capped(tmp_path: Path) -> None:
    for name, train, dev in (("a", 30, 5), ("b", 9, 4)):
        write_rows(tmp_path / name / "train.jsonl", train)
        write_rows(tmp_path / name / "dev.jsonl", dev)
    found = measure_data(recipe_of(source("a", max_train=20), source("b", max_dev=3)), tmp_path)
    assert (found.train, found.dev) == (29, 8)
    assert found.lines == (
        "a: 20 of 30 pairs to train, 5 to measure",
        "b: 9 pairs to train, 3 of 4 to measure",
    )


def test_missing_files_are_named_and_nothing_fails(tmp_path: Path) -> None:
    write_rows(tmp_path / "a" / "train.jsonl", 3)
    found = measure_data(recipe_of(source("a", long_tail="a/rare.ids", max_dev=7)), tmp_path)
    assert (found.train, found.dev) == (3, None)
    assert found.lines == (
        "a: 3 pairs to train, at most 7 to measure",
        "not found here: DATA/a/dev.jsonl, needed to run",
        "not found here: DATA/a/rare.ids, needed to run",
    )


def test_prompt_is_as_long_as_the_texts_or_as_the_limits_allow(tmp_path: Path) -> None:
    recipe = recipe_of(source("a"))
    limits = recipe.model.limits
    at_most = measure_data(recipe, tmp_path).prompt
    write_rows(tmp_path / "a" / "train.jsonl", 3, chars=40)
    short = measure_data(recipe, tmp_path).prompt
    write_rows(tmp_path / "a" / "train.jsonl", 3, chars=9999)
    assert measure_data(recipe, tmp_path).prompt == at_most
    assert at_most - short == limits.max_query_tokens + limits.max_note_tokens - 2 * 40 // 4


@pytest.mark.parametrize("line", ["{", "[]", '{"query": 1}', '{"query": "q", "note": null}'])
def test_broken_line_is_left_to_the_run(line: str, tmp_path: Path) -> None:
    recipe = recipe_of(source("a"))
    at_most = measure_data(recipe, tmp_path).prompt
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "train.jsonl").write_text(line + "\n", encoding="utf-8")
    found = measure_data(recipe, tmp_path)
    assert (found.train, found.prompt) == (1, at_most)


def test_generated_pairs_are_as_many_as_the_generator_makes() -> None:
    recipe = load_recipe(RECIPES / "tiny.toml")
    config = recipe.data.synthetic
    assert config is not None
    made = generate(recipe.seed, config.train_queries, config.dev_queries, config.notes_per_query)
    found = measure_data(recipe, Path())
    assert (found.train, found.dev) == (len(made.train), len(made.dev))
