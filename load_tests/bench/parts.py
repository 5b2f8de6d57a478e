"""Runs the parts of a benchmark: each starts its contestants and sends them its workload in turn, round by round."""

import itertools
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from load_tests.bench.drive import poisson
from load_tests.bench.peer import Asked, Peer
from load_tests.bench.peers.notegrade import Notegrade
from load_tests.bench.peers.prompts import COMPILED, EngineAlone, Knobs, merge
from load_tests.bench.records import AUTO, OFFLINE, STUDENT, VECTORS, Part
from load_tests.bench.run import Run
from load_tests.bench.saturation import Probe, find_saturation, judge
from load_tests.bench.stage import Entrant
from load_tests.bench.turns import Arrivals, Turn, run_turn
from load_tests.bench.workloads import render, replay, zipf
from load_tests.rounds import in_turn
from service.contract.checkpoint import load_checkpoint
from service.contract.prompt import PromptRenderer
from service.contract.vllm_settings import has_compiler

_NO_ENCODER = "the checkpoint has no encoder (load_tests.untrained_encoder makes one, for speed alone)"


async def run_part(run: Run, part: Part) -> None:
    """Run one part; a part without its prerequisites is skipped, with the reason."""
    print(f"== {part}", file=sys.stderr)
    await _PARTS[part](run)


async def _cold(run: Run) -> None:
    await _rounds(run, "cold", run.peers("tuned"), run.cold("cold", run.plan.shape))


async def _defaults(run: Run) -> None:
    await _rounds(run, "defaults", run.peers("default"), run.cold("defaults", run.plan.shape))


async def _vectors(run: Run) -> None:
    """Send notes whose vectors are stored, and which no prefix cache knows."""
    if not (ours := run.by_vectors()):
        run.skip("vectors", _NO_ENCODER)
        return
    await _rounds(run, "vectors", [run.ours(), *ours, *run.rivals()], run.cold("vectors", run.plan.shape))


async def _unknown(run: Run) -> None:
    """Send notes without vectors to a service that looks for them, reads the texts, and encodes the notes when it is idle."""
    if not run.by_vectors():
        run.skip("unknown", _NO_ENCODER)
        return
    settings = {"NOTEGRADE_READING": "auto"}
    auto = Notegrade(run.checkpoint, "tuned", cached=False, name=AUTO, settings=settings)
    await _rounds(run, "unknown", [run.ours(), auto], run.cold("unknown", run.plan.shape))


async def _zipf(run: Run) -> None:
    asked = zipf(run.seed("zipf"), run.plan.shape, run.plan.repetition)
    ours = [run.ours(cached=True), *run.by_vectors(cached=True)]
    await _rounds(run, "zipf", [*ours, *run.rivals()], asked, run.plan.zipf_history)


async def _replay(run: Run) -> None:
    if run.traffic_file is None:
        run.skip("replay", "no --replay FILE")
        return
    await _rounds(run, "replay", [run.ours(cached=True), *run.rivals()], replay(run.traffic_file))


async def _offline(run: Run) -> None:
    alone = EngineAlone(run.checkpoint, knobs=COMPILED if has_compiler() else Knobs())
    await _rounds(run, "offline", [run.ours(), alone], run.cold("offline", run.plan.shape))


async def _rounds(
    run: Run,
    part: Part,
    contestants: Sequence[Peer],
    asked: Iterator[Asked],
    history: int = 0,
) -> None:
    """Send the same requests to all contestants, new ones in each round, after `history` unmeasured requests."""
    with run.stage(contestants) as entrants:
        agreed = await run.agreeing(entrants)
        if len(agreed) < 2:
            run.skip(part, "no peer to compare with")
            return
        before = run.turn(part, 0, asked, history)
        for entrant in agreed if history else ():
            await run_turn(entrant, before)
        for number in range(run.plan.rounds):
            turn = run.turn(part, number, asked, run.plan.requests)
            if not turn.requests:
                return  # the end of a traffic file
            for entrant in in_turn(agreed, number):
                run.keep(
                    await run_turn(entrant, _own(entrant, replace(turn, longest_s=run.plan.longest_turn_s)))
                )


def _own(entrant: Entrant, turn: Turn) -> Turn:
    """Give the engine alone all prompts of a turn at once."""
    if entrant.contestant.name != OFFLINE:
        return turn
    return replace(turn, warm_up=[merge(turn.warm_up)], requests=[merge(turn.requests)])


