"""What a shadow costs the requests that are mirrored to it: their latency without one, at the default rate, and with all mirrored.

    .venv/bin/python -m load_tests.shadow_cost

Three services take turns on the same arrivals (Poisson, latency from the intended send time): requests of 20 known pairs at a fixed
rate, and requests of 4 new pairs at half of what the engine does. The shadow is a stand-in that answers at once, in this process: a real
one has a machine of its own. Prints p50 and p99 of each, and their ratio to the service without a shadow within each round.
"""

import argparse
import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from itertools import cycle, islice
from pathlib import Path

from aiohttp import web

from load_tests.bench.drive import Job, closed_loop, make_jobs, open_loop, poisson
from load_tests.bench.peers.notegrade import Notegrade
from load_tests.bench.stage import Entrant, in_turn, stage
from load_tests.bench.workloads import Renderer, Shape, cold
from load_tests.spread import spread
from service.contract.checkpoint import Checkpoint, load_checkpoint

TIMEOUT_S = 60.0
RATES = {"none": None, "default": "", "all": "1"}
KNOWN, NEW = Shape(notes=20), Shape(notes=4)


@asynccontextmanager
async def stand_in() -> AsyncIterator[str]:
    """The URL of something that answers /score as a service does."""

    async def score(request: web.Request) -> web.Response:
        notes = (await request.json())["notes"]
        results = [
            {"id": note["id"], "outcome": "scored", "grade": 2, "score": 0.5, "distribution": [0.1, 0.2, 0.6, 0.1], "source": "engine"}
            for note in notes
        ]  # fmt: skip
        model = {"name": "stand-in", "fingerprint": "sha256:0"}
        return web.json_response({"model": model, "results": results, "timing_ms": {"engine": 1.0}})

    app = web.Application(client_max_size=2**26)
    app.router.add_post("/score", score)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def services(checkpoint: Checkpoint, shadow_url: str) -> list[Notegrade]:
    """One for each of RATES, at the service's defaults."""
    made = []
    for name, rate in RATES.items():
        settings = {} if rate is None else {"NOTEGRADE_SHADOW_URL": shadow_url}
        settings |= {"NOTEGRADE_SHADOW_RATE": rate} if rate else {}
        made.append(Notegrade(checkpoint, "default", cached=True, name=name, settings=settings))
    return made


async def measure(options: argparse.Namespace, shadow_url: str) -> None:
    """Print both kinds of load."""
    checkpoint = load_checkpoint(options.checkpoint)
    renderer = Renderer(checkpoint.manifest, checkpoint.tokenizer)
    absent: dict[str, str] = {}
    contestants = services(checkpoint, shadow_url)
    with stage(contestants, absent) as entrants:
        if absent:
            raise RuntimeError(f"not started: {absent}")
        known = make_jobs(contestants[0], renderer.take(cold(f"{options.seed} known", KNOWN), 50))
        for entrant in entrants:
            with entrant.turn() as running:
                await closed_loop(running.url, known, 4, TIMEOUT_S)
        report(
            f"known pairs, {options.known_rate:g} requests of {KNOWN.notes} a second",
            await all_rounds(
                entrants, options, options.known_rate, lambda count: islice(cycle(known), count)
            ),
        )
        new = cold(f"{options.seed} new", NEW)
        report(
            f"new pairs, {options.new_rate:g} requests of {NEW.notes} a second",
            await all_rounds(
                entrants,
                options,
                options.new_rate,
                lambda count: make_jobs(contestants[0], renderer.take(new, count)),
            ),
        )


# By name of a service: its percentiles in milliseconds.
Round = dict[str, dict[str, float]]


async def all_rounds(
    entrants: Sequence[Entrant[Notegrade]],
    options: argparse.Namespace,
    rate: float,
    make: Callable[[int], Iterable[Job]],
) -> list[Round]:
    """As many as were asked for, each with as many jobs of `make` as arrive in its time."""
    rounds = []
    for number in range(options.rounds):
        moments = poisson(f"{options.seed} {rate} {number}", rate, options.seconds)
        rounds.append(await one_round(entrants, number, list(zip(moments, make(len(moments)), strict=True))))
    return rounds


async def one_round(
    entrants: Sequence[Entrant[Notegrade]], number: int, arrivals: Sequence[tuple[float, Job]]
) -> Round:
    """The same arrivals for each of them. Raises RuntimeError where a request was not answered."""
    found: Round = {}
    for entrant in in_turn(entrants, number):
        with entrant.turn() as running:
            drive = await open_loop(running.url, arrivals, TIMEOUT_S)
        if set(drive.outcomes) != {"answered"}:
            raise RuntimeError(f"{entrant.contestant.name}: {dict(drive.outcomes)}")
        found[entrant.contestant.name] = dict(drive.latencies(TIMEOUT_S).percentiles_ms())
    return found


def report(what: str, rounds: Sequence[Round]) -> None:
    """Least, median and greatest of the rounds."""
    print(what)
    for name in RATES:
        for percentile in ("p50", "p99"):
            values = [each[name][percentile] for each in rounds]
            ratios = [each[name][percentile] / each["none"][percentile] for each in rounds]
            print(f"  mirrored {name:>8}: {percentile} ms {spread(values)}, ratio {spread(ratios)}")


async def run(options: argparse.Namespace) -> None:
    """Measure beside the stand-in."""
    async with stand_in() as url:
        await measure(options, url)


def main() -> None:
    """Read the command line, and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/default"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=30.0, help="of a turn")
    parser.add_argument("--known-rate", type=float, default=50.0, help="requests of known pairs a second")
    parser.add_argument("--new-rate", type=float, default=2.0, help="requests of new pairs a second")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randint(0, 10**9))
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
