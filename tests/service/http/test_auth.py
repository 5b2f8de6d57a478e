import asyncio
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry

from service.app import build_app, build_stack
from service.contract.checkpoint import Checkpoint
from service.errors import ConfigurationError, NotAllowedError, RoleMissingError
from service.http.auth import ANYBODY, Caller, Keyring, hash_key, new_key
from service.settings import Settings
from tests.checkpoints import fake_engine_for
from tests.service.http.conftest import REQUEST, Service, settings
from tests.waiting import until

SCORE_KEY, ADMIN_KEY = "score-key", "admin-key"
KEYS = f"score:{hash_key(SCORE_KEY)}, admin:{hash_key(ADMIN_KEY)}"


def test_admin_keys_may_do_all_that_score_keys_may() -> None:
    keyring = Keyring.parse(KEYS)
    assert keyring.check(SCORE_KEY, "score") == Caller(hash_key(SCORE_KEY)[:8], "score")
    assert keyring.check(ADMIN_KEY, "score").role == "admin"
    assert keyring.check(ADMIN_KEY, "admin").role == "admin"
    with pytest.raises(RoleMissingError, match="role admin"):
        keyring.check(SCORE_KEY, "admin")


@pytest.mark.parametrize("key", [None, "", "wrong"])
def test_unknown_keys_are_refused(key: str | None) -> None:
    with pytest.raises(NotAllowedError):
        Keyring.parse(KEYS).check(key, "score")


@settings(keys=KEYS)
@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Basic score-key", "Bearer wrong", SCORE_KEY, "bearer score-key"]
)
async def test_only_a_bearer_key_is_accepted(service: Service, header: str) -> None:
    response = await service.client.post("/score", json=REQUEST, headers={"Authorization": header})
    assert response.status_code == (200 if header == "bearer score-key" else 401)


def test_without_keys_every_caller_is_allowed() -> None:
    keyring = Keyring.parse("")
    assert keyring.is_empty
    assert keyring.check(None, "admin") == ANYBODY


@pytest.mark.parametrize(
    "text", ["score", "score:short", f"root:{'0' * 64}", f"score:{'Z' * 64}", f"score:{'0' * 64}:a b"]
)
def test_bad_entries_are_refused_and_not_quoted(text: str) -> None:
    with pytest.raises(ConfigurationError, match="entry 2 must be") as caught:
        Keyring.parse(f"score:{'0' * 64},{text}")
    assert text.partition(":")[2] not in str(caught.value) or ":" not in text


def test_keys_are_long_and_distinct() -> None:
    keys = {new_key() for _ in range(10)}
    assert len(keys) == 10
    assert all(len(key) >= 43 for key in keys)


@settings(keys=KEYS)
@pytest.mark.parametrize("path", ["/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank"])
async def test_scoring_needs_a_key(service: Service, path: str) -> None:
    body = REQUEST if path == "/score" else {"query": "q", "queries": "q", "documents": ["d"]}
    refused = await service.client.post(path, json=body)
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    assert refused.json()["type"] == "urn:notegrade:problem:not-authenticated"
    let_in = await service.client.post(path, json=body, headers={"Authorization": f"Bearer {SCORE_KEY}"})
    assert let_in.status_code == 200


@settings(keys=KEYS)
@pytest.mark.parametrize("path", ["/livez", "/readyz", "/version", "/metrics"])
async def test_probes_and_metrics_need_no_key(service: Service, path: str) -> None:
    assert (await service.client.get(path)).status_code == 200


def entry(key: str, role: str = "score", name: str = "") -> str:
    return f"{role}:{hash_key(key)}" + (f":{name}" if name else "")


def test_the_keys_of_a_file_are_added_to_those_of_the_setting(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# rotated in May\n{entry('new', name='ranker')}  # the new one\n\n{entry('old')}\n")
    keyring = Keyring.load(entry("set"), file)
    assert keyring.check("new", "score").key_id == "ranker"
    for key in ("old", "set"):
        keyring.check(key, "score")


@pytest.mark.parametrize("content", [b"", b"# none yet\n", b"score:nonsense", b"\xff\xfe", None])
def test_a_file_without_keys_is_refused(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigurationError):
        Keyring.load(entry("set"), file)


async def test_keys_are_rotated_without_a_restart_and_after_faults(
    tmp_path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("service.app.RELOAD_EVERY_S", 0.01)
    caplog.set_level("INFO")
    file = tmp_path / "keys"

    def write(text: str) -> None:
        # In one step, as Kubernetes does, or an empty file could be read in between.
        (tmp_path / "new").write_text(text)
        (tmp_path / "new").replace(file)

    write(entry("old"))
    settings = Settings(keys_file=file)
    stack = build_stack(settings, checkpoint, CollectorRegistry(), fake_engine_for(checkpoint))
    app = build_app(settings, stack)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):

        async def wait_for(key: str, status: int) -> None:
            async with asyncio.timeout(30):
                while (await score(client, key)).status_code != status:
                    await asyncio.sleep(0.01)

        await wait_for("old", 200)
        write(f"{entry('old')}\n{entry('new', name='ranker')}")
        await wait_for("new", 200)
        write(entry("new", name="ranker"))
        await wait_for("old", 401)
        with monkeypatch.context() as broken:
            broken.setattr(Keyring, "load", fail)
            await until(lambda: "the reload of keys failed unexpectedly" in caplog.text)
        write("")  # as while it is written
        await until(lambda: "the last keys stay" in caplog.text)
        assert (await score(client, "new")).status_code == 200
        assert "ranker" in str([vars(record) for record in caplog.records])
        write(entry("newer"))
        await wait_for("newer", 200)


def fail(*_: object) -> None:
    raise RuntimeError("a bug")


async def score(client: httpx.AsyncClient, key: str) -> httpx.Response:
    return await client.post("/score", json=REQUEST, headers={"Authorization": f"Bearer {key}"})
