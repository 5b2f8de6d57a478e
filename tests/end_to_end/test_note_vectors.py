"""Notes are encoded by a running service, and read as vectors, with the real engine, encoder and Redis."""

import itertools
import json
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest

from model_export.checkpoint.writer import write_contract
from model_export.models.vector_student import VectorReference
from service.contract.checkpoint import Checkpoint
from service.contract.judgement import judge
from service.contract.prompt import Note
from service.contract.text import canonicalize
from service.contract.vector_prompt import VectorPrompt
from tests.end_to_end.service_process import SERVE, ServiceProcess, start_service
from tests.processes import ROOT, run
from tests.redis_server import RedisServer
from tests.tiny_adapter import make_vector_student
from tests.tiny_base import make_tiny_base
from tests.waiting import wait_until

pytestmark = [pytest.mark.engine, pytest.mark.redis, pytest.mark.slow]

QUERY = "quiet cafe"
NOTES = ROOT / "examples" / "notes.jsonl"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("vectors")
    spec, student = make_vector_student(make_tiny_base(folder / "tiny-base"), folder / "student")
    return write_contract(student, spec, lambda *_: None)


@pytest.fixture(scope="module")
def redis(redis_binary: str) -> Iterator[RedisServer]:
    with RedisServer(redis_binary) as server:
        yield server


@pytest.fixture(scope="module")
def service(
    checkpoint: Checkpoint, redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServiceProcess]:
    settings = {
        "NOTEGRADE_CHECKPOINT": str(checkpoint.folder),
        "NOTEGRADE_REDIS_URL": redis.url,
        "NOTEGRADE_REDIS_TIMEOUT_MS": "5000",  # on a busy machine a healthy Redis may be slow
        "NOTEGRADE_ENGINE_DTYPE": "float32",
        "NOTEGRADE_DEFAULT_DEADLINE_MS": "60000",
        "NOTEGRADE_ENCODING_SHARE": "1",
    }
    with start_service(tmp_path_factory.mktemp("service") / "log", SERVE, **settings) as running:
        running.wait_until_ready()
        yield running


def score(service: ServiceProcess, notes: list[dict[str, Any]], query: str = QUERY) -> list[dict[str, Any]]:
    answer = httpx.post(f"{service.url}/score", json={"query": query, "notes": notes}, timeout=60)
    assert answer.status_code == 200, answer.text
    results: list[dict[str, Any]] = answer.json()["results"]
    return results


def stored(service: ServiceProcess) -> int:
    return int(httpx.get(f"{service.url}/notes/encoding").json()["stored"])


def test_encoded_notes_are_read_as_the_reference_reads_them(
    service: ServiceProcess, checkpoint: Checkpoint
) -> None:
    done = run(".venv/bin/notegrade", "encode", NOTES, "--url", service.url)
    assert (done.returncode, done.stdout.strip()) == (
        0,
        "20 notes sent; the service encoded 20 and failed on 0",
    ), done.stderr
    notes = [json.loads(line) for line in NOTES.read_text(encoding="utf-8").splitlines()][:5]
    second = checkpoint.vectors
    assert second
    reference = VectorReference.load(checkpoint.folder, checkpoint.manifest.label_token_ids)
    texts = [Note(canonicalize(note["title"]), canonicalize(note["body"])) for note in notes]
    prefix = second.renderer.prefix(QUERY, "general-1")
    for result, made in zip(score(service, notes), second.renderer.notes(texts), strict=True):
        rows = reference.encode(made.token_ids, second.reading.per_note)
        raw = reference.distribution(VectorPrompt(prefix, rows, second.renderer.cue))
        expected = judge(raw, checkpoint.manifest, "general-1", "vectors")
        assert (result["reading"], result["truncated"]) == ("vectors", made.truncated)
        assert result["distribution"] == pytest.approx(expected.distribution, abs=2e-3)


def test_a_killed_encoder_delays_encoding_and_no_score(service: ServiceProcess) -> None:
    before = stored(service)
    children = psutil.Process(service.process.pid).children(recursive=True)
    [encoder] = [child for child in children if "service.vectors.encoder_child" in child.cmdline()]
    encoder.kill()
    new = [{"id": "new", "body": "a note that nobody has encoded"}]
    assert [result["reading"] for result in score(service, new)] == ["text"]
    wait_until(lambda: stored(service) > before, within_s=120)  # also when the batch found the encoder dead
    assert [result["reading"] for result in score(service, new, "one more query")] == ["vectors"]


def test_without_its_store_notes_are_read_as_text(service: ServiceProcess, redis: RedisServer) -> None:
    notes = [json.loads(line) for line in NOTES.read_text(encoding="utf-8").splitlines()][:3]
    redis.kill()
    assert [result["reading"] for result in score(service, notes, "while redis is down")] == ["text"] * 3
    assert service.metrics()['notegrade_vector_lookups_total{result="unavailable"}'] >= 3
    redis.start()  # empty: the notes are read as text, and encoded again
    queries = (f"after redis came back, {number}" for number in itertools.count())
    wait_until(
        lambda: [result["reading"] for result in score(service, notes, next(queries))] == ["vectors"] * 3,
        within_s=120,
    )
