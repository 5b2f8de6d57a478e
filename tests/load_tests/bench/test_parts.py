"""Whole parts run on toy servers: a server that is four times slower is reported as slower."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from load_tests.bench import parts as parts_module
from load_tests.bench import run as run_module
from load_tests.bench.parts import run_part
from load_tests.bench.peer import Peer
from load_tests.bench.plan import quick
from load_tests.bench.records import AUTO, OFFLINE, OURS, VECTORS, Part, Records, compute_ratios
from load_tests.bench.run import Run
from load_tests.bench.workloads import Shape
from service.contract.checkpoint import Checkpoint
from tests.load_tests.bench.toy import ToyPeer

PLAN = replace(
    quick(11), requests=4, shape=Shape(3, 20), open_shape=Shape(1, 20), open_seconds=0.6, probe_seconds=0.6, resolution=0.5,
    sweep_notes=(1, 4), sweep_note_tokens=(20,), sweep_pairs=8, timeout_s=30,
)  # fmt: skip


@pytest.fixture
def make_run(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    def make(peers: list[Peer], **changes: object) -> Run:
        monkeypatch.setattr(run_module, "all_peers", lambda folder, cached: peers)
        made = Run(PLAN, checkpoint, [], None, None, Records())
        return replace(made, **changes)  # type: ignore[arg-type]

    return make


def toys() -> list[Peer]:
    return [ToyPeer(OURS, 0.004), ToyPeer("slow", 0.016), ToyPeer("other", 0.03)]


async def test_slower_peer_loses_in_every_round(make_run: Callable[..., Run]) -> None:
    run = make_run(toys())
    await run_part(run, "cold")
    assert [(each.peer, each.round) for each in run.records.measurements] == [
        (OURS, 0), ("slow", 0), ("other", 0), ("other", 1), ("slow", 1), (OURS, 1),
    ]  # fmt: skip
    assert run.records.best_peer("cold") == "slow"
    ratio = compute_ratios(run.records)["cold_vs_best_peer"]
    assert ratio.value is not None
    assert ratio.value > 1.5
    assert [each.maximum for each in run.records.agreements] == [0, 0]
    assert set(run.records.ready_s) == {"Notegrade (tuned)", "slow (tuned)", "other (tuned)"}
    assert all(each.pairs == 12 and each.outcomes == {"answered": 4} for each in run.records.measurements)


async def test_long_turn_ends_early_and_counts_only_started_requests(
    make_run: Callable[..., Run],
) -> None:
    run = make_run(toys()[:2], plan=replace(PLAN, requests=40, longest_turn_s=0.1))
    await run_part(run, "cold")
    for each in run.records.measurements:
        assert each.requests < 40
        assert (each.pairs, each.outcomes) == (3 * each.requests, {"answered": each.requests})


async def test_peer_with_other_grades_is_not_compared(make_run: Callable[..., Run]) -> None:
    run = make_run([ToyPeer(OURS), ToyPeer("wrong", wrong_by=0.5)])
    await run_part(run, "cold")
    assert run.records.measurements == []
    assert "differ from ours by 0.5000 on average" in run.records.disagreeing["wrong (tuned)"]
    assert compute_ratios(run.records)["cold_vs_best_peer"].reason == "cold: no peer to compare with"


async def test_latency_is_compared_below_the_best_peer_s_saturation(
    make_run: Callable[..., Run],
) -> None:
    run = make_run(toys()[:2])
    await run_part(run, "p99")
    kept_up = [found.kept_up for found in run.records.saturation.values()]
    assert kept_up[0] > kept_up[1] > 0
    ours, theirs = run.records.of("p99", OURS), run.records.of("p99", "slow")
    assert [each.offered_per_s for each in ours] == [each.offered_per_s for each in theirs]
    assert {each.load for each in run.records.measurements} == set(run.plan.open_loads)
    assert {each.load for each in ours} == {max(run.plan.open_loads)}
    assert compute_ratios(run.records)["best_peer_p99_over_ours"].value is not None


async def test_sweeps_measure_each_shape_once(make_run: Callable[..., Run]) -> None:
    run = make_run(toys()[:2])
    await run_part(run, "sweeps")
    shapes = [(each.notes, each.note_tokens) for each in run.records.of("sweeps", OURS)]
    assert shapes == [(1, 20), (4, 20), (3, 20)]


async def test_zipf_and_replay_are_measured(make_run: Callable[..., Run], tmp_path: Path) -> None:
    file = tmp_path / "traffic.jsonl"
    file.write_text('{"query": "cafes", "notes": [{"id": "1", "body": "A cafe."}]}\n' * 6, encoding="utf-8")
    run = make_run(toys()[:2], traffic_file=file)
    await run_part(run, "zipf")
    await run_part(run, "replay")
    assert len(run.records.of("zipf", OURS)) == 2
    # Each round uses one request to warm up and measures four; none are left for the second round.
    assert [each.requests for each in run.records.of("replay", OURS)] == [4]


async def test_engine_alone_gets_all_prompts_at_once(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts_module, "EngineAlone", lambda checkpoint, knobs: ToyPeer(OFFLINE, 0.0002))
    run = make_run(toys()[:1])
    await run_part(run, "offline")
    ours, alone = run.records.of("offline", OURS), run.records.of("offline", OFFLINE)
    assert [(each.requests, each.pairs) for each in ours] == [(4, 12), (4, 12)]
    assert [(each.requests, each.pairs) for each in alone] == [(1, 12), (1, 12)]
    assert (compute_ratios(run.records)["http_vs_offline_engine"].value or 1) < 1


@pytest.fixture
def with_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Notegrade read vectors: a toy that gives other grades, six times as fast as the best peer."""
    monkeypatch.setattr(Run, "by_vectors", lambda _run, **_: [ToyPeer(VECTORS, 0.0015, wrong_by=1.0)])
    monkeypatch.setattr(parts_module, "Notegrade", lambda *_, **named: ToyPeer(named["name"], 0.004))


