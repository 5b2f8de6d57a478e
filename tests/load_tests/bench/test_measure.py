"""The benchmark measures a server's CPU time, memory and tokens."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from safetensors.numpy import save_file

from load_tests.bench.measure import (
    ProcessTree,
    count_multiplied_parameters,
    read_work,
    watch,
)
from tests.load_tests.bench.toy import busy_for
from tests.waiting import wait_until

# A parent that only waits, and a child that works until it is stopped.
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
print("started", flush=True)
sys.stdin.read()
child.kill()
child.wait()
"""


@pytest.fixture
def busy_tree() -> Iterator[ProcessTree]:
    process = subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield ProcessTree(process.pid)
    process.communicate()


@pytest.fixture
def idle_tree() -> Iterator[ProcessTree]:
    process = subprocess.Popen(["/bin/sleep", "60"])
    yield ProcessTree(process.pid)
    process.kill()
    process.wait()


def test_usage_of_a_tree_includes_its_children(busy_tree: ProcessTree) -> None:
    before = busy_tree.cpu_seconds()
    wait_until(lambda: busy_tree.cpu_seconds() > before + 0.1)
    parent, child = busy_tree.processes()
    times = child.cpu_times()
    assert busy_tree.cpu_seconds() >= times.user + times.system
    assert busy_tree.rss_mib() > child.memory_info().rss / 2**20
    assert parent.pid != child.pid


def test_ended_tree_is_empty() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    tree = ProcessTree(process.pid)
    process.wait()
    assert (tree.processes(), tree.cpu_seconds(), tree.rss_mib()) == ([], 0, 0)


async def test_watch_separates_cpu_time_of_server_and_client(
    busy_tree: ProcessTree, idle_tree: ProcessTree
) -> None:
    async with watch(busy_tree) as served:
        start = busy_tree.cpu_seconds()
        while busy_tree.cpu_seconds() < start + 0.2:
            await asyncio.sleep(0.01)
    async with watch(idle_tree) as asked:
        busy_for(0.1)
    assert served.cpu_s >= 0.2
    assert served.peak_rss_mib > 1
    assert asked.client_cpu_s >= 0.1 > asked.cpu_s


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('vllm:prompt_tokens_total{engine="0"} 100.0\nvllm:prompt_tokens_total{engine="1"} 50\nvllm:prompt_tokens_cached_total{engine="0"} 30\n', (120, 0)),
        ('vllm:prompt_tokens_total 100\nvllm:prompt_tokens_cached_total 0\nnotegrade_pair_source_total{source="engine"} 9\n'
         'notegrade_pair_source_total{source="local"} 3\nnotegrade_pair_source_total{source="coalesced"} 1\n', (100, 4)),
        ("# HELP nothing\nother_total 3\n", None),
    ],
)  # fmt: skip
async def test_tokens_are_read_from_vllm_metrics(text: str, expected: tuple[float, float] | None) -> None:
    async def metrics(_: web.Request) -> web.Response:
        return web.Response(text=text)

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    async with TestServer(app) as server:
        assert await read_work(str(server.make_url("")).rstrip("/")) == expected


async def test_server_without_metrics_has_no_token_counts() -> None:
    async with TestServer(web.Application()) as server:
        assert await read_work(str(server.make_url("")).rstrip("/")) is None
    assert await read_work("http://127.0.0.1:9") is None


def test_embedding_and_lm_head_are_not_counted(tmp_path: Path) -> None:
    shapes = {
        "model.embed_tokens.weight": [50, 4],
        "lm_head.weight": [50, 4],
        "model.layers.0.up_proj.weight": [8, 4],
        "model.norm.weight": [4],
    }
    save_file(
        {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, tmp_path / "a.safetensors"
    )
    assert count_multiplied_parameters(tmp_path) == 36
