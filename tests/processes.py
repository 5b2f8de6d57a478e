"""Runs commands in the repository."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(
    *command: str | Path, within_s: float = 300, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Run the command with these variables added to the environment; return its exit code and output."""
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=within_s,
        check=False,
    )


def output_of(*command: str | Path, within_s: float = 300, **environment: str) -> str:
    """Run the command, which must succeed, and return its stdout."""
    done = run(*command, within_s=within_s, **environment)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def is_running(pid: int) -> bool:
    """Return whether the process exists and has not ended."""
    # Z: it ended, and nobody has read its exit status. Process 1 may be no init.
    return state_of(pid) not in ("", "Z")


def state_of(pid: int) -> str:
    """Return the letter of the process's state, as `ps` shows it; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return ""
