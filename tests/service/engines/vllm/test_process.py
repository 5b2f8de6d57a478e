"""The engine core is a fork of what has imported vLLM once, and is nothing more of it than that."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from service.contract.checkpoint import Checkpoint
from service.contract.vllm_settings import cpu_environment
from service.engines.vllm.process import import_and_fork
from service.errors import EngineLostError
from tests.page_faults import page_faults
from tests.waiting import wait_until

ROOT = Path(__file__).parents[4]
FORKED = """
import asyncio, psutil, socket, sys
from pathlib import Path
from service.contract.checkpoint import load_checkpoint
from service.engines.vllm.engine import VllmEngine, VllmOptions, prepare
from tests.checkpoints import engine_model
from tests.waiting import until

def listens(process, listener):
    return listener.getsockname() in {each.laddr for each in process.net_connections("tcp")}

async def main(folder, options, core, listener):
    engine = VllmEngine(engine_model(load_checkpoint(Path(folder))), options)
    await engine.start()
    await engine.score((1, 2, 3), 0)
    print("the same one works", psutil.Process().children() == [core])
    print("listening", listens(psutil.Process(), listener), listens(core, listener))
    for process in (psutil.Process(), core):
        packages = {part for each in process.memory_maps() for part in Path(each.path).parts}
        print("with torch", "torch" in packages, "and of the trainer", packages & {"pyarrow", "ray", "scipy", "sklearn", "pandas"})
    await engine.close()
    await until(lambda: not core.is_running(), within_s=10)
    print("none is left")

if __name__ == "__main__":
    options = VllmOptions(dtype="float32", kv_cache_gib=1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print("threads", psutil.Process().num_threads())
        prepare(options, [listener])
        print("threads", psutil.Process().num_threads())
        [core] = psutil.Process().children()
        asyncio.run(main(sys.argv[1], options, core, listener))
"""
IDLE = """
import sys, time
from service.engines.vllm.process import ForkedCore

ForkedCore([]).fork()
print("forked", flush=True)
time.sleep(float(sys.argv[1]))
"""


def script(text: str, folder: Path) -> list[str]:
    file = folder / "script.py"
    file.write_text(text, encoding="utf-8")
    return [sys.executable, str(file)]


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.mark.engine
def test_what_has_imported_vllm_is_forked_and_becomes_the_core(
    default_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    command = [*script(FORKED, tmp_path), str(default_checkpoint.folder)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    # Another one would not be in the fork, and might hold a lock there for ever.
    assert done.stdout.count("threads 1") == 2
    assert "the same one works True" in done.stdout
    assert "listening True False" in done.stdout
    assert done.stdout.count("with torch True and of the trainer set()") == 2
    assert "none is left" in done.stdout
    assert "leak" not in done.stderr


@pytest.mark.parametrize("ending", ["by itself", "killed"])
def test_one_that_was_never_needed_ends_with_its_parent(ending: str, tmp_path: Path) -> None:
    command = [*script(IDLE, tmp_path), "0" if ending == "by itself" else "600"]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        assert parent.stdout.readline() == "forked\n"
        if ending == "killed":
            [core] = psutil.Process(parent.pid).children()
            core.send_signal(signal.SIGINT)  # as Ctrl-C does
            with pytest.raises(AssertionError):
                wait_until(lambda: not core.is_running(), within_s=0.5)
            parent.kill()
            wait_until(lambda: not core.is_running())
        assert parent.wait(30) == (0 if ending == "by itself" else -signal.SIGKILL)


def test_beside_other_threads_nothing_is_forked() -> None:
    stopped = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(stopped.wait)
        with pytest.raises(RuntimeError, match="before anything is started"):
            import_and_fork([])
        stopped.set()


def test_vllm_that_can_t_be_imported_is_a_lost_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("threading.active_count", lambda: 1)  # this process has run other tests
    monkeypatch.setattr("service.engines.vllm.process._IMPORTS", ("vllm_of_nowhere",))
    with pytest.raises(EngineLostError, match="can't be imported: ModuleNotFoundError"):
        import_and_fork([])


KEEP = (
    "import os; from service.engines.vllm.process import keep_freed_memory; keep_freed_memory(os.environ)\n"
)


def test_it_keeps_what_is_freed_though_it_began_without_the_variables() -> None:
    kept = {name: value for name, value in cpu_environment(1).items() if name.startswith("MALLOC_")}
    returned = dict.fromkeys(kept, "")
    told = KEEP.replace("os.environ)\n", f"{kept})\n")
    without, with_them = (page_faults(ENVIRONMENT | returned, first) for first in (KEEP, told))
    assert without > 20 * with_them, (without, with_them)