async def _student(run: Run) -> None:
    """Compare Notegrade on the checkpoint with the peers on its base: the same pairs, each in its own prompts."""
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
            theirs = _rendered(own, base.renderer, texts)
            for entrant in in_turn(entrants, number):
                turn = own if entrant.contestant.name == STUDENT else theirs
                run.keep(await run_turn(entrant, turn))


def _rendered(turn: Turn, renderer: PromptRenderer, texts: Sequence[Asked]) -> Turn:
    """Render the same turn with another checkpoint's prompts."""
    requests, split = [render(renderer, each) for each in texts], len(turn.warm_up)
    return replace(turn, warm_up=requests[:split], requests=requests[split:])


async def _p99(run: Run) -> None:
    """Find each server's saturation, then measure all at the same rates, below the best peer's saturation."""
    asked = run.cold("p99", run.plan.open_shape)
    with run.stage([run.ours(), *run.rivals(), *run.by_vectors()]) as entrants:
        agreed = await run.agreeing(entrants)
        # Not of vectors: encoding the notes of a search takes longer than all else.
        readers = [entrant for entrant in agreed if entrant.contestant.name != VECTORS]
        _, *of_peers = [await _saturate(run, entrant, asked) for entrant in readers] or [0.0]
        best = max(of_peers, default=0.0)
        if best <= 0:
            run.skip("p99", "no peer keeps up with any rate")
            return
        for load, number in itertools.product(run.plan.open_loads, range(run.plan.rounds)):
            seed, seconds = run.seed(f"p99 {load} {number}"), run.plan.open_seconds
            turn = _open_turn(
                run, number, Arrivals(poisson(seed, load * best, seconds), seconds, load), asked
            )
            for entrant in in_turn(agreed, number):
                run.keep(await run_turn(entrant, turn))


def _open_turn(run: Run, number: int, arrivals: Arrivals, asked: Iterator[Asked]) -> Turn:
    turn = run.turn("p99", number, asked, len(arrivals.moments), run.plan.open_shape)
    return replace(turn, arrivals=arrivals)


async def _saturate(run: Run, entrant: Entrant, asked: Iterator[Asked]) -> float:
    """Find the highest requests per second that the server keeps up with."""
    shape, seconds = run.plan.open_shape, run.plan.probe_seconds
    closed = await run_turn(entrant, run.turn("p99", 0, asked, run.plan.requests, shape))

    async def probe(rate: float) -> Probe:
        arrivals = Arrivals(poisson(run.seed(f"probe {rate}"), rate, seconds), seconds)
        found = await run_turn(entrant, _open_turn(run, 0, arrivals, asked))
        return judge(rate, seconds, found.drive, shape.notes, found.scored)

    found = await find_saturation(probe, closed.measurement.pairs_per_s / shape.notes, run.plan.resolution)
    run.records.saturation[entrant.label] = found
    print(f"   {entrant.label} keeps up with {found.goodput:.2f} pairs/s", file=sys.stderr)
    return found.kept_up


async def _sweeps(run: Run) -> None:
    """Measure one round at each point of the sweeps."""
    plan = run.plan
    shapes = [replace(plan.shape, notes=notes) for notes in plan.sweep_notes]
    shapes += [replace(plan.shape, note_tokens=tokens) for tokens in plan.sweep_note_tokens]
    with run.stage([run.ours(), *run.rivals()]) as entrants:
        agreed = await run.agreeing(entrants)
        for shape in dict.fromkeys(shapes):
            requests = max(2, round(plan.sweep_pairs / shape.notes))
            turn = run.turn("sweeps", 0, run.cold(f"sweeps {shape}", shape), requests, shape)
            # One warm-up request is enough for large requests. The number of pairs in flight is the same at every point.
            turn = replace(turn, warm_up=turn.warm_up[:1])
            clients = max(1, plan.clients * plan.shape.notes // shape.notes)
            for entrant in agreed:
                run.keep(await run_turn(entrant, replace(turn, clients=clients)))


_PARTS: Mapping[Part, Callable[[Run], Awaitable[None]]] = {
    "cold": _cold,
    "defaults": _defaults,
    "student": _student,
    "vectors": _vectors,
    "unknown": _unknown,
    "zipf": _zipf,
    "replay": _replay,
    "offline": _offline,
    "p99": _p99,
    "sweeps": _sweeps,
}
