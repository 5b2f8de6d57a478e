"""The table of settings is measured on fake engines whose speed depends on the setting."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import pytest

from load_tests.bench import offline
from load_tests.bench.offline import OfflineEngine
from load_tests.engine_knobs import KNOBS, main
from tests.checkpoints import load_tiny

ANSWERS = """
import json, sys
print("ready", flush=True)
for line in sys.stdin:
    prompts = json.loads(line)
    print(json.dumps({"seconds": len(prompts) / RATE, "grades": [GRADE] * len(prompts)}), flush=True)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    start = offline._start

    def start_other(command: Sequence[str], log: IO[bytes]) -> "subprocess.Popen[str]":
        arguments = json.loads(command[-1])
        if arguments.get("distributed_executor_backend") == "mp":
            return start([sys.executable, "-c", "import sys; sys.exit('ValueError: not here')"], log)
        rate, grade = (150, 1.25) if arguments.get("block_size") == 64 else (100, 1.0)
        script = ANSWERS.replace("RATE", str(rate)).replace("GRADE", str(grade))
        return start([sys.executable, "-c", script], log)

    monkeypatch.setattr(offline, "_start", start_other)
    return load_tiny(tmp_path / "checkpoint").folder


def test_each_knob_is_compared_with_the_engine_as_served(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = ["--rounds", "2", "--requests", "1", "--notes", "4"]
    main(["--checkpoint", str(folder), "--knobs", "blocks-64,seats-16,executor-mp", *size])
    _, served, blocks, seats, absent = capsys.readouterr().out.splitlines()
    assert served.startswith("as served")
    assert "1.00 / 1.00 / 1.00 times as served" in served
    assert blocks.startswith("blocks-64")
    assert "1.50 / 1.50 / 1.50 times as served, grades differ by up to 0.250" in blocks
    assert "1.00 / 1.00 / 1.00 times as served, grades differ by up to 0.000" in seats
    assert absent.startswith("executor-mp")
    assert "not here" in absent


def test_other_weights_get_the_same_prompts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_tiny(folder.parent / "other")
    size = ["--rounds", "2", "--requests", "1", "--notes", "4"]
    main(["--checkpoint", str(folder), "--beside", str(folder.parent / "other"), *size])
    assert "1.00 / 1.00 / 1.00 times as served" in capsys.readouterr().out.splitlines()[-1]


def test_variables_are_set_before_the_process_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[Sequence[str]] = []

    def start_none(command: Sequence[str], _: IO[bytes]) -> "subprocess.Popen[str]":
        started.append(command)
        raise OSError("enough")

    monkeypatch.setattr(offline, "_start", start_none)
    engine = OfflineEngine(load_tiny(tmp_path / "checkpoint"), knobs=KNOBS["one-thread"])
    with pytest.raises(OSError, match="enough"), engine.running():
        pass
    command = list(started[0])
    variables = command[1 : command.index(sys.executable)]
    assert command[0] == "env"
    assert "OMP_NUM_THREADS=1" in variables
    assert any(variable.startswith("MALLOC_TRIM_THRESHOLD_=") for variable in variables)


def test_unknown_knob_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--knobs", "blocks-65"])
    assert "unknown knobs: blocks-65" in capsys.readouterr().err


def test_nothing_to_compare_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([])
    assert "--knobs or --beside" in capsys.readouterr().err


def test_every_knob_changes_something() -> None:
    assert all(knobs.arguments or knobs.environment for knobs in KNOBS.values())
