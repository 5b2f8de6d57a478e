from pathlib import Path

import httpx
import pytest

from service.contract.checkpoint import load_checkpoint
from service.errors import ConfigurationError
from service.http.auth import hash_key
from service.http.rate_limit import PairsLimiter
from tests.checkpoints import make_vector_checkpoint
from tests.served import served
from tests.service.http.conftest import REQUEST, Service, problem, settings

KEYS = f"score:{hash_key('one')}:one,score:{hash_key('two')}:two"
NOTES = [{"id": str(number), "body": "A quiet cafe."} for number in range(7)]
limited = settings(keys=KEYS, rate_limit="6/hour")


async def ask(service: Service, key: str, path: str = "/score", **changes: object) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"}
    return await service.client.post(path, json=changes or REQUEST, headers=headers)


@limited
async def test_pairs_over_the_limit_are_refused_with_a_time(service: Service) -> None:
    for _ in range(3):  # two pairs each
        assert (await ask(service, "one")).status_code == 200
    refused = await ask(service, "one")
    assert problem(refused) == (429, "rate-limited")
    assert "6 pairs in 3600 s" in refused.json()["detail"]
    assert 1 <= int(refused.headers["retry-after"]) <= 3600
    assert (await ask(service, "two")).status_code == 200, "each key has its own limit"
    assert service.engine.finished == 3 + 2  # the probes, and the pairs that were cached from then on


def test_notes_to_encode_count_as_pairs(tmp_path: Path) -> None:
    reading_both = load_checkpoint(make_vector_checkpoint(tmp_path / "c"))
    with (
        served(reading_both, keys=KEYS, rate_limit="6/hour") as running,
        httpx.Client(base_url=running.url, headers={"Authorization": "Bearer one"}) as client,
    ):
        assert client.post("/notes", json={"notes": NOTES[:4]}).status_code == 202
        assert client.post("/notes", json={"notes": NOTES[:4]}).status_code == 429


@limited
async def test_refused_pairs_do_not_count(service: Service) -> None:
    assert (await ask(service, "one", query="q", notes=NOTES[:2])).status_code == 200
    assert (await ask(service, "one", query="q", notes=NOTES[:5])).status_code == 429
    assert (await ask(service, "one", query="q", notes=NOTES[:4])).status_code == 200


@limited
async def test_more_pairs_than_the_limit_are_refused_for_good(service: Service) -> None:
    refused = await ask(service, "one", query="q", notes=NOTES[:7])
    assert problem(refused) == (422, "invalid-request")
    assert "at most 6 pairs at once" in refused.json()["detail"]
    assert "retry-after" not in refused.headers
    assert (await ask(service, "one", query="q", notes=NOTES[:6])).status_code == 200


@limited
async def test_reranking_counts_as_well(service: Service) -> None:
    documents = ["A quiet cafe."] * 5
    assert (await ask(service, "one", "/rerank", query="q", documents=documents)).status_code == 200
    assert (await ask(service, "one", "/rerank", query="q", documents=documents)).status_code == 429
    assert (await ask(service, "one")).status_code == 429


@limited
async def test_invalid_requests_do_not_count(service: Service) -> None:
    for _ in range(20):
        assert (await ask(service, "one", query="q")).status_code == 422
    assert (await ask(service, "one")).status_code == 200


async def test_without_a_limit_no_request_is_refused(service: Service) -> None:
    for _ in range(50):
        assert (await service.score()).status_code == 200


@pytest.mark.parametrize(
    "limit", ["", "many", "10", "10/fortnight", "-1/second", "0/second", "9/second;90/minute"]
)
def test_an_invalid_limit_is_refused(limit: str) -> None:
    with pytest.raises(ConfigurationError, match="NOTEGRADE_RATE_LIMIT"):
        PairsLimiter(limit)
