"""A run that labels on Ray with two workers on this machine's CPU: killed, resumed, and compared with an undisturbed one."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.killable_run import command, run_killed_at
from tests.tiny_teacher import MICRO

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(3600)]
WITHIN_S = 900.0  # several processes import vLLM or torch four times
ON_RAY = """
[unlabelled]
pairs = 40
encoder = ""

[stack]
teachers = ["lexical", "reasoning"]
folds = 2

[launch]
ray_workers = 2
"""
# Enough pairs for two chunks of features in each fold.
CHANGES = {
    "train_queries = 6": "train_queries = 40",
    "[rl]\nsteps = 3": "[rl]\nsteps = 0",
    "[label]\npairs = 8": '[label]\nteacher = "cot_sft"\npairs = 100',
}
# The stages that work on Ray, and those that depend on them.
REPEATED = ("label", "features", "stack", "distil", "predict_student", "checkpoint", "results", "report")


def write_recipe(folder: Path) -> Path:
    text = MICRO
    for old, new in CHANGES.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "ray.toml").write_text(text + ON_RAY, encoding="utf-8")
    return folder / "ray.toml"


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_killed_run_resumes_to_the_same_checkpoint(tmp_path: Path) -> None:
    recipe, log, whole, killed = (tmp_path / name for name in ("ray.toml", "log.txt", "whole", "killed"))
    write_recipe(tmp_path)
    assert command(log, "run", str(recipe), "--out", str(whole), within_s=WITHIN_S) == 0, log.read_text(
        encoding="utf-8"
    )
    shutil.copytree(whole, killed)
    for path in killed.iterdir():
        if path.name.startswith(REPEATED) and not path.name.startswith("label_only"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    ended = run_killed_at(log, recipe, killed, "Soft labels", 60, within_s=WITHIN_S)
    assert ended == -signal.SIGKILL, log.read_text(encoding="utf-8")
    [partial] = killed.glob("*.partial")
    assert 0 < len([*partial.glob("labels-*")]) < 100
    assert command(log, "run", str(recipe), "--out", str(killed), within_s=WITHIN_S) == 0, log.read_text(
        encoding="utf-8"
    )
    fingerprints = {read_json(out / "checkpoint" / "manifest.json")["fingerprint"] for out in (whole, killed)}
    assert len(fingerprints) == 1
