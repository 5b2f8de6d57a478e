"""Compares Notegrade with other servers over HTTP, on the same pairs and the same prompts.

    .venv/bin/python -m load_tests.bench                          # all parts, takes hours
    .venv/bin/python -m load_tests.bench --quick --parts cold     # a quick check that it works
    .venv/bin/python -m load_tests.bench --parts cold,zipf --peers classify,transformers

Servers take turns, round by round, while the others are suspended; don't run anything else meanwhile. Results go to
runs/bench: bench.json, report.md and plots. Parts:

    cold      no query or note repeats; all servers tuned
    defaults  the same, all servers out of the box
    student   Notegrade with --checkpoint, the best peer with --base (the undistilled model), on the same pairs
    vectors   the traffic of cold: Notegrade by note vectors that it made before, by text, and the best peer
    unknown   Notegrade that looks for vectors which are not there, and Notegrade by text
    zipf      queries and notes repeat by Zipf's law; Notegrade uses its pair cache (and vectors, with an encoder), the best
              peer its prefix cache
    replay    your own traffic, from --replay: {"query", "notes": [{"id", "title", "body"}]} on each line
    offline   Notegrade against the engine alone, which gets all prompts of a turn in one request
    p99       saturation of Notegrade and the best peer, and latencies of both at up to 80 % of the peer's
    sweeps    varies the notes per request, and the length of notes
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from load_tests.arguments import CHECKPOINT, SEED, make_parser
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
    """Parse the command line."""
    parser = make_parser(__doc__, checkpoint=CHECKPOINT, seed=SEED, out=Path("runs/bench"))
    parser.add_argument("--parts", type=_parts, default=PARTS, help="names from above, comma-separated")
    parser.add_argument(
        "--quick", action="store_true", help="a little of everything, too little to be meaningful"
    )
    parser.add_argument("--rounds", type=int, help="turns of each contestant in a part (5; 2 with --quick)")
    parser.add_argument("--notes", type=int, help="notes in a request (20; 8 with --quick)")
    parser.add_argument("--peers", type=_words, default=[], help="words in the names of the peers to run")
    parser.add_argument("--base", type=Path, help="the best peer's checkpoint in the part student")
    parser.add_argument("--replay", type=Path, help="the traffic of the part replay")
    return parser.parse_args(arguments)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _parts(text: str) -> tuple[Part, ...]:
    words = _words(text)
    unknown = [word for word in words if word not in PARTS]
    if unknown or not words:
        raise argparse.ArgumentTypeError(f"unknown parts: {', '.join(unknown) or 'none given'}")
    # In a fixed order, since later parts use results of earlier ones.
    return tuple(part for part in PARTS if part in words)


def plan_of(options: argparse.Namespace) -> Plan:
    """Make the plan from the options."""
    plan = quick(options.seed) if options.quick else Plan(options.seed)
    shape = replace(plan.shape, notes=options.notes or plan.shape.notes)
    return replace(plan, rounds=options.rounds or plan.rounds, shape=shape)


async def bench(options: argparse.Namespace) -> None:
    """Run the parts, and write the results after each, so that an interrupted run keeps them."""
    checkpoint = load_checkpoint(options.checkpoint)
    subject = Subject(checkpoint.manifest, count_multiplied_parameters(options.checkpoint))
    machine = read_machine(options.checkpoint)
    records = Records(skipped={part: f"{part}: not selected" for part in PARTS if part not in options.parts})
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