@pytest.mark.usefixtures("with_encoder")
async def test_vectors_are_compared_in_speed_alone(make_run: Callable[..., Run]) -> None:
    run = make_run(toys()[:2])
    for part in get_args(Part):
        if part in ("vectors", "unknown", "zipf", "p99"):
            await run_part(run, part)
    assert run.records.disagreeing == {}
    assert [len(run.records.of("vectors", name)) for name in (OURS, VECTORS, "slow")] == [2, 2, 2]
    assert [len(run.records.of("unknown", name)) for name in (OURS, AUTO)] == [2, 2]
    assert set(run.records.saturation) == {"Notegrade (tuned)", "slow (tuned)"}
    ratios = compute_ratios(run.records)
    assert (ratios["vectors_vs_best_peer"].low or 0) > 1.5
    for name in ("zipf_vectors_vs_best_peer", "best_peer_p99_over_vectors", "unknown_vs_text"):
        assert ratios[name].value is not None


@pytest.mark.parametrize("part", ["vectors", "unknown"])
async def test_vectors_need_an_encoder(make_run: Callable[..., Run], part: Part) -> None:
    run = make_run(toys())
    await run_part(run, part)
    assert "untrained_encoder" in run.records.skipped[part]


@pytest.mark.parametrize(("part", "option"), [("student", "--base"), ("replay", "--replay")])
async def test_part_without_its_input_is_skipped(
    make_run: Callable[..., Run], part: str, option: str
) -> None:
    run = make_run(toys())
    await run_part(run, part)  # type: ignore[arg-type]
    assert option in run.records.skipped[part]


def test_peers_are_selected_by_words_and_notegrade_always_runs(
    make_run: Callable[..., Run],
) -> None:
    run = make_run([*toys(), ToyPeer(OURS, tuning="default")], wanted=["SLO"])
    assert [peer.name for peer in run.peers("tuned")] == [OURS, "slow"]
    assert [peer.name for peer in run.peers("default")] == [OURS]
    assert run.ours().name == OURS
