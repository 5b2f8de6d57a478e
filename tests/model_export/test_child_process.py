import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from model_export.child_process import start_child
from tests.processes import is_running
from tests.waiting import wait_until

# Starts a child that starts a child, tells their ids, and is then killed outright.
STARTER = """
import pathlib, sys, time
from model_export.child_process import start_child
start_child(["/bin/sh", "-c", "sleep 600 & echo $! $$; wait"], pathlib.Path(sys.argv[1]))
time.sleep(600)
"""


@pytest.mark.parametrize("signal_at_end", ["TERM", "KILL"])
def test_group_gets_the_signal_when_the_pipe_closes(
    tmp_path: Path, signal_at_end: Literal["TERM", "KILL"]
) -> None:
    process = start_child(
        ["/bin/sh", "-c", "sleep 600 & echo up; wait"], tmp_path / "log", signal_at_end=signal_at_end
    )
    assert process.stdin is not None
    assert process.poll() is None
    process.stdin.close()  # as the kernel does for a process that was killed
    assert process.wait(5) == -signal.Signals[f"SIG{signal_at_end}"]


def test_child_and_its_own_child_end_with_a_killed_parent(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with subprocess.Popen([sys.executable, "-c", STARTER, str(log)]) as parent:
        started = [int(pid) for pid in wait_for_line(log).split()]
        parent.kill()
    wait_until(lambda: not any(is_running(pid) for pid in started))


def wait_for_line(log: Path) -> str:
    wait_until(lambda: log.exists() and log.read_text(encoding="utf-8").endswith("\n"))
    return log.read_text(encoding="utf-8")


def test_exit_code_is_the_command_s(tmp_path: Path) -> None:
    process = start_child(["/bin/sh", "-c", "exit 7"], tmp_path / "log")
    assert process.wait(5) == 7
    assert process.stdin is not None
    process.stdin.close()


def test_piped_output_ends_with_the_command(tmp_path: Path) -> None:
    process = start_child(
        ["/bin/sh", "-c", 'echo "$WORD"; echo bad >&2'],
        tmp_path / "log",
        environment={**os.environ, "WORD": "good"},
        pipe_stdout=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    with process.stdout, process.stdin:
        assert process.stdout.read() == b"good\n"  # though the watcher still waits
    assert (tmp_path / "log").read_text(encoding="utf-8") == "bad\n"
    process.wait(5)
