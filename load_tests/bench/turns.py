"""Runs one contestant's turn: warm-up, load, resource usage, and a measurement of it."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass

from load_tests.bench.drive import Drive, closed_loop, count_scored, make_jobs, open_loop, read_grades
from load_tests.bench.measure import Usage, read_work, watch
from load_tests.bench.peer import Request
from load_tests.bench.peers.notegrade import NotegradeVectors
from load_tests.bench.records import Measurement, Part
from load_tests.bench.stage import Entrant
from load_tests.bench.workloads import Shape, mean_prompt_tokens
from load_tests.figures import percentile


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Arrival times of an open loop, one per request, within `seconds`.

    load: the rate as a share of the best peer's saturation, if known.
    """

    moments: Sequence[float]
    seconds: float
    load: float | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """The parameters of a turn.

    Attributes:
        warm_up: requests that are sent first and not measured.
        clients: number of clients of a closed loop.
        longest_s: a closed loop starts no request after this time.
        arrivals: of an open loop; None for a closed loop.
    """

    part: Part
    round: int
    shape: Shape
    requests: Sequence[Request]
    warm_up: Sequence[Request]
    clients: int
    timeout_s: float
    longest_s: float = math.inf
    arrivals: Arrivals | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a turn; `scored` counts the scored pairs of each of `drive.sent`."""

    measurement: Measurement
    drive: Drive
    scored: Sequence[int]


async def run_turn(entrant: Entrant, turn: Turn) -> Result:
    """Warm a server up and measure it."""
    peer = entrant.contestant
    jobs = make_jobs(peer, turn.requests)
    with entrant.turn() as running:
        if isinstance(peer, NotegradeVectors):
            await asyncio.to_thread(peer.encode, running.url, [*turn.warm_up, *turn.requests])
        await closed_loop(running.url, make_jobs(peer, turn.warm_up), turn.clients, turn.timeout_s)
        before = await read_work(running.url)
        async with watch(entrant.tree) as usage:
            if turn.arrivals:
                plan = list(zip(turn.arrivals.moments, jobs, strict=False))
                drive = await open_loop(running.url, plan, turn.timeout_s)
            else:
                drive = await closed_loop(running.url, jobs, turn.clients, turn.timeout_s, turn.longest_s)
        after = await read_work(running.url)
    scored = count_scored(peer, drive, jobs)
    work = (after[0] - before[0], after[1] - before[1]) if before and after else None
    return Result(_measurement(entrant, turn, drive, sum(scored), usage, work), drive, scored)


async def grades_of(entrant: Entrant, requests: Sequence[Request], timeout_s: float) -> list[float]:
    """Return the expected grades of all pairs of the requests in order; NaN for a pair without one."""
    jobs = make_jobs(entrant.contestant, requests)
    with entrant.turn() as running:
        drive = await closed_loop(running.url, jobs, 1, timeout_s)
    return [grade for each in drive.sent for grade in read_grades(entrant.contestant, each, jobs[each.job])]


def _measurement(
    entrant: Entrant,
    turn: Turn,
    drive: Drive,
    scored: int,
    usage: Usage,
    work: tuple[float, float] | None,
) -> Measurement:
    """Make the measurement. `work`: computed tokens, and pairs that needed no engine, if the server counts them."""
    asked = [turn.requests[each.job] for each in drive.sent]  # a long turn starts only the first requests
    computed, known = (count / scored for count in work) if work and scored else (None, None)
    arrivals = turn.arrivals
    return Measurement(
        part=turn.part,
        peer=entrant.contestant.name,
        tuning=entrant.contestant.tuning,
        round=turn.round,
        notes=turn.shape.notes,
        note_tokens=turn.shape.note_tokens,
        requests=len(asked),
        pairs=sum(len(request.notes) for request in asked),
        seconds=drive.seconds,
        pairs_per_s=scored / drive.seconds,
        outcomes={str(outcome): count for outcome, count in drive.outcomes.items()},
        latency_ms=drive.latencies_ms(turn.timeout_s),
        cpu_s=usage.cpu_s,
        client_cpu_s=usage.client_cpu_s,
        peak_rss_mib=usage.peak_rss_mib,
        prompt_tokens_per_pair=mean_prompt_tokens(asked),
        computed_tokens_per_pair=computed,
        known_share=known,
        offered_per_s=len(drive.sent) / arrivals.seconds if arrivals else None,
        load=arrivals.load if arrivals else None,
        lag_p99_ms=1000 * percentile((each.started_s - each.meant_s for each in drive.sent), 99),
    )
