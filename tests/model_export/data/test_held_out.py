import json
from pathlib import Path
from typing import Any

import pytest

from model_export.data.held_out import HeldOut, check_untouched, read_test
from model_export.data.pairs import DataError
from model_export.data.prepare import read_data
from model_export.recipe import Recipe
from tests.tiny_teacher import micro_recipe

Row = dict[str, Any]


def rows(prefix: str, *queries: str) -> list[Row]:
    return [
        {"id": f"{prefix}{n}", "query": query, "note": {"title": None, "body": f"note {n}"}, "label": n % 4}
        for n, query in enumerate(queries)
    ]


def recipe_of(root: Path, name: str, *, leaking_dev: str = "refuse", **files: Any) -> Recipe:
    source: Row = {"name": name}
    for split, content in files.items():
        if isinstance(content, list):
            source[split] = f"{name}-{split}.jsonl"
            (root / source[split]).write_text("\n".join(map(json.dumps, content)), encoding="utf-8")
        else:
            source[split] = content
    return micro_recipe(data={"synthetic": None, "sources": [source], "leaking_dev": leaking_dev})


def read(recipe: Recipe, root: Path) -> HeldOut:
    return read_test(recipe, root, read_data(recipe, root))


MANY = [f"Lamp {n // 2}" for n in range(400)]


def test_share_takes_whole_queries_whatever_their_case_seed_or_source(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "shop", train=rows("t", *MANY), dev=rows("d", "tea"), test_share=0.2)
    taken = [pair.query.lower() for pair in read(recipe, tmp_path).pairs]
    assert len(taken) == 2 * len(set(taken))
    assert 25 <= len(set(taken)) <= 55
    lower = [query.lower() for query in MANY]
    other = recipe_of(tmp_path, "forum", train=rows("f", *lower), dev=rows("d", "tea"), test_share=0.2)
    again = read(other.model_copy(update={"seed": 9}), tmp_path)
    assert [pair.query for pair in again.pairs] == taken


def test_file_is_never_read_by_a_run(tmp_path: Path) -> None:
    recipe = recipe_of(
        tmp_path, "shop", train=rows("t", "lamp"), dev=rows("d", "tea"), test=rows("x", "coat", "hat")
    )
    assert [pair.id for pair in read(recipe, tmp_path).pairs] == ["x0", "x1"]
    (tmp_path / "shop-test.jsonl").write_text("not JSON", encoding="utf-8")
    assert [pair.id for pair in read_data(recipe, tmp_path).train] == ["t0"]
    with pytest.raises(DataError, match="not JSON"):
        read(recipe, tmp_path)


@pytest.mark.parametrize("known", ["train", "dev"])
def test_leaking_test_queries_are_refused_or_dropped(tmp_path: Path, known: str) -> None:
    files: dict[str, Any] = {
        "train": rows("t", "lamp"),
        "dev": rows("d", "tea"),
        "test": rows("x", "coat", "hat"),
    }
    files[known] += rows("leak", "COAT")
    with pytest.raises(DataError, match="test pairs whose query is in train or dev as well: x0"):
        read(recipe_of(tmp_path, "shop", **files), tmp_path)
    found = read(recipe_of(tmp_path, "shop", leaking_dev="drop", **files), tmp_path)
    assert ([pair.id for pair in found.pairs], found.left_out) == (["x1"], ("x0",))
    assert "x0" not in found.long_tail


def test_recipe_without_a_test_split_is_refused(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "shop", train=rows("t", "lamp"), dev=rows("d", "tea"))
    with pytest.raises(DataError, match="no test pairs: set test or test_share"):
        read(recipe, tmp_path)


def test_test_and_share_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shop: set test or test_share, not both"):
        recipe_of(tmp_path, "shop", train=[], dev=[], test=[], test_share=0.5)


def test_checkpoint_that_may_have_trained_on_the_test_pairs_is_refused(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "shop", train=rows("t", *MANY), dev=rows("d", "tea"), test_share=0.2)
    data = read_data(recipe, tmp_path)
    held_out = read_test(recipe, tmp_path, data)
    check_untouched("mine", data.hashes, held_out)
    check_untouched("zero-shot", {}, held_out)
    files_alone = {name: value for name, value in data.hashes.items() if name.endswith(".jsonl")}
    with pytest.raises(DataError, match=r"old may have trained on the test pairs: .* shop: test pairs"):
        check_untouched("old", files_alone, held_out)
