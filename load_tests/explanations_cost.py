"""What explaining everything costs scoring: p99 at 60 % of capacity with explanation mode `all` and `off`, in turn.

    .venv/bin/python -m load_tests.explanations_cost http://127.0.0.1:8000

Finds the capacity first (closed loop), then sends single new notes at random moments (Poisson arrivals, open loop: they
don't wait for answers, and latency counts from the moment that a request was meant to be sent). Prints both p99s and
their ratio for each round, and what became of scores and explanations. NOTEGRADE_KEY holds an admin key where keys are set.
"""

import argparse
import asyncio
import os
import random
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from load_tests.client import post_score, read_metrics
from load_tests.texts import make_note, make_query

MODE = "/admin/explanation-mode"


@dataclass(slots=True)
class Phase:
    """One stretch of load: latencies in seconds, and outcomes of pairs and of their explanations."""

    seconds: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    explanations: Counter[str] = field(default_factory=Counter)

    def p(self, share: float) -> float:
        """Nearest-rank percentile of the latencies."""
        ranked = sorted(self.seconds)
        return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


def new_body(rng: random.Random) -> dict[str, Any]:
    """A request that no cache has seen."""
    return {
        "query": f"{make_query(rng)} {rng.random()}",
        "notes": [make_note(rng, "n")],
        "deadline_ms": 60_000,
    }


async def measure_capacity(
    session: aiohttp.ClientSession, url: str, rng: random.Random, seconds: float, clients: int = 16
) -> float:
    """Pairs a second from clients that each send the next request when the last one is answered."""
    done = 0
    until = time.perf_counter() + seconds

    async def client() -> None:
        nonlocal done
        while time.perf_counter() < until:
            await post_score(session, url, new_body(rng))
            done += 1

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return done / (time.perf_counter() - started)


async def run_phase(
    session: aiohttp.ClientSession, url: str, rng: random.Random, rate: float, seconds: float
) -> Phase:
    """Open loop at that many requests a second."""
    phase = Phase()
    started = time.perf_counter()
    asking: list[asyncio.Task[None]] = []

    async def ask(meant_at: float) -> None:
        answer = await post_score(session, url, new_body(rng))
        phase.seconds.append(time.perf_counter() - meant_at)
        results = answer.body.get("results") or [{"outcome": f"HTTP {answer.status}"}]
        phase.outcomes.update(result["outcome"] for result in results)
        found = [result["explanation"] for result in results if result.get("explanation")]
        phase.explanations.update(each["reason"] or each["outcome"] for each in found)

    at = started
    while at < started + seconds:
        await asyncio.sleep(max(0.0, at - time.perf_counter()))
        asking.append(asyncio.create_task(ask(at)))
        at += rng.expovariate(rate)
    await asyncio.gather(*asking)
    return phase


async def flip(session: aiohttp.ClientSession, url: str, mode: str) -> None:
    """Raises aiohttp.ClientResponseError when it is refused."""
    async with session.get(url + MODE) as response:
        response.raise_for_status()
        etag = response.headers["ETag"]
    body = {"mode": mode, "reason": "load test", **({} if mode == "off" else {"ttl_s": 3600})}
    async with session.put(url + MODE, json=body, headers={"If-Match": etag}) as response:
        response.raise_for_status()


def describe(name: str, phase: Phase) -> str:
    """A line for a person."""
    told = f", explanations {dict(phase.explanations)}" if phase.explanations else ""
    return (
        f"  {name:3}  {len(phase.seconds)} requests: p50 {phase.p(0.5) * 1000:.0f} ms, p99 {phase.p(0.99) * 1000:.0f} ms, "
        f"{dict(phase.outcomes)}{told}"
    )


async def compare(url: str, rounds: int, seconds: float, load: float, seed: int) -> float:
    """Print all of it; the median ratio."""
    rng = random.Random(seed)
    headers = (
        {"Authorization": f"Bearer {os.environ['NOTEGRADE_KEY']}"} if "NOTEGRADE_KEY" in os.environ else {}
    )
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        await flip(session, url, "off")
        await measure_capacity(session, url, rng, seconds / 4)  # warms up
        capacity = await measure_capacity(session, url, rng, seconds)
        print(f"capacity {capacity:.1f} pairs/s; load {load:.0%} of it: {load * capacity:.1f} pairs/s")
        ratios = []
        for number in range(rounds):
            phases = {}
            # In turn, and the other way round each time: a machine that slows down must not look like a mode.
            for mode in ("off", "all") if number % 2 == 0 else ("all", "off"):
                await flip(session, url, mode)
                phases[mode] = await run_phase(session, url, rng, load * capacity, seconds)
            await flip(session, url, "off")
            ratios.append(phases["all"].p(0.99) / phases["off"].p(0.99))
            print(f"round {number + 1}: p99 with all / p99 with off = {ratios[-1]:.2f}")
            print(describe("off", phases["off"]), describe("all", phases["all"]), sep="\n")
        made = {
            name: value
            for name, value in (await read_metrics(session, url)).items()
            if name.startswith(
                ("notegrade_explanations_total", "notegrade_explanation_drops_total", "notegrade_shed")
            )
        }
    print(f"since the service started: {made}")
    print(
        f"ratio of p99s: min {min(ratios):.2f}, median {statistics.median(ratios):.2f}, max {max(ratios):.2f}"
    )
    return statistics.median(ratios)


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=40, help="length of each phase")
    parser.add_argument("--load", type=float, default=0.6, help="share of the capacity")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    arguments = parser.parse_args()
    asyncio.run(compare(arguments.url, arguments.rounds, arguments.seconds, arguments.load, arguments.seed))


if __name__ == "__main__":
    main()
