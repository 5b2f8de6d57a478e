"""Measures what the pair cache costs a Redis: processor time, network and memory for a lookup and for a write.

    .venv/bin/python -m load_tests.redis_cost redis://localhost:6379/0

Calls are those of the service, 16 at a time, with readings of four grades. Each round writes new queries and looks them up. Use a
Redis without other traffic; its keys are deleted at the end. `load_tests.capacity` plans with these figures.
"""

import argparse
import asyncio
import os
import statistics
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from redis.asyncio import Redis

from load_tests.arguments import make_parser
from load_tests.figures import markdown_table
from load_tests.raw_results import write_raw
from service.caches.keys import note_key, pack_reading, query_key
from service.caches.redis_cache import RedisCache
from service.contract.labels import LabelDistribution, Reading

SIZES = (1, 20, 100)
AT_ONCE = 16
READING = Reading(LabelDistribution((0.1, 0.2, 0.3, 0.4), 0.99), truncated=False)


@dataclass(frozen=True, slots=True)
class Cost:
    """What one call costs Redis: processor time in µs, and bytes received and sent. `memory` is what it then holds for the call."""

    notes: int
    call: str
    processor_us: float
    received: float
    sent: float
    memory: float


async def _state(redis: Redis) -> tuple[float, float, float, float]:
    info: dict[str, Any] = await redis.info()
    seconds = info["used_cpu_user"] + info["used_cpu_sys"]
    return 1e6 * seconds, info["total_net_input_bytes"], info["total_net_output_bytes"], info["used_memory"]


async def measure(url: str, notes: int, calls: int) -> list[Cost]:
    """Write that many queries with as many notes, and look each up once."""
    cache, redis = RedisCache(url, ttl_s=600, timeout_s=10), Redis.from_url(url)
    run = os.urandom(8).hex()
    queries = [query_key(f"{run} {number}", "f" * 32) for number in range(calls)]
    keys = [note_key("", str(number)) for number in range(notes)]

    async def write(query: str) -> None:
        await cache.put_many(query, {key: pack_reading(READING, query, key) for key in keys})

    async def look_up(query: str) -> None:
        if None in (await cache.get_many(query, keys)).values:
            raise RuntimeError("Redis lost an entry: it is full, or something else deletes keys")

    try:
        await cache.ping()
        found = [
            await _cost(redis, name, notes, queries, call)
            for name, call in (("write", write), ("lookup", look_up))
        ]
        await redis.unlink(*queries)
        return found
    finally:
        await cache.close()
        await redis.aclose()


def batched(queries: list[str], size: int) -> Iterator[list[str]]:
    for first in range(0, len(queries), size):
        yield queries[first : first + size]


async def _cost(
    redis: Redis, name: str, notes: int, queries: list[str], call: Callable[[str], Awaitable[None]]
) -> Cost:
    before = await _state(redis)
    for batch in batched(queries, AT_ONCE):
        await asyncio.gather(*map(call, batch))
    spent = [(now - then) / len(queries) for now, then in zip(await _state(redis), before, strict=True)]
    return Cost(notes, name, *spent)


def median(costs: list[Cost]) -> Cost:
    """Return the median of each figure of the same call over the rounds."""
    figures = zip(
        *((each.processor_us, each.received, each.sent, each.memory) for each in costs), strict=True
    )
    return Cost(costs[0].notes, costs[0].call, *(statistics.median(values) for values in figures))


async def _measure_all(options: argparse.Namespace) -> list[Cost]:
    found: list[Cost] = []
    for notes in SIZES:
        rounds = [await measure(options.url, notes, options.calls) for _ in range(options.rounds)]
        found += [median(list(same)) for same in zip(*rounds, strict=True)]
    return found


def _row(cost: Cost) -> dict[str, str]:
    return {
        "notes": str(cost.notes),
        "call": cost.call,
        "processor, µs": f"{cost.processor_us:.0f}",
        "bytes received": f"{cost.received:.0f}",
        "bytes sent": f"{cost.sent:.0f}",
        "bytes kept": f"{cost.memory:.0f}",
    }


def main() -> None:
    """Read the command line and measure."""
    options = make_parser(__doc__, "url", rounds=5, calls=2000).parse_args()
    costs = asyncio.run(_measure_all(options))
    print(markdown_table([_row(cost) for cost in costs]))
    options.url = ""  # it may hold a password
    write_raw(options, [asdict(cost) for cost in costs])


if __name__ == "__main__":
    main()
