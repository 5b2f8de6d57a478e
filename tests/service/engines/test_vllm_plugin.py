"""vLLM's processes end with the one that started them, however it ends."""

import os
import signal
import subprocess
import sys
import threading
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from service.engines.vllm_plugin import end_with_parent
from tests.waiting import wait_until

PARENT = """
import multiprocessing, sys, time
from service.engines.vllm_plugin import end_with_parent

def work(told):
    end_with_parent()
    end_with_parent()
    told.send("watching")
    time.sleep(600)

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    here, there = context.Pipe()
    child = context.Process(target=work, args=[there])
    child.start()
    here.recv()
    print(child.pid, flush=True)
    time.sleep(600)
"""


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # ended, and nobody has asked yet how


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_killed_parent_takes_its_child_along(tmp_path: Path, method: str) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    parent = subprocess.Popen(
        [sys.executable, str(script), method], env=environment, stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        assert is_running(child)
        parent.send_signal(signal.SIGKILL)
    wait_until(lambda: not is_running(child))


def test_a_process_that_nobody_started_goes_on() -> None:
    end_with_parent()
    names = {thread.name for thread in threading.enumerate()}
    assert "notegrade-parent-watch" not in names


def test_vllm_finds_it() -> None:
    [plugin] = (point for point in entry_points(group="vllm.general_plugins") if point.name == "notegrade")
    assert plugin.load() is end_with_parent
