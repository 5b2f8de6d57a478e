"""Measures how fast an idle service encodes notes as vectors, and how the share of notes with vectors grows from an empty store.

    .venv/bin/python -m load_tests.encoding_rate --checkpoint checkpoints/untrained

First, `--notes` new notes in each round for services that encode in half of the time (the default) and in all of it; they take
turns. Then Zipf traffic for `--seconds` at `--pairs-per-s`, which leaves the service idle in between, on a service of its own: the
share of the notes in each tenth of that time that had vectors.
"""

import argparse
import asyncio
import itertools
import json
import random
import time
from collections.abc import Iterable, Mapping
from typing import Any

from load_tests.arguments import CHECKPOINT, SEED, make_parser
from load_tests.bench.drive import Job, open_loop, poisson
from load_tests.bench.peers.notegrade import Notegrade
from load_tests.bench.stage import Entrant, stage_all
from load_tests.bench.workloads import Repetition, Shape, new_notes, zipf
from load_tests.client import new_session, read_metrics
from load_tests.figures import print_sides
from load_tests.raw_results import write_raw
from load_tests.rounds import in_turn
from service.cli.encode import NoteSender
from service.cli.remote import Remote
from service.contract.checkpoint import Checkpoint, load_checkpoint
from service.scoring.types import ScoringNote

SHARES = {"half of the time": "0.5", "all of the time": "1"}
NOTE_TOKENS = 90
STORE = 100_000
TENTHS = 10
TIMEOUT_S = 60.0
POLL_S = 0.1  # the command's own poll, once a second, would round the time up
LOOKUPS = 'notegrade_vector_lookups_total{result="%s"}'


def service(checkpoint: Checkpoint, name: str, share: str) -> Notegrade:
    """Make a service that reads vectors where it has them, and encodes for that share of the time."""
    settings = {"NOTEGRADE_READING": "auto", "NOTEGRADE_ENCODING_SHARE": share}
    return Notegrade(checkpoint, "default", cached=False, name=name, settings=settings)


def encoding_rates(checkpoint: Checkpoint, options: argparse.Namespace) -> dict[str, list[float]]:
    """Return notes encoded a second for each share, one figure a round."""
    notes = new_notes(random.Random(options.seed), NOTE_TOKENS)
    rates: dict[str, list[float]] = {name: [] for name in SHARES}
    with stage_all([service(checkpoint, *each) for each in SHARES.items()]) as entrants:
        for entrant in entrants:  # the encoders load, and nobody measures
            turn(entrant, itertools.islice(notes, 1))
        for number in range(options.rounds):
            for entrant in in_turn(entrants, number):
                seconds = turn(entrant, itertools.islice(notes, options.notes))
                rates[entrant.contestant.name].append(options.notes / seconds)
    return rates


def turn(entrant: Entrant, notes: Iterable[dict[str, Any]]) -> float:
    """Return the seconds in which the service encodes the notes."""
    new = [ScoringNote(**note) for note in notes]
    with entrant.turn() as running:
        started = time.perf_counter()
        NoteSender(Remote(running.url), sleep=lambda _: time.sleep(POLL_S)).encode(new)
        return time.perf_counter() - started


async def coverage(checkpoint: Checkpoint, options: argparse.Namespace) -> list[float]:
    """Return the share of notes that had vectors in each tenth of the time, from an empty store."""
    traffic = zipf(str(options.seed), Shape(notes=4), Repetition())
    shares: list[float] = []
    with service(checkpoint, "coverage", "1").running() as running:
        for _ in range(TENTHS):
            before = await _lookups(running.url)
            moments = poisson(
                f"{options.seed} {len(shares)}", options.pairs_per_s / 4, options.seconds / TENTHS
            )
            jobs = (Job("/score", json.dumps(asked.body(10_000)).encode(), 4) for asked in traffic)
            await open_loop(running.url, list(zip(moments, jobs, strict=False)), TIMEOUT_S)
            found = await _lookups(running.url)
            hits, misses = (found[name] - before[name] for name in ("hit", "miss"))
            shares.append(hits / (hits + misses))
    return shares


async def _lookups(url: str) -> Mapping[str, float]:
    async with new_session() as session:
        metrics = await read_metrics(session, url)
    return {name: metrics.get(LOOKUPS % name, 0.0) for name in ("hit", "miss")}


def main() -> None:
    """Read the command line and measure."""
    options = make_parser(
        __doc__, checkpoint=CHECKPOINT, rounds=3, notes=60, seconds=600.0, pairs_per_s=4.0, seed=SEED
    ).parse_args()
    checkpoint = load_checkpoint(options.checkpoint)
    rates = encoding_rates(checkpoint, options)
    print(f"{options.rounds} rounds of {options.notes} notes of {NOTE_TOKENS} tokens; min / median / max")
    print_sides(rates, "notes/s", base="half of the time")
    for name, values in rates.items():
        hours = sorted(STORE / rate / 3600 for rate in values)
        print(f"{STORE:,} notes, {name}: {hours[0]:.1f} to {hours[-1]:.1f} hours")
    shares = asyncio.run(coverage(checkpoint, options))
    print(
        f"notes with vectors in each tenth of {options.seconds:.0f} s at {options.pairs_per_s:g} pairs/s, from an empty store: "
        f"{', '.join(f'{share:.0%}' for share in shares)}"
    )
    write_raw(options, {"notes_per_s": rates, "coverage": shares})


if __name__ == "__main__":
    main()
