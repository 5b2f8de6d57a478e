"""Measures goodput and latency at multiples of a running service's capacity, in an open loop.

    .venv/bin/python -m load_tests.overload http://127.0.0.1:8000 --deadline-ms 1000

Each level lasts `--seconds`. Goodput is scored pairs per second. Latencies count from the intended send time; `answered` are requests with at least one
scored pair. The last line compares the goodput at the highest level with the best.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass

from load_tests.arguments import SEED, make_parser
from load_tests.bench.drive import Drive
from load_tests.new_pairs import NewPairs, count_scored, latency_percentile_ms, results_of

LEVELS = (0.5, 1.0, 2.0, 5.0)


@dataclass(frozen=True, slots=True)
class Level:
    """The result of one level: `times` the capacity was sent."""

    times: float
    goodput: float
    p99_ms: float
    summary: str


def summarise(times: float, drive: Drive, seconds: float) -> Level:
    """Compute goodput and percentiles of one level."""
    answered = [each for each in drive.sent if count_scored(each)]
    refused = [each for each in drive.sent if each.outcome == "refused"]
    outcomes = Counter(result["outcome"] for each in drive.sent for result in results_of(each))
    goodput, p99_ms = outcomes["scored"] / seconds, latency_percentile_ms(answered, 99)
    summary = (
        f"{times:4.1f} x capacity: {len(drive.sent)} requests, goodput {goodput:.1f} pairs/s, "
        f"answered p50 {latency_percentile_ms(answered, 50):.0f} ms p99 {p99_ms:.0f} ms, "
        f"refused p50 {latency_percentile_ms(refused, 50):.0f} ms, {dict(drive.outcomes)}, {dict(outcomes)}"
    )
    return Level(times, goodput, p99_ms, summary)


async def measure(pairs: NewPairs, seconds: float) -> list[Level]:
    """Measure and print all levels, one after the other."""
    capacity = await pairs.measure_capacity(seconds)
    print(
        f"capacity {capacity:.1f} pairs/s; requests of {pairs.notes} notes, deadline {pairs.deadline_ms} ms"
    )
    levels = []
    for times in LEVELS:
        levels.append(summarise(times, await pairs.send(times * capacity, seconds), seconds))
        print(levels[-1].summary)
    best = max(level.goodput for level in levels)
    print(
        f"goodput at {levels[-1].times:g} x: {levels[-1].goodput / best:.0%} of the best; "
        f"p99 of answered there: {levels[-1].p99_ms / pairs.deadline_ms:.0%} of the deadline"
    )
    return levels


def main() -> None:
    """Read the command line and measure."""
    options = make_parser(__doc__, "url", seconds=30.0, notes=4, deadline_ms=1000, seed=SEED).parse_args()
    pairs = NewPairs(options.url, options.seed, options.notes, options.deadline_ms)
    asyncio.run(measure(pairs, options.seconds))


if __name__ == "__main__":
    main()
