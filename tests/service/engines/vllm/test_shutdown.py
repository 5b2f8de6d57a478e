"""However vLLM hangs, a process that closes its engine exits soon and leaves no child process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import is_running
from tests.waiting import wait_until

TIMES_S = 0.5
# Each case starts a child process that ignores SIGTERM.
PROGRAM = """
import asyncio, multiprocessing, signal, sys, threading, time
from service.engines.vllm import engine as vllm_engine, shutdown
from service.engines.base import EngineModel, EngineProfile
from service.engines.vllm.options import VllmOptions
from service.errors import EngineLostError

started = threading.Event()
shutdown.SHUTDOWN_TIMEOUT_S = shutdown.LOAD_TIMEOUT_S = shutdown.KILL_TIMEOUT_S = TIMES_S

def work(pipe):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pipe.send("ignores SIGTERM")
    time.sleep(600)

class Llm:
    output_handler = None
    def __init__(self, how):
        self.how = how
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        self.child = context.Process(target=work, args=[there])
        self.child.start()
        here.recv()
        print(self.child.pid, flush=True)
        started.set()
    async def generate(self, *_, **__):
        return
        yield
    def shutdown(self):
        if self.how == "fails":
            raise RuntimeError("no")
        self.child.join()
        if self.how == "hangs":
            threading.Event().wait()

def load(how):
    llm = Llm(how)
    if how == "loads for ever":
        threading.Event().wait()
    return llm, EngineProfile(dtype="float32")

async def warm_up(_):
    pass

async def main(how):
    vllm_engine._import_vllm = lambda *_: None
    vllm_engine._load = lambda *_: load(how)
    vllm_engine.VllmEngine._warm_up = warm_up
    engine = vllm_engine.VllmEngine(EngineModel("nowhere", (1, 2), 10), VllmOptions())
    starting = asyncio.create_task(engine.start())
    while not started.is_set() and not starting.done():
        await asyncio.sleep(0.01)
    if how != "loads for ever":
        await starting
    print("closing", flush=True)
    await engine.close()
    try:
        await starting
    except EngineLostError:
        sys.exit(7)
    sys.exit(1)

if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.parametrize(
    ("how", "code"), [("waits for its child", 1), ("hangs", 1), ("fails", 1), ("loads for ever", 7)]
)
def test_a_process_exits_however_its_engine_ends(tmp_path: Path, how: str, code: int) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM.replace("TIMES_S\n", f"{TIMES_S}\n", 1), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])}
    command = [sys.executable, str(script), how]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout
        child = int(program.stdout.readline())
        assert program.stdout.readline() == "closing\n"
        try:
            assert program.wait(40 * TIMES_S) == code
            wait_until(lambda: not is_running(child))
        finally:
            program.kill()
            if is_running(child):
                os.kill(child, 9)
