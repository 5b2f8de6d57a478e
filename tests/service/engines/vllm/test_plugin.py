"""vLLM's processes end with their parent, may use AMX, and tell what they die of."""

import os
import platform
import signal
import subprocess
import sys
import threading
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from service.engines.vllm.plugin import prepare_process
from tests.processes import is_running
from tests.waiting import wait_until

ROOT = Path(__file__).parents[4]
PARENT = """
import multiprocessing, sys, time
from service.engines.vllm.plugin import prepare_process

def work(pipe):
    prepare_process()
    prepare_process()
    pipe.send("watching")
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

CHILD = """
import atexit, gc, multiprocessing
atexit.register(lambda: print(gc.get_freeze_count() > 1000, flush=True))  # registered first, runs last
import service.engines.vllm.engine
from service.engines.vllm.plugin import prepare_process

def work():
    print(gc.isenabled(), flush=True)
    prepare_process()
    print(gc.isenabled(), flush=True)

if __name__ == "__main__":
    child = multiprocessing.get_context("spawn").Process(target=work, name="EngineCore_DP0")
    child.start()
    child.join()
    print("parent", flush=True)
"""

# 0x1022 is ARCH_GET_XCOMP_PERM of Linux, and bit 18 the tiles of AMX.
CRASH = """
import ctypes, multiprocessing, os, signal
from service.engines.vllm.plugin import prepare_process

def work():
    prepare_process()
    import torch
    allowed = ctypes.c_uint64()
    ctypes.CDLL(None).syscall(158, 0x1022, ctypes.byref(allowed))
    print(bool(allowed.value >> 18 & 1) == bool(torch.cpu.get_capabilities().get("amx_tile")), flush=True)
    os.kill(os.getpid(), signal.SIGILL)

if __name__ == "__main__":
    child = multiprocessing.get_context("spawn").Process(target=work)
    child.start()
    child.join()
"""


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path, method: str) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(
        [sys.executable, str(script), method], env=environment, stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        assert is_running(child)
        os.kill(child, signal.SIGINT)  # as Ctrl-C does
        with pytest.raises(AssertionError):
            wait_until(lambda: not is_running(child), within_s=1)
        parent.send_signal(signal.SIGKILL)
    wait_until(lambda: not is_running(child))


def test_a_process_without_a_parent_is_not_watched() -> None:
    prepare_process()
    names = {thread.name for thread in threading.enumerate()}
    assert "notegrade-parent-watch" not in names


def test_the_garbage_collector_is_off_during_imports_and_frozen_at_exit(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(CHILD, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    printed = subprocess.check_output([sys.executable, str(script)], env=environment, text=True).split()
    assert printed == ["False", "True", "True", "parent", "False"]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="AMX is a unit of x86-64")
def test_a_child_may_use_amx_and_tells_what_it_dies_of(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(CRASH, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["True"]
    assert "Illegal instruction" in done.stderr
    assert "in work" in done.stderr


def test_vllm_finds_the_plugin() -> None:
    points = {point.name: point for point in entry_points(group="vllm.general_plugins")}
    assert points["notegrade"].load() is prepare_process
