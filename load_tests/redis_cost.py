"""Measures what the pair cache and the vector store cost a Redis: processor time, network and memory for lookups and writes.

    .venv/bin/python -m load_tests.redis_cost redis://localhost:6379/0

Calls are those of the service, 16 at a time, with readings of four grades, or four vectors a note. Each round writes new queries
or notes and looks them up. Use a Redis without other traffic; the written keys are deleted at the end. `load_tests.capacity` plans
with these figures.
"""

import argparse
import asyncio
import os
import statistics
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
from redis.asyncio import Redis

from load_tests.arguments import make_parser
from load_tests.figures import markdown_table
from load_tests.raw_results import write_raw
from service.caches.keys import note_key, pack_reading, query_key
from service.caches.redis_cache import RedisCache
from service.caches.redis_connection import RedisConnection
from service.contract.labels import LabelDistribution, Reading
from service.contract.prompt import Note
from service.contract.vector_prompt import NoteVectors
from service.errors import CacheUnavailableError
from service.vectors.packing import pack_vectors, vectors_key
from service.vectors.redis_store import PREFIX, RedisVectorStore

Target = TypeVar("Target")
SIZES = (1, 20, 100)
AT_ONCE = 16
VECTORS, WIDTH = 4, 576  # of a note, as the default student's encoder would make them
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
    """Write that many queries with as many notes, and look each up once; then a tenth as often the vectors of as many notes."""
    redis = Redis.from_url(url)
    try:
        return [
            *await _pairs(redis, url, notes, calls),
            *await _vectors(redis, url, notes, max(1, calls // 10)),
        ]
    finally:
        await redis.aclose()


async def _pairs(redis: Redis, url: str, notes: int, calls: int) -> list[Cost]:
    cache, run = RedisCache(url, ttl_s=600, timeout_s=10), os.urandom(8).hex()
    queries = [query_key(f"{run} {number}", "f" * 32) for number in range(calls)]
    keys = [note_key("", str(number)) for number in range(notes)]

    async def write(query: str) -> None:
        await cache.put_many(query, {key: pack_reading(READING, query, key) for key in keys})

    async def look_up(query: str) -> None:
        _check((await cache.get_many(query, keys)).values)

    try:
        await cache.ping()
        costs = [
            await _cost(redis, "write", notes, queries, write),
            await _cost(redis, "lookup", notes, queries, look_up),
        ]
        await redis.unlink(*queries)
        return costs
    finally:
        await cache.close()


async def _vectors(redis: Redis, url: str, notes: int, calls: int) -> list[Cost]:
    store = RedisVectorStore(RedisConnection(url, 10, AT_ONCE, CacheUnavailableError), ttl_s=600)
    run, rows = os.urandom(8).hex(), np.ones((VECTORS, WIDTH), np.float16).tobytes()
    chunks = [
        [vectors_key(Note(str(call), str(note)), run) for note in range(notes)] for call in range(calls)
    ]

    async def write(keys: list[bytes]) -> None:
        await store.put_many({key: pack_vectors(NoteVectors(rows), WIDTH, key) for key in keys})

    async def look_up(keys: list[bytes]) -> None:
        _check(await store.get_many(keys))

    try:
        await store.ping()
        costs = [
            await _cost(redis, "write vectors", notes, chunks, write),
            await _cost(redis, "lookup of vectors", notes, chunks, look_up),
        ]
        for keys in chunks:
            await redis.unlink(*(PREFIX + key for key in keys))
        return costs
    finally:
        await store.close()


def _check(values: Sequence[bytes | None]) -> None:
    if None in values:
        raise RuntimeError("Redis lost an entry: it is full, or something else deletes keys")


async def _cost(
    redis: Redis, name: str, notes: int, targets: Sequence[Target], call: Callable[[Target], Awaitable[None]]
) -> Cost:
    before = await _state(redis)
    for first in range(0, len(targets), AT_ONCE):
        await asyncio.gather(*map(call, targets[first : first + AT_ONCE]))
    spent = [(now - then) / len(targets) for now, then in zip(await _state(redis), before, strict=True)]
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
