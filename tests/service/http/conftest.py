from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from service.app import ScoringStack, build_app, build_stack
from service.contract.checkpoint import Checkpoint
from service.engines.fake_engine import FakeEngine
from service.settings import Settings
from tests.checkpoints import fake_engine_for


@dataclass
class Service:
    """The whole application on in-memory twins, with a client of it and its parts."""

    app: FastAPI
    client: httpx.AsyncClient
    stack: ScoringStack
    registry: CollectorRegistry

    @property
    def engine(self) -> FakeEngine:
        assert isinstance(self.stack.engine, FakeEngine)
        return self.stack.engine

    def count(self, metric: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"notegrade_{metric}", labels) or 0.0

    async def score(self, **changes: Any) -> httpx.Response:
        return await self.client.post("/score", json={**REQUEST, **changes})


REQUEST: dict[str, Any] = {
    "request_id": "r-1",
    "query": "quiet cafes",
    "notes": [
        {"id": "n1", "title": "Cafes", "body": "A quiet cafe with light."},
        {"id": "n2", "title": None, "body": "Surf beaches."},
    ],
}


@pytest.fixture
def settings_changes() -> dict[str, Any]:
    """Change no setting; a test changes some with `settings`."""
    return {}


def settings(**changes: Any) -> pytest.MarkDecorator:
    """Have a test's service run with these settings."""
    return pytest.mark.parametrize("settings_changes", [changes])


def problem(response: httpx.Response) -> tuple[int, str]:
    """Return the status and the type of a problem."""
    return response.status_code, response.json()["type"].removeprefix("urn:notegrade:problem:")


@pytest.fixture
async def service(checkpoint: Checkpoint, settings_changes: dict[str, Any]) -> AsyncIterator[Service]:
    changed = Settings(**settings_changes)
    registry = CollectorRegistry()
    stack = build_stack(changed, checkpoint, registry, fake_engine_for(checkpoint))
    app = build_app(changed, stack)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        stack.running() as bringing_up,
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        await bringing_up
        yield Service(app, client, stack, registry)
