"""A service and its shadow, each the whole application on twins; the shadow is called over HTTP."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from service.app import build_app, build_stack
from service.contract.checkpoint import Checkpoint
from service.explaining.mode import Flip
from service.http.auth import hash_key
from service.settings import Settings
from service.shadowing.http_target import HttpTarget
from service.shadowing.shadow import Shadow, ShadowOptions
from tests.checkpoints import fake_engine_for
from tests.service.http.conftest import REQUEST
from tests.waiting import until

KEYS = f"score:{hash_key('score-key')}:ranker,admin:{hash_key('admin-key')}:ann"


class Pair:
    """Callers call `front`; `behind` is its shadow."""

    def __init__(self, checkpoint: Checkpoint, **settings: Any) -> None:
        behind = Settings(**settings)
        self.behind = build_stack(behind, checkpoint, CollectorRegistry(), fake_engine_for(checkpoint))
        # The shadow must not mirror requests in turn.
        front = Settings(shadow_url="http://behind", shadow_rate=1.0)
        self.front = build_stack(front, checkpoint, CollectorRegistry(), fake_engine_for(checkpoint))
        self.shadow = self.front.shadow
        assert self.shadow is not None
        self.apps = [build_app(front, self.front), build_app(behind, self.behind)]
        transport = httpx.ASGITransport(self.apps[1], raise_app_exceptions=False)
        self.shadow._target = HttpTarget("http://behind", "score-key", 30, transport)

    async def mirrored(self, requests: int) -> dict[str, int]:
        assert self.shadow is not None
        shadow = self.shadow
        await until(lambda: sum(shadow.report()["mirrored"].values()) == requests)
        return dict(shadow.report()["mirrored"])


@asynccontextmanager
async def running(pair: Pair) -> AsyncIterator[httpx.AsyncClient]:
    async with pair.behind.running() as one, pair.front.running() as other:
        await one
        await other
        transport = httpx.ASGITransport(pair.apps[0], raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://front") as client:
            yield client


async def test_two_services_of_one_checkpoint_do_not_differ(checkpoint: Checkpoint) -> None:
    pair = Pair(checkpoint, keys=KEYS)
    async with running(pair) as client:
        for number in range(12):
            answer = await client.post("/score", json={**REQUEST, "query": f"cafe {number}"})
            assert answer.status_code == 200
        rerank = {"query": "cafes", "documents": ["A quiet cafe.", "Surf beaches."]}
        assert (await client.post("/rerank", json=rerank)).status_code == 200
        assert await pair.mirrored(13) == {"compared": 13, "failed": 0, "dropped": 0}
        found = (await client.get("/admin/shadow")).json()
    fingerprint = checkpoint.manifest.fingerprint
    assert found["served"]["fingerprint"] == found["shadow"]["fingerprint"] == fingerprint
    assert found["comparison"]["pairs"] == 26
    assert found["comparison"]["same_grade"]["mean"] == 1
    assert found["comparison"]["score_distance"]["mean"] == 0
    assert found["engine_ms_per_pair"]["shadow"]["mean"] >= 0


async def test_a_failing_shadow_does_not_affect_callers(checkpoint: Checkpoint) -> None:
    pair = Pair(checkpoint)
    async with running(pair) as client:
        before = (await client.post("/score", json=REQUEST)).json()
        await pair.mirrored(1)
        pair.behind.readiness.set("engine_lost", "gone")
        after = (await client.post("/score", json=REQUEST)).json()
        assert await pair.mirrored(2) == {"compared": 1, "failed": 1, "dropped": 0}
    for answer in (before, after):
        del answer["timing_ms"]
        for result in answer["results"]:
            del result["source"]
    assert after == before


async def test_the_shadow_does_not_explain_mirrored_requests(checkpoint: Checkpoint) -> None:
    pair = Pair(checkpoint)
    pair.behind.engine.trace = (5, 6)  # type: ignore[attr-defined]
    async with running(pair) as client:
        flip = Flip("all", "ann", "a test", 60.0)
        await pair.behind.explanations.flip(flip, 0)
        assert (await client.post("/score", json=REQUEST)).status_code == 200
        assert (await pair.mirrored(1))["compared"] == 1
        assert pair.behind.engine.continued == []  # type: ignore[attr-defined]


async def test_mirrored_requests_are_not_mirrored_again(checkpoint: Checkpoint) -> None:
    pair = Pair(checkpoint)
    behind = pair.behind
    transport = httpx.ASGITransport(pair.apps[0], raise_app_exceptions=False)
    # The shadow has the first service as its own shadow.
    options = ShadowOptions(shadow_rate=1.0)
    back = Shadow(HttpTarget("http://front", "", 30, transport), 4, options, behind.metrics)
    object.__setattr__(behind, "shadow", back)
    pair.apps[1] = build_app(Settings(), behind)
    assert pair.shadow is not None
    pair.shadow._target = HttpTarget("http://behind", "", 30, httpx.ASGITransport(pair.apps[1]))
    async with running(pair) as client:
        await client.post("/score", json=REQUEST)
        assert (await pair.mirrored(1))["compared"] == 1
    assert back.report()["mirrored"] == {"compared": 0, "failed": 0, "dropped": 0}


async def test_without_a_shadow_the_report_is_not_found(checkpoint: Checkpoint) -> None:
    pair = Pair(checkpoint, keys=KEYS)
    transport = httpx.ASGITransport(pair.apps[1])
    async with httpx.AsyncClient(transport=transport, base_url="http://behind") as client:
        for key, status in (("admin-key", 404), ("score-key", 403), ("wrong", 401)):
            response = await client.get("/admin/shadow", headers={"Authorization": f"Bearer {key}"})
            assert response.status_code == status
            if status == 404:
                assert response.json()["type"].endswith(":shadow-off")
                assert "NOTEGRADE_SHADOW_URL" in response.json()["detail"]


@pytest.mark.parametrize("rate", [0, 1.5])
def test_a_rate_outside_0_to_1_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="shadow_rate"):
        Settings(shadow_rate=rate)
