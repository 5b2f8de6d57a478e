import asyncio
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from service.app import build_stack
from service.settings import Settings
from service.stack import ScoringStack
from tests.checkpoints import fake_engine_for, load_tiny
from tests.waiting import until


async def test_engine_that_dies_turns_readiness_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.stack.ENGINE_WATCH_INTERVAL_S", 0.001)
    stack = twin_stack(tmp_path)
    async with stack.running() as bringing_up:
        await bringing_up
        assert stack.readiness.is_ready
        await stack.engine.close()
        await until(lambda: stack.readiness.reason == "engine_lost")


async def test_leaving_stops_everything(tmp_path: Path) -> None:
    stack = twin_stack(tmp_path)
    before = asyncio.all_tasks()
    async with stack.running() as bringing_up:
        await bringing_up
    assert stack.readiness.reason == "draining"
    assert asyncio.all_tasks() == before


def twin_stack(folder: Path) -> ScoringStack:
    checkpoint = load_tiny(folder)
    return build_stack(Settings(), checkpoint, CollectorRegistry(), fake_engine_for(checkpoint))
