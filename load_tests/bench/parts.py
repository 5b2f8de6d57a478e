"""The parts of a run, each a comparison: who is on the stage, and what they are asked, in turn and round by round."""

import itertools
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from load_tests.bench.drive import poisson
from load_tests.bench.offline import COMPILED, Knobs, OfflineEngine
from load_tests.bench.peer import Peer
from load_tests.bench.peers.notegrade import Notegrade
from load_tests.bench.records import STUDENT, Part
from load_tests.bench.run import Run
from load_tests.bench.saturation import Probe, find_saturation, judge
from load_tests.bench.stage import Entrant, in_turn
from load_tests.bench.turns import Arrivals, Turn, any_turn, closed_turn, open_turn
from load_tests.bench.workloads import Asked, Renderer, replay, zipf
from service.contract.checkpoint import load_checkpoint
from service.contract.vllm_settings import has_compiler


async def run_part(run: Run, part: Part) -> None:
    """Run one. What it needs and isn't there makes it skipped, with the reason."""
    print(f"== {part}", file=sys.stderr)
    await _PARTS[part](run)


async def _cold(run: Run) -> None:
    await _rounds(run, "cold", run.peers("tuned"), run.cold("cold", run.plan.shape))


async def _defaults(run: Run) -> None:
    await _rounds(run, "defaults", run.peers("default"), run.cold("defaults", run.plan.shape))


async def _zipf(run: Run) -> None:
    asked = zipf(run.seed("zipf"), run.plan.shape, run.plan.repetition)
    await _rounds(run, "zipf", [run.ours(cached=True), *run.rivals()], asked, run.plan.zipf_history)


async def _replay(run: Run) -> None:
    if run.traffic_file is None:
        run.skip("replay", "no --replay FILE")
        return
    await _rounds(run, "replay", [run.ours(cached=True), *run.rivals()], replay(run.traffic_file))


async def _offline(run: Run) -> None:
    alone = OfflineEngine(run.checkpoint, knobs=COMPILED if has_compiler() else Knobs())
    contestants: list[Peer | OfflineEngine] = [run.ours(), alone]
    await _rounds(run, "offline", contestants, run.cold("offline", run.plan.shape))


async def _rounds(
    run: Run,
    part: Part,
    contestants: Sequence[Peer | OfflineEngine],
    asked: Iterator[Asked],
    history: int = 0,
) -> None:
    """The same requests for everybody in a round, other ones in the next; `history` requests go before and don't count."""
    with run.stage(contestants) as entrants:
        agreed = await run.agreeing(entrants)
        if len(agreed) < 2:
            run.skip(part, "nobody to compare with")
            return
        before = run.turn(part, 0, asked, history)
        for entrant in agreed if history else ():
            await any_turn(entrant, before)
        for number in range(run.plan.rounds):
            turn = run.turn(part, number, asked, run.plan.requests)
            if not turn.requests:
                return  # a file of traffic ends
            for entrant in in_turn(agreed, number):
                run.keep(await any_turn(entrant, replace(turn, longest_s=run.plan.longest_turn_s)))


async def _student(run: Run) -> None:
    """Notegrade with the checkpoint, and the peers with its base: the same pairs in each one's own prompts."""
    if run.base is None:
        run.skip("student", "no --base FOLDER")
        return
    base = load_checkpoint(run.base)
    ours = Notegrade(run.checkpoint, "tuned", cached=False, name=STUDENT)
    asked = run.cold("student", run.plan.shape)
    with run.stage([ours, *run.rivals(run.base)]) as entrants:
        for number in range(run.plan.rounds):
            texts = [next(asked) for _ in range(run.plan.warm_up_requests + run.plan.requests)]
            own = run.turn("student", number, texts, run.plan.requests)
            theirs = _rendered(own, Renderer(base.manifest, base.tokenizer), texts)
            for entrant in in_turn(entrants, number):
                turn = own if entrant.contestant.name == STUDENT else theirs
                run.keep(await closed_turn(entrant, turn))


