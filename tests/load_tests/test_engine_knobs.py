"""The table of settings is measured on fake engines whose speed depends on the setting."""

import json
import re
from pathlib import Path

import pytest

from load_tests import engine_knobs
from load_tests.bench.peers.prompts import EngineAlone, Knobs
from load_tests.engine_knobs import KNOBS, main
from service.contract.checkpoint import Checkpoint
from tests.checkpoints import load_tiny
from tests.load_tests.bench.toy import AbsentPeer, ToyPeer

SIZE = ["--rounds", "2", "--requests", "1", "--notes", "4"]


def make_engine(_: Checkpoint, name: str, knobs: Knobs | None = None) -> ToyPeer:
    arguments = knobs.arguments if knobs else {}
    if arguments.get("distributed_executor_backend") == "mp":
        return AbsentPeer(name)
    return ToyPeer(name, 0.005, wrong_by=0.25) if arguments.get("block_size") == 64 else ToyPeer(name, 0.02)


@pytest.fixture(autouse=True)
def _toy_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_knobs, "EngineAlone", make_engine)


def test_each_knob_is_compared_with_the_engine_as_served(
    checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "new" / "knobs.json"
    knobs = ["--knobs", "blocks-64,seats-16,executor-mp", "--out", str(out)]
    main(["--checkpoint", str(checkpoint.folder), *knobs, *SIZE])
    _, served, blocks, seats, absent = capsys.readouterr().out.splitlines()
    assert served.startswith("as served")
    assert "1.00 / 1.00 / 1.00 times as served" in served
    assert re.search(r", [1-9]\d* MiB resident$", served)
    assert blocks.startswith("blocks-64")
    assert float(blocks.split("pairs/s, ")[1].split()[0]) > 1.5
    assert "grades differ by up to 0.250" in blocks
    assert "grades differ by up to 0.000" in seats
    assert absent.startswith("executor-mp")
    document = json.loads(out.read_text(encoding="utf-8"))
    assert document["options"]["rounds"] == 2
    assert {name: len(rounds) for name, rounds in document["figures"].items()} == {
        "as served": 2,
        "blocks-64": 2,
        "seats-16": 2,
    }
    assert "not installed" in absent


def test_other_weights_get_the_same_prompts(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_tiny(tmp_path / "other")
    main(["--checkpoint", str(checkpoint.folder), "--beside", str(tmp_path / "other"), *SIZE])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("other")
    assert "grades differ by up to 0.000" in last


def test_variables_are_set_before_the_process_starts(checkpoint: Checkpoint) -> None:
    engine = EngineAlone(checkpoint, knobs=KNOBS["one-thread"])
    environment = engine.server().environment
    assert environment["OMP_NUM_THREADS"] == "1"
    assert "MALLOC_TRIM_THRESHOLD_" in environment


def test_unknown_knob_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--knobs", "blocks-65"])
    assert "unknown knobs: blocks-65" in capsys.readouterr().err


def test_nothing_to_compare_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([])
    assert "--knobs or --beside" in capsys.readouterr().err


def test_every_knob_changes_something() -> None:
    assert all(knobs.arguments or knobs.environment for knobs in KNOBS.values())
