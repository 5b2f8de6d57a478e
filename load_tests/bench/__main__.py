"""Notegrade beside what else could be served, over HTTP, on the same pairs and the same prompts.

    .venv/bin/python -m load_tests.bench                          # every part: hours
    .venv/bin/python -m load_tests.bench --quick --parts cold     # to see that it works
    .venv/bin/python -m load_tests.bench --parts cold,zipf --peers classify,transformers

Servers take turns, round by round, while the others stand still, so let nothing else run. Results go to load_tests/results:
bench.json, report.md and plots. Parts:

    cold      no query and no note comes twice; everybody at their best
    defaults  the same, everybody as they come
    student   Notegrade with --checkpoint, the best peer with --base (the undistilled model), on the same pairs
    zipf      queries and notes repeat by Zipf's law; Notegrade may use its cache, and the best peer has its own
    replay    your own traffic, from --replay: {"query", "notes": [{"id", "title", "body"}]} on each line
    offline   Notegrade over HTTP beside the engine alone
    p99       saturation of Notegrade and the best peer, and latencies of both at up to 80 % of the peer's
    sweeps    notes in a request, and length of notes
"""

import argparse
import asyncio
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from load_tests.bench.machine import read_machine
from load_tests.bench.measure import count_multiplied_parameters
from load_tests.bench.parts import run_part
from load_tests.bench.plan import Plan, quick
from load_tests.bench.records import Part, Records
from load_tests.bench.report import Subject, to_json, write
from load_tests.bench.run import Run
from load_tests.bench.tables import to_markdown
from service.contract.checkpoint import load_checkpoint

PARTS: tuple[Part, ...] = get_args(Part)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m load_tests.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", type=_parts, default=PARTS, help="names from above, with commas between")
    parser.add_argument("--quick", action="store_true", help="little of everything: figures that say nothing")
    parser.add_argument("--rounds", type=int, help="turns of each contestant in a part (5; 2 when quick)")
    parser.add_argument("--peers", type=_words, default=[], help="words in the names of those that take part")
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/default"))
    parser.add_argument("--base", type=Path, help="what the best peer serves in the part student")
    parser.add_argument("--replay", type=Path, help="the traffic of the part replay")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randint(0, 10**9))
    parser.add_argument("--out", type=Path, default=Path("load_tests/results"))
    return parser.parse_args(arguments)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _parts(text: str) -> tuple[Part, ...]:
    words = _words(text)
    unknown = [word for word in words if word not in PARTS]
    if unknown or not words:
        raise argparse.ArgumentTypeError(f"no such part: {', '.join(unknown) or 'nothing'}")
    # In their own order: later ones use what earlier ones find.
    return tuple(part for part in PARTS if part in words)


def plan_of(options: argparse.Namespace) -> Plan:
    """What the options ask for."""
    plan = quick(options.seed) if options.quick else Plan(options.seed)
    return replace(plan, rounds=options.rounds) if options.rounds else plan


async def bench(options: argparse.Namespace) -> None:
    """Run the parts, and write after each of them, so that an interrupted run leaves what it has."""
    checkpoint = load_checkpoint(options.checkpoint)
    subject = Subject(checkpoint.manifest, count_multiplied_parameters(options.checkpoint))
    machine = read_machine(options.checkpoint)
    records = Records(skipped={part: f"{part}: not asked for" for part in PARTS if part not in options.parts})
    run = Run(plan_of(options), checkpoint, options.peers, options.base, options.replay, records)
    for part in options.parts:
        await run_part(run, part)
        document = to_json(machine, run.plan, subject, records)
        written = write(document, options.out)
    print(to_markdown(document))
    print("written:", ", ".join(map(str, written)), file=sys.stderr)


def main() -> None:
    """Read the command line and run."""
    asyncio.run(bench(parse()))


if __name__ == "__main__":
    main()
