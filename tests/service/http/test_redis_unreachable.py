"""While Redis is unreachable, neither answers nor logs contain any part of its URL."""

import io
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from service.http.auth import hash_key
from service.observability.logs import _text_formatter
from tests.service.http.conftest import Service
from tests.waiting import until

PASSWORD = "s3cr3t"
ADMIN = {"Authorization": "Bearer admin-key"}
FLIP = {"mode": "on_request", "ttl_s": 600, "reason": "a note ranks high"}


@pytest.fixture
def settings_changes(refused_port: int) -> dict[str, Any]:
    return {
        "redis_url": f"redis://:{PASSWORD}@127.0.0.1:{refused_port}/0",
        "breaker_failures": 1,
        "keys": f"admin:{hash_key('admin-key')}:ann",
    }


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Everything that is logged, with extras and tracebacks."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(_text_formatter())
    logging.getLogger().addHandler(handler)
    yield written
    logging.getLogger().removeHandler(handler)


async def test_no_part_of_the_url_is_answered_or_logged(
    log: io.StringIO, service: Service, refused_port: int
) -> None:
    answers = [
        await service.client.get("/explanations/r-1", headers=ADMIN),
        await service.client.put("/admin/explanation-mode", json=FLIP, headers={**ADMIN, "If-Match": '"0"'}),
        await service.client.get("/admin/explanation-mode/history", headers=ADMIN),
    ]
    assert [answer.status_code for answer in answers] == [503, 503, 503]
    assert (await service.client.get("/admin/explanation-mode", headers=ADMIN)).status_code == 200
    await until(lambda: "the breaker opened" in log.getvalue())
    assert "explanation mode can't be followed" in log.getvalue()
    for text in (log.getvalue(), *(answer.text for answer in answers)):
        assert "ConnectionError" in text
        for part in ("127.0.0.1", str(refused_port), PASSWORD):
            assert part not in text
