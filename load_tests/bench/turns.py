"""Runs one contestant's turn: warm-up, load, resource usage, and a measurement of it."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from load_tests.bench.drive import Drive, Job, closed_loop, count_scored, make_jobs, open_loop, read_grades
from load_tests.bench.measure import PromptTokens, Usage, Watch, read_prompt_tokens
from load_tests.bench.offline import OfflineEngine
from load_tests.bench.peer import Peer, Request
from load_tests.bench.records import Measurement, Part
from load_tests.bench.stage import Entrant
from load_tests.bench.workloads import Shape, mean_prompt_tokens
from load_tests.figures import percentile

# A server that is called over HTTP, or the engine alone.
AnyEntrant = Entrant[Any]


@dataclass(frozen=True, slots=True)
class Turn:
    """The parameters of a turn.

    Attributes:
        warm_up: requests that are sent first and not measured.
        clients: number of clients of a closed loop.
        longest_s: a closed loop starts no request after this time.
    """

    part: Part
    round: int
    shape: Shape
    requests: Sequence[Request]
    warm_up: Sequence[Request]
    clients: int
    timeout_s: float
    longest_s: float = math.inf


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Arrival times of an open loop, one per request, within `seconds`.

    load: the rate as a share of the best peer's saturation, if known.
    """

    moments: Sequence[float]
    seconds: float
    load: float | None = None


async def closed_turn(entrant: Entrant[Peer], turn: Turn) -> Measurement:
    """Measure with clients that wait for their answers."""
    jobs = make_jobs(entrant.contestant, turn.requests)
    with entrant.turn() as running:
        await _warm_up(entrant, turn)
        before = await read_prompt_tokens(running.url)
        async with Watch(entrant.tree) as usage:
            drive = await closed_loop(running.url, jobs, turn.clients, turn.timeout_s, turn.longest_s)
        after = await read_prompt_tokens(running.url)
    spent = after - before if before and after else None
    scored = sum(count_scored(entrant.contestant, drive, jobs))
    return _measurement(entrant, turn, drive, scored, usage, spent)


@dataclass(frozen=True, slots=True)
class OpenTurn:
    """The result of an open loop; `scored` counts the scored pairs of each of `drive.sent`."""

    measurement: Measurement
    drive: Drive
    scored: Sequence[int]


async def open_turn(entrant: Entrant[Peer], turn: Turn, arrivals: Arrivals) -> OpenTurn:
    """Measure with arrivals at given times."""
    jobs = make_jobs(entrant.contestant, turn.requests)
    plan: list[tuple[float, Job]] = list(zip(arrivals.moments, jobs, strict=False))
    with entrant.turn() as running:
        await _warm_up(entrant, turn)
        async with Watch(entrant.tree) as usage:
            drive = await open_loop(running.url, plan, turn.timeout_s)
    scored = count_scored(entrant.contestant, drive, jobs)
    measured = _measurement(entrant, turn, drive, sum(scored), usage, None)
    lag_ms = 1000 * percentile((each.started_s - each.meant_s for each in drive.sent), 99)
    offered = len(plan) / arrivals.seconds
    measured = replace(measured, offered_per_s=offered, load=arrivals.load, lag_p99_ms=lag_ms)
    return OpenTurn(measured, drive, scored)


async def offline_turn(entrant: Entrant[OfflineEngine], turn: Turn) -> Measurement:
    """Measure the engine alone, with all prompts at once and without HTTP."""
    engine = entrant.contestant
    with entrant.turn():
        for request in turn.warm_up:
            await asyncio.to_thread(engine.score, request.prompts)
        prompts = [prompt for request in turn.requests for prompt in request.prompts]
        async with Watch(entrant.tree) as usage:
            found = await asyncio.to_thread(engine.score, prompts)
    scored = sum(not math.isnan(grade) for grade in found.grades)
    return _measurement(entrant, turn, Drive((), found.seconds), scored, usage, None)


async def any_turn(entrant: AnyEntrant, turn: Turn) -> Measurement:
    """Measure a server over HTTP, or the engine without."""
    if isinstance(entrant.contestant, OfflineEngine):
        return await offline_turn(entrant, turn)
    return await closed_turn(entrant, turn)


async def grades_of(entrant: AnyEntrant, requests: Sequence[Request], timeout_s: float) -> list[float]:
    """Return the expected grades of all pairs of the requests in order; NaN for a pair without one."""
    contestant = entrant.contestant
    with entrant.turn() as running:
        if isinstance(contestant, OfflineEngine):
            prompts = [prompt for request in requests for prompt in request.prompts]
            return (await asyncio.to_thread(contestant.score, prompts)).grades
        jobs = make_jobs(contestant, requests)
        drive = await closed_loop(running.url, jobs, 1, timeout_s)
    return [grade for each in drive.sent for grade in read_grades(contestant, each, jobs[each.job])]


async def _warm_up(entrant: Entrant[Peer], turn: Turn) -> None:
    jobs = make_jobs(entrant.contestant, turn.warm_up)
    await closed_loop(entrant.running.url, jobs, turn.clients, turn.timeout_s)


def _measurement(
    entrant: AnyEntrant,
    turn: Turn,
    drive: Drive,
    scored: int,
    usage: Usage,
    spent: PromptTokens | None,
) -> Measurement:
    # The started requests; a drive of the engine alone has none, since it gets all prompts at once.
    asked = [turn.requests[each.job] for each in drive.sent] or turn.requests
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
        computed_tokens_per_pair=spent.computed / scored if spent and scored else None,
        known_share=spent.known / scored if spent and scored else None,
    )
