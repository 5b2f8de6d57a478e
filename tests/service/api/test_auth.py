from typing import Any

import pytest

from service.api.auth import Keyring, hash_key, new_key
from service.errors import ConfigurationError, NotAllowedError, RoleMissingError
from tests.service.api.conftest import REQUEST, Service

SCORE_KEY, ADMIN_KEY = "score-key", "admin-key"
KEYS = f"score:{hash_key(SCORE_KEY)}, admin:{hash_key(ADMIN_KEY)}"


def test_roles_open_what_they_should() -> None:
    keyring = Keyring.parse(KEYS)
    keyring.check(f"Bearer {SCORE_KEY}", "score")
    keyring.check(f"bearer {ADMIN_KEY}", "score")
    keyring.check(f"Bearer {ADMIN_KEY}", "admin")
    with pytest.raises(RoleMissingError, match="role admin"):
        keyring.check(f"Bearer {SCORE_KEY}", "admin")


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Basic score-key", "Bearer wrong", SCORE_KEY]
)
def test_without_a_known_key_nothing_opens(header: str | None) -> None:
    with pytest.raises(NotAllowedError):
        Keyring.parse(KEYS).check(header, "score")


def test_without_keys_everything_opens() -> None:
    keyring = Keyring.parse("")
    assert keyring.is_empty
    keyring.check(None, "admin")


@pytest.mark.parametrize("text", ["score", "score:short", f"root:{'0' * 64}", f"score:{'Z' * 64}"])
def test_bad_entries_are_refused_without_being_quoted(text: str) -> None:
    with pytest.raises(ConfigurationError, match="entry 2 must be") as caught:
        Keyring.parse(f"score:{'0' * 64},{text}")
    assert text.partition(":")[2] not in str(caught.value) or ":" not in text


def test_keys_are_long_and_distinct() -> None:
    keys = {new_key() for _ in range(10)}
    assert len(keys) == 10
    assert all(len(key) >= 43 for key in keys)


@pytest.mark.parametrize("settings_changes", [{"keys": KEYS}])
@pytest.mark.parametrize("path", ["/score", "/rerank", "/v1/rerank", "/v2/rerank"])
async def test_scoring_needs_a_key(service: Service, settings_changes: dict[str, Any], path: str) -> None:
    body = REQUEST if path == "/score" else {"query": "q", "documents": ["d"]}
    refused = await service.client.post(path, json=body)
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    assert refused.json()["type"] == "urn:notegrade:problem:not-authenticated"
    let_in = await service.client.post(path, json=body, headers={"Authorization": f"Bearer {SCORE_KEY}"})
    assert let_in.status_code == 200


@pytest.mark.parametrize("settings_changes", [{"keys": KEYS}])
@pytest.mark.parametrize("path", ["/livez", "/readyz", "/version", "/metrics"])
async def test_operating_needs_none(service: Service, settings_changes: dict[str, Any], path: str) -> None:
    assert (await service.client.get(path)).status_code == 200
