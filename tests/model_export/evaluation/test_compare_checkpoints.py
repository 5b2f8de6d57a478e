import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from model_export.__main__ import app
from model_export.checkpoint.assemble import Plan, assemble
from model_export.data.criteria import load_criteria
from model_export.data.pairs import UNJUDGED, Pair, write_pairs
from model_export.data.prompting import PromptingError
from model_export.data.synthetic import generate
from model_export.evaluation.compare_checkpoints import Compared, ComparisonError, compare_checkpoints
from model_export.progress import OnProgress
from service.errors import CheckpointError


@pytest.fixture(scope="module")
def pairs() -> tuple[Pair, ...]:
    return generate(1, 8, 4, 4).dev


@pytest.fixture(scope="module")
def pairs_file(pairs: tuple[Pair, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    write_pairs(path, pairs)
    return path


@pytest.fixture(scope="module")
def folders(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Make two checkpoints of the same model."""
    root = tmp_path_factory.mktemp("checkpoints")
    return [assemble(Plan(str(tiny_base), name=name), root / name) for name in ("one", "other")]


def compare(
    folders: list[Path], pairs: Path, criteria: str | None = None, on_progress: OnProgress = lambda *_: None
) -> Compared:
    first, second = folders
    return compare_checkpoints(first, second, pairs, criteria, seed=0, on_progress=on_progress)


def test_checkpoint_equals_itself(folders: list[Path], pairs_file: Path, pairs: tuple[Pair, ...]) -> None:
    found = compare(folders, pairs_file)
    comparison = found.comparison.to_json()
    assert (comparison["pairs"], comparison["requests"]) == (len(pairs), len({pair.query for pair in pairs}))
    assert comparison["same_grade"]["mean"] == 1
    assert comparison["score_distance"]["mean"] == 0
    assert found.evaluation is not None
    assert found.evaluation.rows["first (one)"] == found.evaluation.rows["second (other)"]
    assert len(found.time_ratios) == 1
    assert found.first.prompt_tokens == found.second.prompt_tokens > 0


def test_another_prompt_changes_scores_and_cost(
    tiny_base: Path, tmp_path: Path, folders: list[Path], pairs_file: Path
) -> None:
    criteria = load_criteria("product-2")
    other = assemble(Plan(str(tiny_base), criteria=criteria, name="shorter"), tmp_path / "shorter")
    found = compare([folders[0], other], pairs_file)
    assert found.comparison.to_json()["score_distance"]["mean"] > 0
    assert found.second.prompt_tokens < found.first.prompt_tokens
    text = found.describe()
    for expected in ("first   one sha256:", "prompt tokens/pair", "from grade 3", "second (shorter)"):
        assert expected in text


def test_labels_are_optional_and_the_json_names_pairs_by_id(
    folders: list[Path], pairs: tuple[Pair, ...], tmp_path: Path
) -> None:
    unjudged = tmp_path / "unjudged.jsonl"
    rows = [
        {"id": pair.id, "query": pair.query, "note": {"title": None, "body": pair.note.body}}
        for pair in pairs[:5]
    ]
    unjudged.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    out = tmp_path / "found.json"
    done = CliRunner().invoke(
        app, ["compare", *map(str, folders), "--pairs", str(unjudged), "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    assert "5 pairs of" in done.output
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["evaluation"] is None
    assert [each["id"] for each in found["pairs"]] == [pair.id for pair in pairs[:5]]
    assert all(pair.query not in out.read_text(encoding="utf-8") for pair in pairs[:5])
    assert UNJUDGED not in [grade for each in found["pairs"] for grade in each["grades"]]


def test_criteria_that_one_checkpoint_lacks_are_refused(folders: list[Path], pairs_file: Path) -> None:
    with pytest.raises(ComparisonError, match="one has no criteria forum-1; it has general-1"):
        compare(folders, pairs_file, "forum-1")


def test_folder_without_a_checkpoint_is_refused(
    folders: list[Path], pairs_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError):
        compare([folders[0], tmp_path], pairs_file)


def test_pair_that_does_not_fit_the_prompt_is_refused_before_scoring(
    folders: list[Path], pairs: tuple[Pair, ...], tmp_path: Path
) -> None:
    file, reported = tmp_path / "pairs.jsonl", list[object]()
    write_pairs(file, [*pairs, replace(pairs[-1], id="long", query="word " * 1000)])
    complaint = "one: pairs whose query is too long: long of pairs: the query has"
    with pytest.raises(PromptingError, match=complaint):
        compare(folders, file, on_progress=lambda *step: reported.append(step))
    assert reported == []
