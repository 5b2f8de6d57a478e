import asyncio
import inspect
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from model_export.__main__ import assemble, main
from model_export.checkpoint.adapter import read_description
from model_export.checkpoint.assemble import Plan
from model_export.checkpoint.assemble import assemble as assemble_checkpoint
from model_export.data.criteria import DEFAULT_CRITERIA
from model_export.data.pairs import write_pairs
from model_export.data.synthetic import generate
from model_export.models.base_model import DEFAULT_BASE
from service.contract.checkpoint import load_checkpoint
from tests.tiny_adapter import make_adapter
from tests.tiny_base import make_tiny_base
from tests.tiny_teacher import MICRO
from tests.waiting import until


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run `notegrade-train` in this process with these arguments, and return its exit code."""

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["notegrade-train", *map(str, arguments)])
        monkeypatch.setattr(signal, "signal", lambda *_: None)
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    return run


def test_assemble_makes_a_folder(
    run: Callable[..., int], tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    prompt = ("--name", "mine", "--template", "query-first-1")
    assert run("assemble", "--base", tiny_base, "--out", out, *prompt) == 0
    manifest = load_checkpoint(out).manifest
    assert (manifest.name, manifest.template.name) == ("mine", "query-first-1")
    captured = capsys.readouterr()
    assert captured.out == f"{out} is ready\n"
    assert "Compute probes" in captured.err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--base", "nowhere"], "no base 'nowhere'"),
        (["--template", "cue-first"], "no template 'cue-first'"),
        (["--criteria", "strict"], "no criteria 'strict'"),
        (["--name", "a b"], "'a b' is not a valid checkpoint name"),
    ],
)
def test_mistake_is_one_line_and_exit_code_2(
    run: Callable[..., int],
    arguments: list[str],
    complaint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("assemble", "--out", tmp_path / "out", *arguments) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"notegrade-train: {complaint}")
    assert names(tmp_path) == []


def test_unwritable_folder_is_one_line(
    run: Callable[..., int], tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert run("assemble", "--out", tmp_path / "file" / "out", "--base", tiny_base) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_bad_line_is_the_only_output(tmp_path: Path) -> None:
    """Run in its own process, because libraries print when they are imported."""
    pair = {"query": "q", "note": {"title": None, "body": "b"}, "label": 3}
    right, wrong = {**pair, "id": "1"}, {**pair, "id": "2", "label": "3"}
    (tmp_path / "mine.jsonl").write_text(f"{json.dumps(right)}\n{json.dumps(wrong)}\n", encoding="utf-8")
    source = '[[data.sources]]\nname = "mine"\ntrain = "mine.jsonl"\ndev = "mine.jsonl"\n'
    recipe = re.sub(r"\[data.synthetic\]\n(.+\n)+", source, MICRO)
    (tmp_path / "mine.toml").write_text(recipe, encoding="utf-8")
    command = ["run", str(tmp_path / "mine.toml"), "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    ended = subprocess.run(
        [sys.executable, "-m", "model_export", *command], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    [line] = ended.stderr.splitlines()
    assert line == f"notegrade-train: {tmp_path}/mine.jsonl: line 2: label: Input should be a valid integer"


def test_evaluate_measures_on_test_pairs_with_what_dev_pairs_gave(
    run: Callable[..., int], tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = generate(1, 40, 4, 4)
    for split, pairs in (("train", made.train), ("dev", made.dev)):
        write_pairs(tmp_path / f"{split}.jsonl", pairs)
    source = '[[data.sources]]\nname = "mine"\ntrain = "train.jsonl"\ndev = "dev.jsonl"\n'
    text = re.sub(r"\[data.synthetic\]\n(.+\n)+", source, MICRO)
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    adapter = make_adapter(tiny_base, tmp_path / "adapter")
    checkpoint = assemble_checkpoint(Plan(str(tiny_base), adapter=adapter), tmp_path / "checkpoint")
    on_dev = (
        "evaluate",
        checkpoint,
        "--recipe",
        tmp_path / "mine.toml",
        "--data",
        tmp_path,
        "--card",
        adapter,
    )
    assert run(*on_dev) == 2
    assert "--card needs --test" in capsys.readouterr().err
    arguments = (*on_dev, "--test")
    assert run(*arguments) == 2
    assert "no test pairs: set test or test_share" in capsys.readouterr().err
    (tmp_path / "mine.toml").write_text(text.replace(source, source + "test_share = 0.2\n"), encoding="utf-8")
    figures = tmp_path / "figures.json"
    assert run(*arguments, "--model", f"base={tiny_base}", "--out", figures) == 0
    found = json.loads(figures.read_text(encoding="utf-8"))
    name = read_description(adapter).name
    assert list(found["rows"]) == ["majority", "bm25", name, "base"]
    noted = read_description(adapter).training.test
    pairs = found["sizes"]["all"]["pairs"]
    assert [row[:2] for row in noted[1:5]] == [(f"all: {pairs}", system) for system in found["rows"]]
    assert 0 < found["sizes"]["all"]["queries"] < 40
    assert found["fitted"]["base"]["calibration"]["data"] == "16 dev pairs of mine"


def test_help_does_not_load_torch() -> None:
    script = "import sys; from model_export.__main__ import main\n"
    script += "try: main()\nexcept SystemExit: print(sorted({'torch', 'transformers', 'pydantic'} & set(sys.modules)))"
    found = subprocess.run(
        [sys.executable, "-c", script, "--help"], capture_output=True, text=True, check=True
    )
    assert "assemble" in found.stdout
    assert found.stdout.splitlines()[-1] == "[]"


async def test_terminated_run_leaves_nothing(tiny_base: Path, tmp_path: Path) -> None:
    # The child waits where it would write the contract, so that it cannot finish before the signal.
    script = "import sys, time; from model_export.checkpoint import assemble; from model_export.__main__ import main\n"
    script += "assemble.write_contract = lambda *_: time.sleep(60); main()"
    arguments = ["assemble", "--base", str(tiny_base), "--out", str(tmp_path / "out")]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, *arguments, stderr=asyncio.subprocess.DEVNULL
    )
    await until(lambda: names(tmp_path) != [], within_s=60)
    process.terminate()
    assert await asyncio.wait_for(process.wait(), 60) == 128 + signal.SIGTERM
    assert names(tmp_path) == []


@pytest.mark.engine
def test_hub_base_is_named_with_its_commit(tmp_path: Path) -> None:
    repository, commit = tmp_path / "hub" / "models--owner--tiny", "0123456789" * 4
    make_tiny_base(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = ["-m", "model_export", "assemble", "--base", "owner/tiny", "--out", str(tmp_path / "out")]
    ended = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    base = load_checkpoint(tmp_path / "out").manifest.base
    assert (base.name, base.licence, base.source) == ("owner/tiny", "cc0-1.0", f"hub owner/tiny@{commit}")


def test_defaults_are_those_of_their_modules() -> None:
    """The command repeats the defaults, because importing their modules takes seconds."""
    parameters = inspect.signature(assemble).parameters
    assert parameters["base"].default == DEFAULT_BASE
    [option] = get_args(parameters["criteria"].annotation)[1:]
    assert DEFAULT_CRITERIA in option.help


def test_experiment_takes_changes_of_its_recipe(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "micro.toml"
    recipe.write_text(MICRO, encoding="utf-8")
    assert run("experiment", recipe, "--out", tmp_path / "out", "--set", 'experiment.arms=["best"]') == 2
    assert "experiment.arms" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
