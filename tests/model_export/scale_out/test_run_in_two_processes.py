"""A run that trains in two processes (gloo): killed in supervised training and in RL, resumed, and compared with an undisturbed one."""

import json
import shutil
import signal
from pathlib import Path

import pytest

from service.contract.checkpoint import load_checkpoint
from tests.killable_run import command, run_killed_at
from tests.tiny_teacher import MICRO

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(3600)]
WITHIN_S = 600.0  # each stage starts two processes that import torch
# In the order that a run comes to them. One process alone exports what both have trained: test_run_and_resume.py kills that.
MOMENTS = [
    ("Train label_only_sft", 6),  # between a saved state and the next
    ("Train rl", 2),
]
# What is trained again; a stage that starts from it is kept where that trained the same weights.
REPEATED = ("label_only_sft", "rl", "checkpoint")


def test_killed_run_resumes_to_the_same_checkpoint(tmp_path: Path) -> None:
    recipe, log, whole, killed = (tmp_path / name for name in ("two.toml", "log.txt", "whole", "killed"))
    recipe.write_text(MICRO + "[launch]\nprocesses = 2\n", encoding="utf-8")

    def run(out: Path) -> int:
        return command(log, "run", str(recipe), "--out", str(out), within_s=WITHIN_S)

    def weights(out: Path) -> list[bytes]:
        stages = ("label_only_sft", "rl")
        return [path.read_bytes() for stage in stages for path in out.glob(f"{stage}-*/model.safetensors")]

    assert run(whole) == 0, log.read_text(encoding="utf-8")
    shutil.copytree(whole, killed)
    for path in [path for stage in REPEATED for path in killed.glob(f"{stage}*")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for stage, step in MOMENTS:
        ended = run_killed_at(log, recipe, killed, stage, step, within_s=WITHIN_S)
        assert ended == -signal.SIGKILL, (stage, log.read_text(encoding="utf-8"))
    assert run(killed) == 0, log.read_text(encoding="utf-8")
    rows = [json.loads((out / "results.json").read_text(encoding="utf-8"))["rows"] for out in (whole, killed)]
    assert rows[0] == rows[1]
    assert weights(killed) == weights(whole)
    assert len(weights(whole)) == 2
    fingerprints = {load_checkpoint(out / "checkpoint").manifest.fingerprint for out in (whole, killed)}
    assert len(fingerprints) == 1
