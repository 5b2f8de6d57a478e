import json
from pathlib import Path
from typing import Any

import pytest

from model_export.data.criteria import load_criteria, load_teacher_criteria
from model_export.data.held_out import read_test
from model_export.data.pairs import GRADES, DataError, folded_query, query_hash
from model_export.data.prepare import (
    data_inputs,
    load_data,
    measured_queries,
    prepare_base,
    prepare_data,
    read_base,
    read_data,
)
from model_export.recipe import Recipe
from service.contract.manifest import Limits
from service.contract.tokenizer import ContractTokenizer
from tests.tiny_teacher import micro_recipe

Row = dict[str, Any]
Split = tuple[list[Row], list[Row]]


def recipe_of(sources: list[Row], leaking_dev: str = "refuse", **changes: Any) -> Recipe:
    data = {"synthetic": None, "sources": sources, "leaking_dev": leaking_dev}
    return micro_recipe(data=data, **changes)


def row(id_: str, query: str, label: int = 0) -> Row:
    return {"id": id_, "query": query, "note": {"title": None, "body": f"note {id_}"}, "label": label}


def write_source(root: Path, name: str, train: list[Row], dev: list[Row]) -> Row:
    """Write a source's files, and return its section of a recipe."""
    for split, rows in (("train", train), ("dev", dev)):
        text = "".join(json.dumps(each) + "\n" for each in rows)
        (root / f"{name}-{split}.jsonl").write_text(text, encoding="utf-8")
    return {"name": name, "train": f"{name}-train.jsonl", "dev": f"{name}-dev.jsonl"}


@pytest.fixture
def two_sources(tmp_path: Path) -> list[Row]:
    shop = write_source(
        tmp_path,
        "shop",
        [row(f"s{n}", f"lamp {n}", n % 4) for n in range(8)],
        [row(f"sd{n}", f"coat {n // 2}") for n in range(6)],
    )
    forum = write_source(
        tmp_path, "forum", [row(f"f{n}", f"how {n}", n % 3) for n in range(6)], [row("fd", "why", 2)]
    )
    return [{**shop, "criteria": "product-2"}, {**forum, "criteria": "forum-1", "grades": [0, 1, 3]}]


def prepare(recipe: Recipe, root: Path) -> Path:
    folder = root / "data"
    folder.mkdir(exist_ok=True)
    prepare_data(recipe, root, folder)
    return folder


def test_generated_data_is_reproducible_and_read_back(tmp_path: Path) -> None:
    first, again = (load_data(prepare(micro_recipe(), tmp_path)) for _ in range(2))
    assert first == again
    assert (len(first.train), len(first.dev)) == (24, 16)
    assert {pair.label for pair in first.train} == set(GRADES)
    assert first.long_tail <= {pair.id for pair in first.dev}
    assert first != load_data(prepare(micro_recipe(seed=4), tmp_path))


def test_sources_are_read_with_their_criteria_and_grades(tmp_path: Path, two_sources: list[Row]) -> None:
    data = load_data(prepare(recipe_of(two_sources), tmp_path))
    assert {(pair.source, pair.criteria) for pair in data.train} == {
        ("shop", "product-2"),
        ("forum", "forum-1"),
    }
    assert list(data.criteria) == [load_criteria("product-2"), load_criteria("forum-1")]
    assert [pair.label for pair in data.train if pair.source == "forum"] == [0, 1, 3, 0, 1, 3]
    assert [pair.label for pair in data.dev if pair.source == "forum"] == [3]
    assert set(data.hashes) == {"shop-train.jsonl", "shop-dev.jsonl", "forum-train.jsonl", "forum-dev.jsonl"}


def test_limits_of_a_source_are_those_of_its_criteria(tmp_path: Path, two_sources: list[Row]) -> None:
    wide = Limits(max_query_tokens=99, max_note_tokens=150)
    shop, forum = two_sources
    recipe = recipe_of([shop, {**forum, "limits": wide.model_dump()}])
    data = load_data(prepare(recipe, tmp_path))
    for criteria in (data.criteria, data.teacher_criteria):
        assert [each.limits for each in criteria] == [None, wide]


