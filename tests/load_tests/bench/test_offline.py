"""The engine runs behind a pipe: a fake engine, and the real one."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import pytest

from load_tests.bench import offline
from load_tests.bench.offline import OfflineEngine
from load_tests.bench.peers.grades import calibrated_grade
from load_tests.bench.records import Records
from load_tests.bench.stage import stage
from load_tests.bench.turns import Turn, run_turn
from load_tests.bench.workloads import Shape
from service.contract.checkpoint import Checkpoint
from tests.checkpoints import load_tiny
from tests.load_tests.bench.toy import grade_of, made_requests

ANSWERS = """
import json, sys
print("ready", flush=True)
for line in sys.stdin:
    prompts = json.loads(line)
    print(json.dumps({"seconds": len(prompts) / 100, "grades": [sum(p) % 31 / 10 for p in prompts]}), flush=True)
"""
DOES_NOT_LOAD = "import sys; sys.exit('ValueError: no such model')"
ENDS_AT_WORK = "print('ready', flush=True); input()"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return load_tiny(tmp_path / "checkpoint")


def stand_in(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    start = offline._start

    def start_other(command: Sequence[str], log: IO[bytes]) -> "subprocess.Popen[str]":
        return start([sys.executable, "-c", script], log)

    monkeypatch.setattr(offline, "_start", start_other)


async def test_turn_uses_the_engine_s_own_time(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, ANSWERS)
    requests = made_requests(3, notes=5)
    turn = Turn("offline", 0, Shape(5), requests, requests[:1], 1, 30)
    with stage([OfflineEngine(checkpoint)], Records().absent) as [entrant]:
        measured = (await run_turn(entrant, turn)).measurement
        with entrant.turn():
            scored = entrant.contestant.score(requests[0].prompts)
    assert scored.grades == [grade_of(prompt) for prompt in requests[0].prompts]
    assert (measured.pairs, measured.seconds) == (15, 0.15)
    assert measured.pairs_per_s == pytest.approx(100)
    assert (measured.outcomes, measured.latency_ms) == ({}, {})


def test_engine_that_does_not_load_raises_with_the_reason(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, DOES_NOT_LOAD)
    absent: dict[str, str] = {}
    with stage([OfflineEngine(checkpoint)], absent) as entrants:
        assert entrants == []
    assert "no such model" in absent["vLLM offline (tuned)"]


def test_engine_that_ends_while_scoring_raises(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, ENDS_AT_WORK)
    engine = OfflineEngine(checkpoint)
    with engine.running(), pytest.raises(RuntimeError, match="ended while scoring"):
        engine.score([[1]])
    with pytest.raises(RuntimeError, match="not running"):
        engine.score([[1]])


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_real_engine_agrees_with_the_probes(default_checkpoint: Checkpoint) -> None:
    probes = default_checkpoint.probes[:8]
    prompts = []
    for probe in probes:
        query, note = probe.canonical()
        prompts += default_checkpoint.renderer.render(query, [note], probe.criteria)
    engine = OfflineEngine(default_checkpoint)
    with engine.running():
        found = engine.score([prompt.token_ids for prompt in prompts])
    expected = [calibrated_grade(probe.distribution, default_checkpoint) for probe in probes]
    assert found.grades == pytest.approx(expected, abs=0.1)
    assert found.seconds > 0
