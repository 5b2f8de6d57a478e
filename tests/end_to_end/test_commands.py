"""The `notegrade` command runs as a user runs it, on the real engine."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from service.contract.manifest import read_manifest
from tests.end_to_end.service_process import ROOT, TINY_STUDENT, free_port, start_service

pytestmark = pytest.mark.engine

NOTEGRADE = str(ROOT / ".venv" / "bin" / "notegrade")


def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [NOTEGRADE, *arguments],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "120", **environment},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.mark.usefixtures("default_checkpoint")
def test_notes_are_scored_offline_and_bad_lines_reported(tmp_path: Path) -> None:
    lines = (ROOT / "examples" / "notes.jsonl").read_text(encoding="utf-8").splitlines()
    notes = tmp_path / "notes.jsonl"
    notes.write_text(
        "\n".join([*lines[:3], "{broken", *lines[3:5], '{"id": "x"}', lines[0]]), encoding="utf-8"
    )
    done = run("score", "--query", "quiet cafes to work in lisbon", "--notes", str(notes), "--json")
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [result["id"] for result in results] == [json.loads(line)["id"] for line in lines[:5]]
    assert all(result["outcome"] == "scored" and 0 <= result["score"] <= 1 for result in results)
    assert done.returncode == 1
    for number, reason in ((4, "Invalid JSON"), (7, "Field required"), (8, "earlier line")):
        assert f"line {number}" in done.stderr
        assert reason in done.stderr
    assert "Traceback" not in done.stderr


def test_an_engine_that_fails_the_probes_never_becomes_ready(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(TINY_STUDENT, folder)
    probes = folder / "probes.jsonl"
    first, *rest = probes.read_text(encoding="utf-8").splitlines()
    wrong = json.loads(first) | {"distribution": [0.97, 0.01, 0.01, 0.01]}
    probes.unlink()
    probes.write_text("\n".join([json.dumps(wrong), *rest]), encoding="utf-8")
    port = free_port()
    service = start_service(
        tmp_path / "log", [NOTEGRADE, "serve", "--port", str(port), "--checkpoint", str(folder)], port
    )
    try:
        service.wait_for("ok", "probe_mismatch", "engine_lost")
        assert service.readiness[-1] == (503, "probe_mismatch")
        assert "1 of 32 probes differ" in service.written()
    finally:
        service.interrupt()
    assert service.process.returncode == 0, service.written()[-2000:]
    assert read_manifest(folder) == read_manifest(TINY_STUDENT)