def test_the_teacher_reads_its_own_text_unless_the_recipe_gives_it_the_students(
    tmp_path: Path, two_sources: list[Row]
) -> None:
    def teacher_texts(**changes: Any) -> list[str]:
        data = {"synthetic": None, "sources": two_sources, **changes}
        return [each.text for each in load_data(prepare(micro_recipe(data=data), tmp_path)).teacher_criteria]

    names = ("product-2", "forum-1")
    assert teacher_texts() == [load_teacher_criteria(name).text for name in names]
    assert teacher_texts(teacher_text=False) == [load_criteria(name).text for name in names]


def test_samples_are_drawn_by_the_seed_and_dev_by_whole_queries(
    tmp_path: Path, two_sources: list[Row]
) -> None:
    def sample(seed: int) -> tuple[list[str], list[str]]:
        two_sources[0] |= {"max_train": 4, "max_dev": 5}
        data = load_data(prepare(recipe_of(two_sources, seed=seed), tmp_path))
        train, dev = ([p for p in split if p.source == "shop"] for split in (data.train, data.dev))
        assert len(train) == 4
        assert sorted(pair.query for pair in dev) == sorted(2 * sorted({pair.query for pair in dev}))
        return [pair.id for pair in train], [pair.id for pair in dev]

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_stated_long_tail_is_limited_to_sampled_pairs(tmp_path: Path, two_sources: list[Row]) -> None:
    (tmp_path / "tail.ids").write_text("sd0\nsd1\nsd4\nsd5\n", encoding="utf-8")
    two_sources[0] |= {"long_tail": "tail.ids", "max_dev": 2}
    data = load_data(prepare(recipe_of(two_sources), tmp_path))
    drawn = {pair.id for pair in data.dev}
    assert {id_ for id_ in data.long_tail if id_ != "fd"} == {"sd0", "sd1", "sd4", "sd5"} & drawn


def test_inputs_change_with_all_that_the_data_depends_on(tmp_path: Path, two_sources: list[Row]) -> None:
    seen = [
        data_inputs(recipe_of(two_sources), tmp_path),
        data_inputs(recipe_of(two_sources, seed=9), tmp_path),
    ]
    (tmp_path / "forum-dev.jsonl").write_text(json.dumps(row("other", "who")), encoding="utf-8")
    seen.append(data_inputs(recipe_of(two_sources), tmp_path))
    two_sources[1]["grades"] = [0, 2, 3]
    seen.append(data_inputs(recipe_of(two_sources), tmp_path))
    criteria = tmp_path / "mine.toml"
    for text in ("Grade it.", "Grade it well."):
        criteria.write_text(f'name = "mine-1"\ntext = "{text}"\nsteps = ["topic"]\n', encoding="utf-8")
        two_sources[0]["criteria"] = str(criteria)
        seen.append(data_inputs(recipe_of(two_sources), tmp_path))
    assert len({json.dumps(inputs) for inputs in seen}) == len(seen)


def test_missing_file_is_refused(tmp_path: Path, two_sources: list[Row]) -> None:
    (tmp_path / "forum-dev.jsonl").unlink()
    assert data_inputs(recipe_of(two_sources), tmp_path)
    with pytest.raises(DataError, match=r"forum-dev.jsonl can't be read"):
        prepare(recipe_of(two_sources), tmp_path)


# The second source trains on a dev query of the first.
LEAKING = [([row("1", "lamp")], [row("2", "tea"), row("3", "tea")]), ([row("4", "Tea")], [row("5", "coat")])]
REPEATING = [
    ([row("1", "lamp"), row("2", "tea")], [row("3", "coat")]),
    ([row("2", "why"), row("4", "who")], [row("5", "how")]),
]


def write_sources(root: Path, sources: list[Split]) -> list[Row]:
    return [write_source(root, f"source-{number}", *split) for number, split in enumerate(sources)]


@pytest.mark.parametrize(
    ("sources", "complaint"),
    [
        ([([row("1", "Lamp")], [row("3", "lamp")])], "dev pairs whose query is in train as well: 3"),
        (LEAKING, "dev pairs whose query is in train as well: 2, 3"),
        (REPEATING, "ids that occur in several sources: 2"),
    ],
)
def test_leaking_queries_and_repeated_ids_are_refused(
    tmp_path: Path, sources: list[Split], complaint: str
) -> None:
    with pytest.raises(DataError, match=complaint):
        prepare(recipe_of(write_sources(tmp_path, sources)), tmp_path)


