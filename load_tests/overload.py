"""More load than the service can do: goodput and latency at multiples of its capacity, open loop.

    .venv/bin/python -m load_tests.overload http://127.0.0.1:8000 --deadline-ms 1000

Goodput is pairs scored a second; `answered` are requests with at least one scored pair, whose p99 counts from the moment
that they were meant to be sent. Prints each level, and the goodput at the highest as a share of the best.
"""

import argparse
import asyncio
import random
from collections import Counter
from dataclasses import dataclass

from load_tests.client import new_session
from load_tests.open_loop import Arrival, measure_capacity, new_body, percentile, send

LEVELS = (0.5, 1.0, 2.0, 5.0)


@dataclass(frozen=True, slots=True)
class Level:
    """What came of one level: goodput in pairs a second, p99 of answered requests in seconds."""

    times: float
    goodput: float
    p99_s: float
    told: str


def sum_up(times: float, arrivals: list[Arrival], seconds: float) -> Level:
    """Read the figures off the answers."""
    answered = [arrival.seconds for arrival in arrivals if arrival.scored]
    refused = [arrival.seconds for arrival in arrivals if arrival.answer.status == 503]
    outcomes = Counter(result["outcome"] for arrival in arrivals for result in arrival.results)
    statuses = Counter(arrival.answer.status for arrival in arrivals)
    goodput, p99_s = outcomes["scored"] / seconds, percentile(answered, 0.99)
    told = (
        f"{times:4.1f} x capacity: {len(arrivals)} requests, goodput {goodput:.1f} pairs/s, "
        f"answered p50 {percentile(answered, 0.5) * 1000:.0f} ms p99 {p99_s * 1000:.0f} ms, "
        f"refused p50 {percentile(refused, 0.5) * 1000:.0f} ms, {dict(statuses)}, {dict(outcomes)}"
    )
    return Level(times, goodput, p99_s, told)


async def measure(url: str, seconds: float, notes: int, deadline_ms: int, seed: int) -> list[Level]:
    """All levels in turn, printed as they come."""
    rng = random.Random(seed)
    levels = []
    async with new_session() as session:
        await measure_capacity(session, url, lambda: new_body(rng, notes), seconds / 4)  # warms up
        capacity = await measure_capacity(session, url, lambda: new_body(rng, notes), seconds)
        print(f"capacity {capacity:.1f} pairs/s; requests of {notes} notes, deadline {deadline_ms} ms")
        for times in LEVELS:
            rate = times * capacity / notes
            arrivals = await send(session, url, lambda: new_body(rng, notes, deadline_ms), rate, seconds)
            levels.append(sum_up(times, arrivals, seconds))
            print(levels[-1].told)
    best = max(level.goodput for level in levels)
    print(
        f"goodput at {levels[-1].times:g} x: {levels[-1].goodput / best:.0%} of the best; "
        f"p99 of answered there: {levels[-1].p99_s * 1000 / deadline_ms:.0%} of the deadline"
    )
    return levels


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url")
    parser.add_argument("--seconds", type=float, default=30, help="length of each level")
    parser.add_argument("--notes", type=int, default=4)
    parser.add_argument("--deadline-ms", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    arguments = parser.parse_args()
    asyncio.run(
        measure(arguments.url, arguments.seconds, arguments.notes, arguments.deadline_ms, arguments.seed)
    )


if __name__ == "__main__":
    main()
