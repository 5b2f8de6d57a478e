import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from model_export.data.prepare import load_data, prepare_base, prepare_data
from model_export.recipe import LaunchConfig, Recipe
from model_export.run_log import read_log
from model_export.scale_out import launch as launching
from model_export.scale_out.launch import LaunchError, StageJob, launch, train_stage
from tests.tiny_teacher import MICRO

ONE = Recipe.model_validate(tomllib.loads(MICRO))
TWO = ONE.model_copy(update={"launch": LaunchConfig(processes=2)})


def make_job(root: Path, recipe: Recipe = TWO, **changed: Any) -> StageJob:
    folder = root / "stage"
    folder.mkdir()
    fields = {"stage": "label_only_sft", "data": root / "data", "start": root / "base", "folder": folder}
    return StageJob(recipe=recipe, **{**fields, **changed})


def play(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Run a script in place of torchrun and its processes."""
    monkeypatch.setattr(
        launching, "_command", lambda _processes, job: [sys.executable, "-c", script, str(job)]
    )


def test_steps_of_the_first_process_are_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, "print('hello'); print('notegrade-step 1 2'); print('notegrade-step 2 2')")
    seen: list[tuple[int, int]] = []
    launch(make_job(tmp_path), lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
    assert list((tmp_path / "stage").iterdir()) == []


def test_job_file_round_trips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play(
        monkeypatch,
        "import pathlib, shutil, sys; shutil.copy(sys.argv[1], pathlib.Path(sys.argv[1]).parent / 'copy')",
    )
    job = make_job(tmp_path, stage="distil", soft_labels=tmp_path / "labels")
    launch(job, lambda *_: None)
    assert StageJob.model_validate_json((tmp_path / "stage" / "copy").read_text(encoding="utf-8")) == job


def test_error_of_the_first_process_is_raised_verbatim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, "import sys; print('notegrade-error loss_type is wrong: take dapo'); sys.exit(1)")
    with pytest.raises(LaunchError, match=r"^loss_type is wrong: take dapo$"):
        launch(make_job(tmp_path), lambda *_: None)


def test_other_failures_show_the_end_of_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, "import sys; print('CUDA out of memory', file=sys.stderr); sys.exit(1)")
    with pytest.raises(LaunchError, match=r"label_only_sft ended with exit code 1; .*\n.*CUDA out of memory"):
        launch(make_job(tmp_path), lambda *_: None)


def test_interrupted_run_ends_its_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_two_processes_train_the_same_weights_as_one(tmp_path: Path) -> None:
    prepare_data(TWO, tmp_path, make_folder(tmp_path / "data"))
    prepare_base("tiny", TWO, load_data(tmp_path / "data"), make_folder(tmp_path / "base"))
    seen: list[tuple[int, int]] = []
    launch(make_job(tmp_path), lambda done, total: seen.append((done, total)))
    alone = make_job(make_folder(tmp_path / "alone"), ONE, data=tmp_path / "data", start=tmp_path / "base")
    train_stage(alone, lambda *_: None)

    steps = ONE.label_only_sft.steps
    assert seen == [(step, steps) for step in range(1, steps + 1)]
    together = tmp_path / "stage"
    assert {path.name for path in together.iterdir()} == {path.name for path in alone.folder.iterdir()}
    logged = read_log(together / "log.jsonl")
    assert [row["step"] for row in logged] == [row["step"] for row in read_log(alone.folder / "log.jsonl")]
    assert len((together / "log.jsonl").read_text(encoding="utf-8").splitlines()) == len(logged)
    found, expected, start = (
        load_file(folder / "model.safetensors") for folder in (together, alone.folder, tmp_path / "base")
    )
    for name, weight in expected.items():
        # They add up the same gradients in another order.
        np.testing.assert_allclose(found[name], weight, atol=1e-4)
    assert any(np.abs(weight - start[name]).max() > 1e-2 for name, weight in expected.items())


def make_folder(path: Path) -> Path:
    path.mkdir()
    return path
