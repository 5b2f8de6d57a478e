import asyncio
import logging
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from service.app import ScoringStack, build_stack, listening_addresses
from service.engines.vllm.engine import VllmEngine
from service.errors import ConfigurationError
from service.http.auth import hash_key
from service.settings import Settings
from tests.checkpoints import fake_engine_for, load_tiny
from tests.waiting import until

KEYS = SecretStr(f"score:{hash_key('key')}")


@pytest.mark.parametrize(
    ("settings", "host"),
    [
        (Settings(), "127.0.0.1"),
        (Settings(host="localhost"), "localhost"),
        (Settings(host="::1"), "::1"),
        (Settings(keys=KEYS), "0.0.0.0"),
        (Settings(keys=KEYS, host="10.0.0.1"), "10.0.0.1"),
    ],
)
def test_keys_decide_the_address_to_listen_on(settings: Settings, host: str) -> None:
    assert listening_addresses(settings) == [(host, 8000)]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])
def test_without_keys_only_loopback_is_allowed(host: str) -> None:
    with pytest.raises(ConfigurationError, match="only loopback is served"):
        listening_addresses(Settings(host=host))


def test_the_admin_port_has_its_own_host_or_the_same() -> None:
    same = Settings(keys=KEYS, host="10.0.0.1", admin_port=9000)
    assert listening_addresses(same)[1] == ("10.0.0.1", 9000)
    separate = Settings(keys=KEYS, host="10.0.0.1", admin_port=9000, admin_host="127.0.0.1")
    assert listening_addresses(separate)[1] == ("127.0.0.1", 9000)


def test_without_keys_the_admin_port_is_on_loopback_too() -> None:
    with pytest.raises(ConfigurationError, match=r"not 10\.0\.0\.1"):
        listening_addresses(Settings(admin_port=9000, admin_host="10.0.0.1"))


def test_the_stack_uses_vllm_and_redis_by_settings(tmp_path: Path) -> None:
    settings = Settings(redis_url=SecretStr("redis://127.0.0.1:1/0"))
    stack = build_stack(settings, load_tiny(tmp_path), CollectorRegistry())
    assert isinstance(stack.engine, VllmEngine)


async def test_a_dead_engine_turns_readiness_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.app.CHECK_EVERY_S", 0.001)
    stack = twin_stack(tmp_path)
    async with stack.running() as bringing_up:
        await bringing_up
        assert stack.readiness.is_ready
        await stack.engine.close()
        await until(lambda: stack.readiness.reason == "engine_lost")


async def test_the_log_names_what_is_served(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stack = twin_stack(tmp_path)
    with caplog.at_level(logging.INFO):
        async with stack.running():
            pass
    [event] = [vars(record) for record in caplog.records if record.message == "starting"]
    manifest = stack.checkpoint.manifest
    assert (event["fingerprint"], event["grading_version"]) == (
        manifest.fingerprint,
        manifest.grading_version,
    )


async def test_leaving_the_stack_stops_everything(tmp_path: Path) -> None:
    stack = twin_stack(tmp_path)
    before = asyncio.all_tasks()
    async with stack.running() as bringing_up:
        await bringing_up
    assert stack.readiness.reason == "draining"
    assert asyncio.all_tasks() == before


def twin_stack(folder: Path) -> ScoringStack:
    checkpoint = load_tiny(folder)
    return build_stack(Settings(), checkpoint, CollectorRegistry(), fake_engine_for(checkpoint))
