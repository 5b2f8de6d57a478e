import hashlib
import subprocess
from pathlib import Path
from typing import Any

import pytest

from load_tests.bench.peers.infinity_environment import LOCK, ensure_infinity
from load_tests.processes import Unavailable


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Record uv's commands instead of running them; each one succeeds."""
    ran: list[list[str]] = []

    def run(command: list[str], **options: Any) -> "subprocess.CompletedProcess[str]":
        if command[1:2] == ["venv"]:
            Path(command[-1]).mkdir()
        if "pip" in command or "venv" in command:
            ran.append(command[1:])
        return subprocess.CompletedProcess(command, 0, stdout="UV_FIND_LINKS=/nowhere\0", stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    return ran


def test_environment_is_installed_from_the_lock_with_cpu_torch(
    commands: list[list[str]], tmp_path: Path
) -> None:
    assert ensure_infinity(tmp_path / "venv") == tmp_path / "venv" / "bin" / "infinity_emb"
    made, torch, rest = commands
    assert made[:1] == ["venv"]
    assert torch[-3:-1] == ["--torch-backend", "cpu"]
    assert torch[-1].startswith("torch==")
    assert rest[-2:] == ["-r", str(LOCK)]


def test_environment_is_installed_once(commands: list[list[str]], tmp_path: Path) -> None:
    ensure_infinity(tmp_path / "venv")
    ensure_infinity(tmp_path / "venv")
    assert len(commands) == 3


def test_environment_is_reinstalled_when_the_lock_changes(commands: list[list[str]], tmp_path: Path) -> None:
    (tmp_path / "lock.sha256").write_text(hashlib.sha256(b"another").hexdigest(), encoding="utf-8")
    (tmp_path / "venv").mkdir()
    (tmp_path / "lock.sha256").rename(tmp_path / "venv" / "lock.sha256")
    with pytest.raises(FileExistsError):  # our uv makes a folder, where the real one clears it
        ensure_infinity(tmp_path / "venv")


def test_error_of_uv_is_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("UV_FIND_LINKS", "")
    with pytest.raises(Unavailable, match=r"(?s)infinity-emb can't be installed: error: .*torch"):
        ensure_infinity(tmp_path / "venv")
    assert not (tmp_path / "venv" / "lock.sha256").exists()


def test_lock_pins_every_package_once() -> None:
    names = [line.partition("==") for line in LOCK.read_text(encoding="utf-8").splitlines()]
    assert all(version for _, _, version in names)
    assert len({name for name, _, _ in names}) == len(names)
    assert not any("+" in version for _, _, version in names)  # a local build, which no index has
