"""A run whose student learns from the control alone; test_run_and_resume.py runs all teachers."""

from pathlib import Path

import pytest

from model_export.data.mine import read_mined
from model_export.data.pairs import DataError, Pair, write_pairs
from model_export.data.soft_labels import SOFT_LABELS, read_soft_labels
from model_export.run import run
from model_export.stages import RunError
from model_export.vectors.text_readings import TextReadings
from service.contract.checkpoint import load_checkpoint
from service.contract.prompt import Note
from tests.tiny_teacher import control_as_teacher


def write_shop(folder: Path) -> None:
    for split in ("train", "dev"):
        pairs = [
            Pair(
                f"{split}-{n}", f"{split} lamp {n % 5}", Note(f"lamp {n}", "Red."), n % 4, "shop", "product-2"
            )
            for n in range(20)
        ]
        write_pairs(folder / f"{split}.jsonl", pairs)


def test_criteria_of_other_than_three_steps_are_refused_before_training(tmp_path: Path) -> None:
    write_shop(tmp_path)
    two = tmp_path / "two.toml"
    two.write_text('name = "two-1"\ntext = "Grade it."\nsteps = ["for", "against"]\n', encoding="utf-8")
    source = {"name": "shop", "train": "train.jsonl", "dev": "dev.jsonl", "criteria": str(two)}
    recipe = control_as_teacher(data={"synthetic": None, "sources": [source]})
    with pytest.raises(DataError, match="criteria two-1: traces by evidence have three steps"):
        run(recipe, "", tmp_path, tmp_path / "out", lambda *_: None)
    assert not list((tmp_path / "out").glob("label_only_sft*"))


def test_control_can_not_teach_where_the_data_has_findings(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="needs pairs without findings"):
        run(control_as_teacher(), "", tmp_path, tmp_path / "out", lambda *_: None)


def test_control_can_be_the_only_teacher(tmp_path: Path) -> None:
    write_shop(tmp_path)
    source = {"name": "shop", "train": "train.jsonl", "dev": "dev.jsonl", "criteria": "product-2"}
    recipe = control_as_teacher(
        data={"synthetic": None, "sources": [source]}, evidence={"pairs": 9}, evaluate={"explanations": 2}
    )
    out = tmp_path / "out"
    found = run(recipe, "", tmp_path, out, lambda *_: None)
    assert [*found.rows] == ["majority", "bm25", "zero_shot", "label_only_sft", "student"]
    [evidence] = out.glob("evidence-*")
    labels = read_soft_labels(evidence / SOFT_LABELS)
    assert len(labels) == 9
    assert all(each.traces and sum(each.distribution) > 0.99 for each in labels.values())
    assert "the control, by its evidence on at most 9 pairs" in (out / "checkpoint" / "README.md").read_text()
    assert load_checkpoint(out / "checkpoint").manifest.name == "micro"


def test_encoder_learns_from_unlabelled_pairs_without_a_stack(tmp_path: Path) -> None:
    write_shop(tmp_path)
    source = {"name": "shop", "train": "train.jsonl", "dev": "dev.jsonl", "criteria": "product-2"}
    recipe = control_as_teacher(
        data={"synthetic": None, "sources": [source]},
        evidence={"pairs": 9},
        evaluate={"explanations": 0},
        unlabelled={"pairs": 20, "encoder": ""},
        encode={"steps": 2, "batch_size": 4, "vectors": [1], "served": 1, "min_share": 0.0},
    )
    out = tmp_path / "out"
    run(recipe, "", tmp_path, out, lambda *_: None)
    [mined], [readings] = out.glob("unlabelled-*"), out.glob("text_readings-*/*.npz")
    assert len(TextReadings.load(readings).probabilities) == 20 + len(read_mined(mined)) > 20
    assert load_checkpoint(out / "checkpoint").manifest.vectors
