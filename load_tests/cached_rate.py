"""Notes a second that one core answers from a cache: from the process's own, and from Redis.

    .venv/bin/python -m load_tests.cached_rate

Two services held to the first core, with a Redis: one answers from its local cache, the other, whose local cache holds one pair, asks Redis.
They take turns on the same requests, which both have answered before; Redis and the load generator have the other cores.
"""

import argparse
import asyncio
import os
import random
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from load_tests.bench.drive import Job, closed_loop, make_jobs
from load_tests.bench.peers.notegrade import Notegrade
from load_tests.bench.stage import Entrant, in_turn, stage
from load_tests.bench.workloads import Renderer, Shape, cold
from load_tests.client import new_session, read_metrics
from load_tests.soak.processes import Redis
from load_tests.spread import spread
from service.contract.checkpoint import Checkpoint, load_checkpoint

TIMEOUT_S = 120.0
SOURCES = ("engine", "redis", "local", "coalesced")


def pinned(name: str, checkpoint: Checkpoint, redis_url: str, local_pairs: int) -> Notegrade:
    """A service on the first core; `name` is where its answers come from, given its local cache of so many pairs."""
    settings = {"NOTEGRADE_REDIS_URL": redis_url, "NOTEGRADE_LOCAL_CACHE_PAIRS": str(local_pairs)}
    return Notegrade(
        checkpoint, "best", cached=True, name=name, settings=settings, launcher=("taskset", "-c", "0")
    )


async def measure(options: argparse.Namespace, redis_url: str) -> None:
    """Print a line for each of the two, and their ratio."""
    checkpoint = load_checkpoint(options.checkpoint)
    renderer = Renderer(checkpoint.manifest, checkpoint.tokenizer)
    known = renderer.take(cold(f"{options.seed} cached", Shape(notes=options.notes)), options.requests)
    services = [pinned("local", checkpoint, redis_url, 50_000), pinned("redis", checkpoint, redis_url, 1)]
    jobs = make_jobs(services[0], known)
    rates: dict[str, list[float]] = {each.name: [] for each in services}
    absent: dict[str, str] = {}
    with stage(services, absent) as entrants:
        if absent:
            raise RuntimeError(f"not started: {absent}")
        for entrant in entrants:
            await turn(entrant, jobs, 1)
        for number in range(options.rounds):
            for entrant in in_turn(entrants, number):
                rate = await turn(entrant, jobs * options.repeats, options.clients, checked=True)
                rates[entrant.contestant.name].append(rate)
    print(
        f"{options.rounds} rounds of {len(jobs) * options.repeats} x {options.notes} notes, seed {options.seed}; notes/s on one core, least / median / greatest"
    )
    for name, found in rates.items():
        print(f"{name}: {spread(found)}")
    print(f"local / redis: {spread([a / b for a, b in zip(rates['local'], rates['redis'], strict=True)])}")


async def turn(
    entrant: Entrant[Notegrade], jobs: Sequence[Job], clients: int, *, checked: bool = False
) -> float:
    """Notes a second. Raises RuntimeError when it is checked, and an answer did not come from where it should."""
    with entrant.turn() as running:
        before = await _sources(running.url)
        drive = await closed_loop(running.url, jobs, clients, TIMEOUT_S)
        sources = await _sources(running.url) - before
    notes = sum(job.pairs for job in jobs)
    if checked and sources != {entrant.contestant.name: notes}:
        raise RuntimeError(
            f"answers came from {dict(sources)}, asked for were {notes} from {entrant.contestant.name}"
        )
    return notes / drive.seconds


async def _sources(url: str) -> Counter[str]:
    async with new_session() as session:
        metrics = await read_metrics(session, url)
    names = {source: f'notegrade_pair_source_total{{source="{source}"}}' for source in SOURCES}
    return Counter({source: round(metrics.get(name, 0)) for source, name in names.items()})


def main() -> None:
    """Read the command line, start Redis, and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/default"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=10, help="different ones")
    parser.add_argument("--repeats", type=int, default=50, help="of each in a round")
    parser.add_argument("--notes", type=int, default=50, help="in a request")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randint(0, 10**9))
    parser.add_argument("--redis-server", default=shutil.which("redis-server") or "valkey-server")
    options = parser.parse_args()
    if options.requests <= options.clients:
        parser.error(
            "with as few requests as clients, one follows itself, and finds the one pair of the local cache"
        )
    cores = os.sched_getaffinity(0)
    if len(cores) < 2:
        parser.error("it needs a second core, for Redis and the load generator")
    os.sched_setaffinity(0, cores - {0})
    redis = Redis(options.redis_server)
    redis.start()
    try:
        asyncio.run(measure(options, redis.url))
    finally:
        redis.kill()


if __name__ == "__main__":
    main()
