"""The `notegrade` command runs as a user runs it, on the real engine."""

import json
from pathlib import Path

import pytest

from tests.end_to_end.service_process import TINY_STUDENT
from tests.processes import ROOT, run

pytestmark = [pytest.mark.engine, pytest.mark.slow]


def test_notes_are_scored_offline_and_bad_lines_reported(tmp_path: Path) -> None:
    lines = (ROOT / "examples" / "notes.jsonl").read_text(encoding="utf-8").splitlines()
    notes = tmp_path / "notes.jsonl"
    notes.write_text(
        "\n".join([*lines[:3], "{broken", *lines[3:5], '{"id": "x"}', lines[0]]), encoding="utf-8"
    )
    command = [
        ".venv/bin/notegrade",
        "score",
        "--query",
        "quiet cafes to work in lisbon",
        "--json",
        "--notes",
    ]
    done = run(*command, notes, NOTEGRADE_CHECKPOINT=str(TINY_STUDENT), COLUMNS="120")
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [result["id"] for result in results] == [json.loads(line)["id"] for line in lines[:5]]
    assert all(result["outcome"] == "scored" and 0 <= result["score"] <= 1 for result in results)
    assert done.returncode == 1
    for number, reason in ((4, "Invalid JSON"), (7, "Field required"), (8, "earlier line")):
        assert f"line {number}" in done.stderr
        assert reason in done.stderr
    assert "Traceback" not in done.stderr
