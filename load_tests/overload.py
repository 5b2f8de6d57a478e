"""Measures goodput and latency at multiples of a running service's capacity, in an open loop.

    .venv/bin/python -m load_tests.overload http://127.0.0.1:8000 --deadline-ms 1000

Each level lasts `--seconds`. Goodput is scored pairs per second. Latencies count from the intended send time; `answered` are requests with at least one
scored pair. The last line compares the goodput at the highest level with the best.
"""

import asyncio
from collections import Counter

from load_tests.arguments import SEED, make_parser
from load_tests.bench.drive import Drive
from load_tests.new_pairs import NewPairs, count_scored, latency_percentile_ms, results_of

LEVELS = (0.5, 1.0, 2.0, 5.0)


def report(times: float, drive: Drive, seconds: float) -> tuple[float, float]:
    """Print the result of sending `times` the capacity; return goodput, and the p99 of answered requests in ms."""
    answered = [each for each in drive.sent if count_scored(each)]
    refused = [each for each in drive.sent if each.outcome == "refused"]
    outcomes = Counter(result["outcome"] for each in drive.sent for result in results_of(each))
    goodput, p99_ms = outcomes["scored"] / seconds, latency_percentile_ms(answered, 99)
    print(
        f"{times:4.1f} x capacity: {len(drive.sent)} requests, goodput {goodput:.1f} pairs/s, "
        f"answered p50 {latency_percentile_ms(answered, 50):.0f} ms p99 {p99_ms:.0f} ms, "
        f"refused p50 {latency_percentile_ms(refused, 50):.0f} ms, {dict(drive.outcomes)}, {dict(outcomes)}"
    )
    return goodput, p99_ms


async def measure(pairs: NewPairs, seconds: float) -> None:
    """Measure and print all levels, one after the other."""
    capacity = await pairs.measure_capacity(seconds)
    print(
        f"capacity {capacity:.1f} pairs/s; requests of {pairs.notes} notes, deadline {pairs.deadline_ms} ms"
    )
    levels = [report(times, await pairs.send(times * capacity, seconds), seconds) for times in LEVELS]
    goodput, p99_ms = levels[-1]
    print(
        f"goodput at {LEVELS[-1]:g} x: {goodput / max(levels)[0]:.0%} of the best; "
        f"p99 of answered there: {p99_ms / pairs.deadline_ms:.0%} of the deadline"
    )


def main() -> None:
    """Read the command line and measure."""
    options = make_parser(__doc__, "url", seconds=30.0, notes=4, deadline_ms=1000, seed=SEED).parse_args()
    pairs = NewPairs(options.url, options.seed, options.notes, options.deadline_ms)
    asyncio.run(measure(pairs, options.seconds))


if __name__ == "__main__":
    main()
