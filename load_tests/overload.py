"""Measures goodput and latency at multiples of a running service's capacity, in an open loop.

    .venv/bin/python -m load_tests.overload http://127.0.0.1:8000 --deadline-ms 1000

Each level lasts `--seconds`. Goodput is pairs per second that were scored by its end. Latencies count from the intended send time; `answered` are requests with at least one
scored pair. The last line compares the goodput at the highest level with the best.
"""

import asyncio
from collections import Counter
from typing import Any

from load_tests.arguments import SEED, make_parser
from load_tests.bench.drive import Drive
from load_tests.new_pairs import NewPairs, count_scored, latency_percentile_ms, results_of
from load_tests.raw_results import write_raw

LEVELS = (0.5, 1.0, 2.0, 5.0)


def report(times: float, drive: Drive, seconds: float) -> dict[str, Any]:
    """Print and return the result of sending `times` the capacity."""
    answered = [each for each in drive.sent if count_scored(each)]
    refused = [each for each in drive.sent if each.outcome == "refused"]
    outcomes = Counter(result["outcome"] for each in drive.sent for result in results_of(each))
    in_time = sum(count_scored(each) for each in answered if each.done_s <= seconds)
    found = {
        "times_capacity": times,
        "requests": len(drive.sent),
        "goodput_pairs_per_s": in_time / seconds,
        "answered_p50_ms": latency_percentile_ms(answered, 50),
        "answered_p99_ms": latency_percentile_ms(answered, 99),
        "refused_p50_ms": latency_percentile_ms(refused, 50),
        "requests_by_outcome": dict(drive.outcomes),
        "pairs_by_outcome": dict(outcomes),
    }
    print(
        f"{times:4.1f} x capacity: {found['requests']} requests, goodput {found['goodput_pairs_per_s']:.1f} pairs/s, "
        f"answered p50 {found['answered_p50_ms']:.0f} ms p99 {found['answered_p99_ms']:.0f} ms, "
        f"refused p50 {found['refused_p50_ms']:.0f} ms, {dict(drive.outcomes)}, {dict(outcomes)}"
    )
    return found


async def measure(pairs: NewPairs, seconds: float) -> dict[str, Any]:
    """Measure, print and return the capacity and all levels, one after the other."""
    capacity = await pairs.measure_capacity(seconds)
    print(
        f"capacity {capacity:.1f} pairs/s; requests of {pairs.notes} notes, deadline {pairs.deadline_ms} ms"
    )
    levels = [report(times, await pairs.send(times * capacity, seconds), seconds) for times in LEVELS]
    goodputs = [level["goodput_pairs_per_s"] for level in levels]
    print(
        f"goodput at {LEVELS[-1]:g} x: {goodputs[-1] / max(goodputs):.0%} of the best; "
        f"p99 of answered there: {levels[-1]['answered_p99_ms'] / pairs.deadline_ms:.0%} of the deadline"
    )
    return {"capacity_pairs_per_s": capacity, "levels": levels}


def main() -> None:
    """Read the command line and measure."""
    options = make_parser(__doc__, "url", seconds=30.0, notes=4, deadline_ms=1000, seed=SEED).parse_args()
    pairs = NewPairs(options.url, options.seed, options.notes, options.deadline_ms)
    write_raw(options, asyncio.run(measure(pairs, options.seconds)))


if __name__ == "__main__":
    main()
