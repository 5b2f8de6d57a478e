"""The command line selects parts and peers, and writes results."""

import json
from pathlib import Path

import pytest

from load_tests.bench import __main__ as main_module
from load_tests.bench import run as run_module
from load_tests.bench.__main__ import PARTS, bench, parse, plan_of
from load_tests.bench.machine import Machine
from load_tests.bench.peer import Peer
from load_tests.bench.records import OURS
from service.contract.checkpoint import Checkpoint
from tests.load_tests.bench.toy import ToyPeer


def test_all_parts_and_peers_are_the_default() -> None:
    options = parse([])
    assert options.parts == PARTS
    assert options.peers == []


def test_parts_run_in_a_fixed_order() -> None:
    assert parse(["--parts", "p99, cold"]).parts == ("cold", "p99")


@pytest.mark.parametrize(
    ("parts", "expected"), [("cold,warm", "unknown parts: warm"), (",", "unknown parts: none given")]
)
def test_unknown_part_is_refused(capsys: pytest.CaptureFixture[str], parts: str, expected: str) -> None:
    with pytest.raises(SystemExit):
        parse(["--parts", parts])
    assert expected in capsys.readouterr().err


def test_quick_plan_measures_less() -> None:
    whole, quick = plan_of(parse(["--seed", "3"])), plan_of(parse(["--seed", "3", "--quick"]))
    assert (whole.seed, quick.seed) == (3, 3)
    assert (
        quick.rounds * quick.requests * quick.shape.notes < whole.rounds * whole.requests * whole.shape.notes
    )
    assert quick.open_seconds < whole.open_seconds
    changed = plan_of(parse(["--rounds", "9", "--notes", "100"]))
    assert (changed.rounds, changed.shape.notes) == (9, 100)


async def test_run_writes_results_and_names_skipped_parts(
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    peers: list[Peer] = [ToyPeer(OURS), ToyPeer("peer")]
    monkeypatch.setattr(run_module, "all_peers", lambda folder, cached: peers)
    monkeypatch.setattr(main_module, "read_machine", lambda folder: Machine("A", 2, 4.0, "Linux", 0.0))
    monkeypatch.setattr(main_module, "count_multiplied_parameters", lambda folder: 1)
    out = tmp_path / "results"
    await bench(
        parse(["--quick", "--parts", "cold", "--checkpoint", str(checkpoint.folder), "--out", str(out)])
    )
    found = json.loads((out / "bench.json").read_text(encoding="utf-8"))
    assert found["ratios"]["cold_vs_best_peer"] > 0
    assert found["skipped"]["p99"] == "p99: not selected"
    assert found["agreement"][0]["maximum"] == 0
    assert capsys.readouterr().out.strip() == (out / "report.md").read_text(encoding="utf-8").strip()
