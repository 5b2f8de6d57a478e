import json
from pathlib import Path

import pytest

from model_export.run_log import RunLog, read_log


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.jsonl"


def test_rows_are_read_back_by_stage_and_step(path: Path) -> None:
    RunLog(path, "sft").write(10, {"loss": 0.5})
    RunLog(path, "sft").write(5, {"loss": 1.5, "correlation": 0.1})
    RunLog(path, "rl").write(1, {"reward": 1.0})
    rows = read_log(path)
    assert [(row["stage"], row["step"]) for row in rows] == [("rl", 1), ("sft", 5), ("sft", 10)]
    assert rows[1]["loss"] == 1.5
    assert all(row["time"].endswith("+00:00") for row in rows)


def test_no_log_has_no_rows(path: Path) -> None:
    assert read_log(path) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_become_null(path: Path, value: float) -> None:
    RunLog(path, "sft").write(1, {"correlation": value, "loss": 2.0})
    assert "null" in path.read_text(encoding="utf-8")
    [row] = read_log(path)
    assert (row["correlation"], row["loss"]) == (None, 2.0)


def test_row_cut_by_a_kill_is_ignored(path: Path) -> None:
    RunLog(path, "sft").write(1, {"loss": 1.0})
    whole = path.read_bytes()
    RunLog(path, "sft").write(2, {"loss": 2.0})
    path.write_bytes(path.read_bytes()[: len(whole) + 30])
    assert [row["step"] for row in read_log(path)] == [1]
    resumed = RunLog(path, "sft")
    resumed.write(2, {"loss": 3.0})
    resumed.write(3, {"loss": 4.0})
    assert [(row["step"], row["loss"]) for row in read_log(path)] == [(1, 1.0), (2, 3.0), (3, 4.0)]


def test_rows_of_one_step_are_merged_with_the_last_values(path: Path) -> None:
    """A resumed stage repeats a step, and a summary shares the last one."""
    log = RunLog(path, "sft")
    log.write(5, {"loss": 9.0})
    log.write(5, {"loss": 1.0})
    log.write(5, {"train_runtime": 3.0})
    [row] = read_log(path)
    assert (row["loss"], row["train_runtime"]) == (1.0, 3.0)


def test_rows_are_strict_json(path: Path) -> None:
    RunLog(path, "sft").write(1, {"loss": 1.0, "note": "é"})
    [line] = path.read_text(encoding="utf-8").splitlines()
    assert set(json.loads(line)) == {"time", "stage", "step", "loss", "note"}
