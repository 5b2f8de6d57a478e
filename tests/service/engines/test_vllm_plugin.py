"""vLLM's processes end with the one that started them, however it ends."""

import os
import signal
import subprocess
import sys
import threading
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from model_export.assemble import Plan, assemble
from service.contract.vllm_settings import cpu_environment
from service.engines.vllm_plugin import end_with_parent, load_compiled
from tests.tiny_base import make_tiny_base
from tests.tools import COMPILER, require
from tests.waiting import wait_until

ROOT = Path(__file__).parents[3]
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


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_a_killed_parent_takes_its_child_along(tmp_path: Path, method: str) -> None:
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


def test_a_process_that_nobody_started_goes_on() -> None:
    end_with_parent()
    names = {thread.name for thread in threading.enumerate()}
    assert "notegrade-parent-watch" not in names


def test_vllm_finds_them() -> None:
    points = {point.name: point for point in entry_points(group="vllm.general_plugins")}
    assert points["notegrade"].load() is end_with_parent
    assert points["notegrade-compiled"].load() is load_compiled


COMPILED = """
import asyncio, sys
from pathlib import Path
from service.contract.checkpoint import load_checkpoint
from service.engines.vllm_engine import VllmEngine, VllmOptions
from tests.checkpoints import engine_model

async def main(folder):
    model = engine_model(load_checkpoint(Path(folder)))
    engine = VllmEngine(model, VllmOptions(dtype="float32", compile="on", kv_cache_gib=1))
    await engine.start()
    print((await engine.score((1, 2, 3), 0)).label_logprobs, engine.profile.numbers["eager"])
    await engine.close()

if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.engine
@pytest.mark.slow
def test_what_was_compiled_is_loaded_at_the_next_start(tmp_path: Path) -> None:
    require(COMPILER)
    base = make_tiny_base(tmp_path / "base")
    folder = assemble(Plan(str(base)), tmp_path / "checkpoint")
    script = tmp_path / "compiled.py"
    script.write_text(COMPILED, encoding="utf-8")
    # Engines in this very process may have left theirs, which ask for nothing to be compiled.
    environment = {name: value for name, value in os.environ.items() if name not in cpu_environment(1)}
    environment |= {"PYTHONPATH": str(ROOT), "VLLM_CACHE_ROOT": str(tmp_path / "cache")}
    told, kept = [], []
    for _ in range(2):
        command = [sys.executable, str(script), str(folder)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        told.append(done.stdout)
        # It is written to another file and moved here: what is compiled anew is another file.
        [model] = (tmp_path / "cache").glob("torch_compile_cache/torch_aot_compile/*/rank_0_0/model")
        kept.append(model.stat().st_ino)
    assert kept[0] == kept[1]
    assert told[0] == told[1]
    assert "False" in told[0]
