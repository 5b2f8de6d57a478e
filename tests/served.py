"""Starts the service as `notegrade serve` does, on real sockets but with a fake engine."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry

from service.app import ScoringStack, build_app, build_stack
from service.contract.checkpoint import Checkpoint
from service.engines.base import Engine
from service.engines.fake_engine import FakeEngine
from service.http.server import Server, bind
from service.settings import Settings
from tests.checkpoints import fake_engine_for
from tests.waiting import wait_until

# The service stops at once, unless a test says otherwise.
STOP_AT_ONCE = {"drain_delay_s": 0, "drain_timeout_s": 5, "engine_lost_exit_s": 0}


@dataclass
class Served:
    """Holds a listening service, its parts, and the thread that it runs in."""

    url: str
    private_url: str
    stack: ScoringStack
    engine: FakeEngine
    server: Server
    thread: threading.Thread
    registry: CollectorRegistry

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    def count(self, metric: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"notegrade_{metric}", labels) or 0.0


@contextmanager
def served(checkpoint: Checkpoint, *, engine: Engine | None = None, **settings: Any) -> Iterator[Served]:
    """Serve until the block ends, on the fake engine unless another engine is given."""
    made = Settings.model_validate({"engine": "fake", **STOP_AT_ONCE, **settings})
    twin = fake_engine_for(checkpoint)
    registry = CollectorRegistry()
    stack = build_stack(made, checkpoint, registry, engine or twin)
    with ExitStack() as sockets:
        ports = [0] if made.admin_port is None else [0, 0]
        listeners = [sockets.enter_context(bind("127.0.0.1", port)) for port in ports]
        urls = [f"http://127.0.0.1:{listener.getsockname()[1]}" for listener in listeners]
        admin_port = listeners[1].getsockname()[1] if listeners[1:] else None
        app = build_app(made, stack, admin_port)
        server = Server(app, stack, made)
        thread = threading.Thread(target=server.run, args=[listeners])
        thread.start()
        wait_until(lambda: server.started and stack.readiness.reason != "engine_starting")
        wait_until(lambda: stack.readiness.reason != "probing")
        try:
            yield Served(urls[0], urls[-1], stack, twin, server, thread, registry)
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive(), "the server did not stop"
