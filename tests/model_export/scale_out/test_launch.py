import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from model_export.data.prepare import load_data, prepare_base, prepare_data
from model_export.data.prompting import PromptForm, Prompting
from model_export.run_log import read_log
from model_export.scale_out import launch as launching
from model_export.scale_out.launch import LaunchError, launch, train_stage
from model_export.training.stage_job import StageJob
from tests.tiny_teacher import TinyTeacher, micro_job

Patch = pytest.MonkeyPatch


def make_job(root: Path, *, name: str = "together", processes: int = 2, **cot_sft: int) -> StageJob:
    """Return a job of a stage whose examples differ in length, and so in their number of target tokens."""
    changes = {"launch": {"processes": processes}, "cot_sft": {"steps": 12, **cot_sft}}
    return micro_job("cot_sft", root / "base", root / name, **changes)


def play(monkeypatch: Patch, script: str) -> None:
    """Run a script in place of torchrun and its processes."""
    monkeypatch.setattr(
        launching, "_command", lambda _processes, job: [sys.executable, "-c", script, str(job)]
    )


def test_steps_of_the_first_process_are_passed_on(tmp_path: Path, monkeypatch: Patch) -> None:
    play(monkeypatch, "print('hello'); print('notegrade-step 1 2'); print('notegrade-step 2 2')")
    seen: list[tuple[int, int]] = []
    job = make_job(tmp_path)
    launch(job, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
    assert list(job.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("print('notegrade-error loss_type is wrong: take dapo')", r"^loss_type is wrong: take dapo$"),
        (
            "print('CUDA out of memory', file=sys.stderr)",
            r"cot_sft ended with exit code 1; .*\n.*CUDA out of memory",
        ),
    ],
)
def test_failure_shows_the_first_process_s_error_or_the_end_of_the_log(
    tmp_path: Path, monkeypatch: Patch, script: str, message: str
) -> None:
    play(monkeypatch, f"import sys; {script}; sys.exit(1)")
    with pytest.raises(LaunchError, match=message):
        launch(make_job(tmp_path), lambda *_: None)


def test_interrupted_run_ends_its_processes(tmp_path: Path, monkeypatch: Patch) -> None:
    play(monkeypatch, "import time; print('notegrade-step 1 2', flush=True); time.sleep(600)")
    started = []
    original = subprocess.Popen

    def start(*args: Any, **kwargs: Any) -> Any:
        started.append(original(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)

    def interrupt(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launch(make_job(tmp_path), interrupt)
    assert started[0].poll() is not None


@pytest.mark.timeout(900)  # two processes import torch at once, on a machine that may be busy
def test_two_processes_train_the_same_weights_on_some_pairs_as_one(tmp_path: Path) -> None:
    """The two processes also add up micro-batches."""
    together, alone = make_job(tmp_path, micro_batch=2), make_job(tmp_path, name="alone", processes=1)
    for folder in (together.data, together.start):
        folder.mkdir()
    prepare_data(together.recipe, tmp_path, together.data)
    data = load_data(together.data)
    prepare_base("tiny", together.recipe, data, together.start)
    ids = frozenset(pair.id for pair in data.train[:12])
    together, alone = (job.model_copy(update={"ids": ids}) for job in (together, alone))
    seen: list[tuple[int, int]] = []
    launch(together, lambda done, total: seen.append((done, total)))
    prompting = Prompting.load(PromptForm.of(alone.recipe.model, data.criteria), alone.start)
    train_stage(alone, data, prompting, lambda *_: None)

    steps = alone.recipe.cot_sft.steps
    assert seen == [(step, steps) for step in range(1, steps + 1)]
    assert {path.name for path in together.folder.iterdir()} == {path.name for path in alone.folder.iterdir()}
    logged, expected_log = (read_log(job.folder / "log.jsonl") for job in (together, alone))
    assert [row["step"] for row in logged] == [row["step"] for row in expected_log]
    assert len((together.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()) == len(logged)
    found, expected, start = (
        load_file(folder / "model.safetensors") for folder in (together.folder, alone.folder, alone.start)
    )
    for name, weight in expected.items():
        # They add up the same gradients in another order.
        np.testing.assert_allclose(found[name], weight, atol=1e-4)
    assert any(np.abs(weight - start[name]).max() > 1e-2 for name, weight in expected.items())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_mask_their_groups_and_keep_the_best_weights(
    tiny_teacher: TinyTeacher, tmp_path: Path
) -> None:
    rl = {"micro_batch": 2, "dev_pairs": 8, "eval_steps": 1, "learning_rate": 3e-3}
    job = micro_job("rl", tiny_teacher.folder, tmp_path / "rl", launch={"processes": 2}, rl=rl)
    job.data.mkdir()
    prepare_data(job.recipe, tmp_path, job.data)
    launch(job, lambda *_: None)
    rows = read_log(job.folder / "log.jsonl")
    assert [row["step"] for row in rows if "eval_reward" in row] == [0, 1, 2, 3]
    shares = [row["unmasked_share"] for row in rows if "loss" in row]  # None where every group agrees
    assert any(shares)
    assert all(share is None or 0 < share <= 1 for share in shares)
    assert {path.name for path in job.folder.iterdir()} >= {"model.safetensors", "tokenizer.json"}
    assert not list(job.folder.glob("best-*"))