def test_leaking_query_can_be_dropped_and_named(tmp_path: Path) -> None:
    data = load_data(prepare(recipe_of(write_sources(tmp_path, LEAKING), "drop"), tmp_path))
    assert [pair.id for pair in data.dev] == ["5"]
    assert data.left_out == ("2", "3")
    assert not data.long_tail & set(data.left_out)


def test_no_file_of_the_data_stage_holds_a_test_pair(tmp_path: Path, two_sources: list[Row]) -> None:
    whole = load_data(prepare(recipe_of(two_sources), tmp_path))
    two_sources[0]["test_share"] = 0.5
    recipe = recipe_of(two_sources)
    folder = prepare(recipe, tmp_path)
    data = load_data(folder)
    test = read_test(recipe, tmp_path, data).pairs
    assert {pair.id for pair in test} == {pair.id for pair in whole.train} - {pair.id for pair in data.train}
    assert test
    written = "".join(file.read_text(encoding="utf-8") for file in folder.iterdir())
    assert not [pair.id for pair in test if f'"{pair.id}"' in written]


def test_folds_hold_each_training_query_once(tmp_path: Path, two_sources: list[Row]) -> None:
    # The same query in both sources, whatever its case, is in one fold.
    repeated = write_source(
        tmp_path, "more", [row("m1", "LAMP 1"), row("m2", "how 2")], [row("md", "why not")]
    )
    sources = [*two_sources, repeated]
    whole = read_data(recipe_of(sources), tmp_path)
    seen: list[str] = []
    for fold in range(3):
        recipe = micro_recipe(data={"synthetic": None, "sources": sources, "fold": fold, "folds": 3})
        data = load_data(prepare(recipe, tmp_path))
        assert not {folded_query(pair) for pair in data.train} & {folded_query(pair) for pair in data.dev}
        assert {pair.id for pair in (*data.train, *data.dev)} == {pair.id for pair in whole.train}
        assert data.long_tail <= {pair.id for pair in data.dev}
        seen += [pair.id for pair in data.dev]
    assert sorted(seen) == sorted(pair.id for pair in whole.train)


def test_all_dev_and_test_queries_are_hashed_for_mining(tmp_path: Path, two_sources: list[Row]) -> None:
    two_sources[0] |= {"test_share": 0.5, "max_dev": 2}
    two_sources[1]["test"] = "forum-test.jsonl"
    (tmp_path / "forum-test.jsonl").write_text(json.dumps(row("ft", "Which One")), encoding="utf-8")
    recipe = recipe_of(two_sources)
    data = read_data(recipe, tmp_path)
    test = [pair.query for pair in read_test(recipe, tmp_path, data).pairs]
    assert {"Which One"} < set(test)
    # The dev queries of the file, also those that are not sampled.
    measured = {"coat 0", "coat 1", "coat 2", "why", *test}
    assert measured_queries(recipe, tmp_path) == {query_hash(query.upper()) for query in measured}
    assert not {pair.query for pair in data.train} & measured


def test_generated_dev_queries_are_hashed_for_mining(tmp_path: Path) -> None:
    dev = load_data(prepare(micro_recipe(), tmp_path)).dev
    assert measured_queries(micro_recipe(), tmp_path) == {query_hash(pair.query) for pair in dev}


def test_tiny_base_reads_the_data_s_texts(tmp_path: Path) -> None:
    recipe = micro_recipe()
    data = load_data(prepare(recipe, tmp_path))
    base = tmp_path / "base"
    base.mkdir()
    prepare_base("tiny", recipe, data, base)
    assert read_base(base).name == "tiny"
    tokenizer = ContractTokenizer.load(base)
    assert len(tokenizer.encode_template(" => ")) <= 3
    [query] = tokenizer.encode_user_texts([f" {data.train[0].query}"])
    assert len(query.token_ids) <= 2 * len(data.train[0].query.split())


def test_other_base_is_copied_with_its_description(tmp_path: Path, tiny_base: Path) -> None:
    recipe = micro_recipe()
    base = tmp_path / "base"
    base.mkdir()
    prepare_base(str(tiny_base), recipe, load_data(prepare(recipe, tmp_path)), base)
    assert read_base(base).name == tiny_base.name
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in base.iterdir()}