def _rendered(turn: Turn, renderer: Renderer, texts: Sequence[Asked]) -> Turn:
    """The same turn with prompts of another checkpoint."""
    requests, split = [renderer.render(each) for each in texts], len(turn.warm_up)
    return replace(turn, warm_up=requests[:split], requests=requests[split:])


async def _p99(run: Run) -> None:
    """Where each one saturates, then the latency of all at the same rates, which the best peer keeps up with."""
    asked = run.cold("p99", run.plan.open_shape)
    with run.stage([run.ours(), *run.rivals()]) as entrants:
        agreed = await run.agreeing(entrants)
        _, *of_peers = [await _saturate(run, entrant, asked) for entrant in agreed] or [0.0]
        best = max(of_peers, default=0.0)
        if best <= 0:
            run.skip("p99", "there is no rate that a peer keeps up with")
            return
        for load, number in itertools.product(run.plan.open_loads, range(run.plan.rounds)):
            name = f"p99 {load} {number}"
            turn, arrivals = _arrivals(run, number, name, load * best, run.plan.open_seconds, asked)
            for entrant in in_turn(agreed, number):
                run.keep((await open_turn(entrant, turn, replace(arrivals, load=load))).measurement)


def _arrivals(
    run: Run, number: int, name: str, rate: float, seconds: float, asked: Iterator[Asked]
) -> tuple[Turn, Arrivals]:
    moments = poisson(run.seed(name), rate, seconds)
    turn = run.turn("p99", number, asked, len(moments), run.plan.open_shape)
    return turn, Arrivals(moments, seconds)


async def _saturate(run: Run, entrant: Entrant[Any], asked: Iterator[Asked]) -> float:
    """Requests a second that it keeps up with."""
    shape = run.plan.open_shape
    in_hand = await closed_turn(entrant, run.turn("p99", 0, asked, run.plan.requests, shape))

    async def probe(rate: float) -> Probe:
        turn, arrivals = _arrivals(run, 0, f"probe {rate}", rate, run.plan.probe_seconds, asked)
        found = await open_turn(entrant, turn, arrivals)
        pairs = [len(turn.requests[each.job].notes) for each in found.drive.sent]
        return judge(rate, arrivals.seconds, found.drive, pairs, found.scored)

    found = await find_saturation(probe, in_hand.pairs_per_s / shape.notes, run.plan.resolution)
    run.records.saturation[entrant.label] = found
    print(f"   {entrant.label} keeps up with {found.goodput:.2f} pairs/s", file=sys.stderr)
    return found.kept_up


async def _sweeps(run: Run) -> None:
    """One round at each point: the shape of a curve, with the spread that the other parts show."""
    plan = run.plan
    shapes = [replace(plan.shape, notes=notes) for notes in plan.sweep_notes]
    shapes += [replace(plan.shape, note_tokens=tokens) for tokens in plan.sweep_note_tokens]
    with run.stage([run.ours(), *run.rivals()]) as entrants:
        agreed = await run.agreeing(entrants)
        for shape in dict.fromkeys(shapes):
            requests = max(2, round(plan.sweep_pairs / shape.notes))
            turn = run.turn("sweeps", 0, run.cold(f"sweeps {shape}", shape), requests, shape)
            # One is enough to warm up with where requests are large, and as many pairs are under way at every point.
            turn = replace(turn, warm_up=turn.warm_up[:1])
            clients = max(1, plan.clients * plan.shape.notes // shape.notes)
            for entrant in agreed:
                run.keep(await closed_turn(entrant, replace(turn, clients=clients)))


_PARTS: Mapping[Part, Callable[[Run], Awaitable[None]]] = {
    "cold": _cold,
    "defaults": _defaults,
    "student": _student,
    "zipf": _zipf,
    "replay": _replay,
    "offline": _offline,
    "p99": _p99,
    "sweeps": _sweeps,
}
