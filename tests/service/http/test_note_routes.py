"""Notes are encoded over HTTP, and then read as vectors; on the fake engine and the fake encoder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.contract.checkpoint import Checkpoint, load_checkpoint
from tests.checkpoints import load_tiny, make_vector_checkpoint
from tests.served import served
from tests.waiting import wait_until

NOTES = [
    {"id": "n1", "title": "Cafes", "body": "A quiet cafe with good light."},
    {"id": "n2", "body": "The best surf beaches."},
]
UNKNOWN = {"id": "n3", "body": "Nobody encoded this."}


@pytest.fixture(scope="module")
def reading_both(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return load_checkpoint(make_vector_checkpoint(tmp_path_factory.mktemp("vectors") / "checkpoint"))


@contextmanager
def client(checkpoint: Checkpoint, **settings: Any) -> Iterator[httpx.Client]:
    with served(checkpoint, **settings) as running, httpx.Client(base_url=running.url) as sending:
        yield sending


@pytest.fixture(scope="module")
def service(reading_both: Checkpoint) -> Iterator[httpx.Client]:
    with client(reading_both) as sending:
        yield sending


def encoding(service: httpx.Client) -> dict[str, int]:
    found: dict[str, int] = service.get("/notes/encoding").json()
    return found


def readings(service: httpx.Client, notes: list[dict[str, Any]], query: str = "quiet cafe") -> list[str]:
    answer = service.post("/score", json={"query": query, "notes": notes})
    return [result["reading"] for result in answer.json()["results"]]


def test_encoded_notes_are_read_as_vectors_and_others_as_text(service: httpx.Client) -> None:
    answer = service.post("/notes", json={"notes": NOTES})
    assert (answer.status_code, answer.json()) == (202, {"accepted": 2, "known": 0})
    wait_until(lambda: encoding(service) == {"backlog": 0, "stored": 2, "failed": 0})
    assert readings(service, [*NOTES, UNKNOWN]) == ["vectors", "vectors", "text"]
    assert service.post("/notes", json={"notes": NOTES}).json() == {"accepted": 0, "known": 2}
    # The note that was read as text was queued, and is read as vectors under the next query.
    wait_until(lambda: encoding(service)["stored"] == 3)
    assert readings(service, [UNKNOWN], "another query") == ["vectors"]


def test_bad_notes_are_refused_with_their_fields(service: httpx.Client) -> None:
    answer = service.post("/notes", json={"notes": [{"id": "n1"}, {"id": "n1", "body": 3}]})
    assert answer.status_code == 422
    assert {bad["field"] for bad in answer.json()["errors"]} == {"notes.0.body", "notes.1.body"}
    assert service.post("/notes", json={"notes": []}).status_code == 422


def test_a_full_backlog_refuses_with_retry_after(reading_both: Checkpoint) -> None:
    notes = [{"id": f"n{i}", "body": f"note {i}"} for i in range(20)]
    with client(reading_both, encoding_backlog=3, encoding_share=0.0001) as small:
        answer = small.post("/notes", json={"notes": notes})
        assert answer.status_code == 503
        assert answer.json()["type"].endswith("overloaded")
        assert "3 of the 20 notes were accepted" in answer.json()["detail"]
        assert int(answer.headers["retry-after"]) > 0


def test_with_reading_vectors_notes_without_vectors_are_shed_until_they_are_encoded(
    reading_both: Checkpoint,
) -> None:
    with client(reading_both, reading="vectors") as strict:
        body = {"query": "quiet cafe", "notes": NOTES}
        refused = strict.post("/score", json=body)
        assert refused.status_code == 503
        assert refused.json()["type"].endswith("vectors-missing")
        assert "2 of the query's 2 notes have no vectors yet" in refused.json()["detail"]
        assert refused.headers["retry-after"] == "5"
        wait_until(lambda: encoding(strict)["stored"] == 2)
        assert readings(strict, NOTES) == ["vectors", "vectors"]


@pytest.mark.parametrize("why", ["setting", "checkpoint"])
def test_a_service_that_reads_text_only_says_so(why: str, reading_both: Checkpoint, tmp_path: Path) -> None:
    checkpoint, settings = (
        (reading_both, {"reading": "text"}) if why == "setting" else (load_tiny(tmp_path), {})
    )
    with client(checkpoint, **settings) as text_only:
        for answer in (text_only.post("/notes", json={"notes": NOTES}), text_only.get("/notes/encoding")):
            assert answer.status_code == 404
            assert answer.json()["type"].endswith("vectors-off")
        assert readings(text_only, NOTES) == ["text", "text"]
