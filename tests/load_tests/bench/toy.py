"""Runs a server with a known capacity: it scores one note at a time, in a fixed time, in this process or in another."""

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from load_tests.bench.peer import Request, Tuning
from load_tests.processes import Running, Server, free_port, run_server

ROOT = Path(__file__).parents[3]


def grade_of(prompt: Sequence[int]) -> float:
    """Return the grade that every toy server gives this prompt."""
    return sum(prompt) % 31 / 10


class Toy:
    """Answers one pair after the other. Every `fail_every`th request is answered by a 500, every `refuse_every`th by a 503."""

    def __init__(self, seconds: float, fail_every: int = 0, refuse_every: int = 0) -> None:
        self._seconds = seconds
        self._fail_every, self._refuse_every = fail_every, refuse_every
        self._worker = asyncio.Lock()
        self.requests = 0

    async def score(self, request: web.Request) -> web.Response:
        prompts = (await request.json())["prompts"]
        self.requests += 1
        if self._fail_every and self.requests % self._fail_every == 0:
            raise web.HTTPInternalServerError
        if self._refuse_every and self.requests % self._refuse_every == 0:
            raise web.HTTPServiceUnavailable
        async with self._worker:
            await asyncio.sleep(self._seconds * len(prompts))
        return web.json_response([grade_of(prompt) for prompt in prompts])

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/score", self.score)
        app.router.add_get("/health", self.health)
        return app

    async def health(self, _: web.Request) -> web.Response:
        return web.Response()


@asynccontextmanager
async def serving(toy: Toy) -> AsyncIterator[str]:
    """Run the server in this process and yield its URL."""
    server = TestServer(toy.app())
    await server.start_server()
    try:
        yield str(server.make_url("")).rstrip("/")
    finally:
        await server.close()


@dataclass
class ToyPeer:
    """A toy server in another process. `wrong_by` is added to its grades."""

    name: str
    seconds: float = 0.001
    tuning: Tuning = "tuned"
    wrong_by: float = 0.0

    def running(self) -> AbstractContextManager[Running]:
        port = free_port()
        command = [sys.executable, __file__, "--port", str(port), "--seconds", str(self.seconds)]
        return run_server(Server(command, {"PYTHONPATH": str(ROOT)}, port, timeout_s=60))

    def call(self, request: Request) -> tuple[str, Mapping[str, Any]]:
        return "/score", {"prompts": [list(prompt) for prompt in request.prompts]}

    def grades(self, answer: Any) -> list[float]:
        return [grade + self.wrong_by for grade in answer]


class AbsentPeer(ToyPeer):
    """A server that can't be started."""

    def running(self) -> AbstractContextManager[Running]:
        raise RuntimeError("not installed\nand much more")


def made_requests(count: int, notes: int = 1) -> list[Request]:
    """Make requests that need no checkpoint."""
    return [
        Request(
            f"query {number}",
            tuple({"id": str(note), "title": None, "body": "text"} for note in range(notes)),
            tuple((number, note) for note in range(notes)),
        )
        for number in range(count)
    ]


def busy_for(seconds: float) -> None:
    """Use CPU time for this long."""
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args()

    async def make_app() -> web.Application:
        return Toy(options.seconds).app()

    web.run_app(make_app(), host="127.0.0.1", port=options.port, print=None, shutdown_timeout=0.1)
