"""Measures the effect of engine settings on speed and memory: vLLM as the service configures it, and with one setting changed.

    .venv/bin/python -m load_tests.engine_knobs --rounds 10 --knobs compiled,blocks-64
    .venv/bin/python -m load_tests.engine_knobs --rounds 10 --beside checkpoints/int8     # other weights, same prompts

All engines run at once; those not being measured are suspended. Each round sends the same new pairs to all of them. An engine of
a 135M model takes about 3.3 GiB.
"""

import argparse
import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from sys import prefix

import numpy as np

from load_tests.arguments import CHECKPOINT, SEED, make_parser
from load_tests.bench.drive import closed_loop, make_jobs, read_grades
from load_tests.bench.measure import ProcessTree
from load_tests.bench.peer import Request
from load_tests.bench.peers.prompts import COMPILED, EngineAlone, Knobs, merge
from load_tests.bench.stage import Entrant, stage
from load_tests.bench.workloads import Shape, cold, take
from load_tests.figures import spread
from load_tests.raw_results import write_raw
from load_tests.rounds import in_turn
from service.contract.checkpoint import load_checkpoint

AS_SERVED = "as served"
TIMEOUT_S = 600.0
KNOBS: Mapping[str, Knobs] = {
    "compiled": COMPILED,
    "blocks-64": Knobs({"block_size": 64}),
    "step-2048": Knobs({"max_num_batched_tokens": 2048}),
    "step-4096": Knobs({"max_num_batched_tokens": 4096}),
    "seats-16": Knobs({"max_num_seqs": 16}),
    "seats-256": Knobs({"max_num_seqs": 256}),
    "no-prefix-cache": Knobs({"enable_prefix_caching": False}),
    "no-chunked-prefill": Knobs({"enable_chunked_prefill": False}),
    "no-async-scheduling": Knobs({"async_scheduling": False}),
    "executor-mp": Knobs({"distributed_executor_backend": "mp"}),
    "threads-bound": Knobs({}, {"VLLM_CPU_OMP_THREADS_BIND": "auto"}),
    "one-thread": Knobs({}, {"OMP_NUM_THREADS": "1"}),
    # glibc's defaults: an empty value counts as unset.
    "memory-returned": Knobs({}, {"MALLOC_MMAP_THRESHOLD_": "", "MALLOC_TRIM_THRESHOLD_": ""}),
    "arenas-2": Knobs({}, {"MALLOC_ARENA_MAX": "2"}),
    # oneDNN's default.
    "kernels-1024": Knobs({}, {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1024"}),
    # Debian's libjemalloc2.
    "jemalloc": Knobs({}, {"LD_PRELOAD": "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2"}),
    # Recommended by vLLM's documentation on a CPU; tcmalloc is in Debian's libtcmalloc-minimal4.
    "intel-openmp": Knobs({}, {"LD_PRELOAD": f"{prefix}/lib/libiomp5.so"}),
    "tcmalloc": Knobs({}, {"LD_PRELOAD": "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4"}),
    "float32": Knobs({"dtype": "float32"}),
    "bfloat16": Knobs({"dtype": "bfloat16"}),
}


@dataclass(frozen=True, slots=True)
class Scored:
    """The engine's time for all prompts of a round, and their expected grades."""

    seconds: float
    grades: list[float]


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and measure."""
    asyncio.run(measure(_parse(arguments)))


async def measure(options: argparse.Namespace) -> None:
    """Print each engine's pairs per second, their ratio to those as served, the largest difference of grades, and its memory at the end."""
    checkpoint = load_checkpoint(options.checkpoint)
    engines = [EngineAlone(checkpoint, AS_SERVED)]
    engines += [EngineAlone(checkpoint, name, knobs=KNOBS[name]) for name in options.knobs]
    engines += [EngineAlone(load_checkpoint(folder), folder.name) for folder in options.beside]
    traffic = cold(f"{options.seed} knobs", Shape(notes=options.notes))
    absent: dict[str, str] = {}
    found: dict[str, list[Scored]] = {}
    with stage(engines, absent) as entrants:
        for number in range(-1, options.rounds):  # round -1 is the warm-up
            request = merge(take(checkpoint.renderer, traffic, options.requests))
            for entrant in in_turn(entrants, number):
                scored = await _turn(entrant, request)
                if number >= 0:
                    found.setdefault(entrant.contestant.name, []).append(scored)
        ready = {entrant.contestant.name: entrant.running.ready_s for entrant in entrants}
        memory = {each.contestant.name: ProcessTree(each.running.pid).rss_mib() for each in entrants}
    print(f"{options.rounds} rounds of {options.requests} x {options.notes} pairs, seed {options.seed}")
    for name, rounds in found.items():
        print(
            f"{_line(name, rounds, found[AS_SERVED])}, up after {ready[name]:.0f} s, {memory[name]:.0f} MiB resident"
        )
    for label, reason in absent.items():
        print(f"{label} did not start: {reason}")
    write_raw(options, {name: [asdict(each) for each in rounds] for name, rounds in found.items()})


async def _turn(entrant: Entrant, request: Request) -> Scored:
    """Score all prompts at once. Raises RuntimeError when the engine does not answer."""
    [job] = make_jobs(entrant.contestant, [request])
    with entrant.turn() as running:
        drive = await closed_loop(running.url, [job], 1, TIMEOUT_S)
    if drive.sent[0].outcome != "answered":
        raise RuntimeError(f"{entrant.label}: {drive.sent[0].outcome}")
    return Scored(drive.seconds, read_grades(entrant.contestant, drive.sent[0], job))


def _line(name: str, rounds: Sequence[Scored], as_served: Sequence[Scored]) -> str:
    pairs = list(zip(rounds, as_served, strict=True))
    rates = spread([len(each.grades) / each.seconds for each in rounds])
    ratios = spread([base.seconds / each.seconds for each, base in pairs])
    difference = np.abs([np.subtract(each.grades, base.grades) for each, base in pairs]).max()
    return f"{name:20} {rates} pairs/s, {ratios} times as served, grades differ by up to {difference:.3f}"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__, checkpoint=CHECKPOINT, rounds=10, requests=4, notes=20, seed=SEED)
    parser.add_argument("--knobs", type=lambda text: text.split(","), default=[], help=", ".join(KNOBS))
    parser.add_argument(
        "--beside", type=Path, nargs="+", default=[], help="checkpoints with the same tokenizer"
    )
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.knobs if name not in KNOBS]:
        parser.error(f"unknown knobs: {', '.join(unknown)}; the knobs are {', '.join(KNOBS)}")
    if not options.knobs and not options.beside:
        parser.error("nothing to compare: give --knobs or --beside")
    return options


if __name__ == "__main__":
    main()
