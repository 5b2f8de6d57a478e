"""Measures what the trainer gains on a CPU by keeping freed memory (model_export/models/cpu_memory.py).

    .venv/bin/python -m load_tests.kept_memory

In each round, a process for each side reads a batch of random tokens and computes a training step on it, in float32, not
compiled, with the upper half of the layers learning. The optimizer's step is left out. Only the second batch is measured.
"""

import argparse
import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch

from load_tests.arguments import SEED, make_parser
from load_tests.figures import print_sides, spread
from load_tests.packed_batches import packed, step
from load_tests.raw_results import write_raw
from load_tests.rounds import in_turn
from model_export.models.base_model import load_base, locate_base, save_base
from model_export.models.cpu_memory import keep_freed_memory
from model_export.models.model_io import load_model
from model_export.models.packing import PACKED_ATTENTION
from model_export.training.learned_weights import freeze_all_but_linears

SIDES = ("returned", "kept")


class Cost(NamedTuple):
    """Seconds and page faults of one batch, and the peak memory of its process in MiB, which includes the model's weights."""

    reading_s: float
    training_s: float
    page_faults: int
    peak_mib: float


def measure_side(side: str, folder: Path, prompts: int, seed: int) -> Cost:
    """Return the cost of the second batch. Run it in a new process: the side `kept` changes how the process allocates memory."""
    model = load_model(folder)
    model.set_attn_implementation(PACKED_ATTENTION)
    freeze_all_but_linears(model, len(model.model.layers) // 2)
    if side == "kept":
        keep_freed_memory()
    random, vocabulary = Random(seed), model.config.vocab_size
    for _ in range(2):
        rows = [random.choices(range(vocabulary), k=random.randint(60, 200)) for _ in range(prompts)]
        faults, started = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.monotonic()
        with torch.inference_mode():
            packed(model, rows)
        read = time.monotonic()
        step(packed, model, rows)
        trained, used = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
    return Cost(read - started, trained - read, used.ru_minflt - faults, used.ru_maxrss / 1024)


def measure(options: argparse.Namespace, folder: Path) -> None:
    """Print the spread of both sides, and of their ratio within each round. The folder holds the base."""
    found: dict[str, list[Cost]] = {side: [] for side in SIDES}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        for number in range(options.rounds):
            for side in in_turn(SIDES, number):
                job = pool.submit(measure_side, side, folder, options.prompts, options.seed + number)
                found[side].append(job.result())
    figures = {
        name: {side: [getattr(cost, name) for cost in costs] for side, costs in found.items()}
        for name in Cost._fields
    }
    for side, faults in figures["page_faults"].items():  # no ratio, since a side may have none
        print(f"{side}: {spread(faults)} page faults")
    for name in ("reading_s", "training_s", "peak_mib"):
        print_sides(figures[name], name, "returned")
    write_raw(options, figures)


def main() -> None:
    """Read the command line and measure."""
    options = make_parser(__doc__, base="smollm2", rounds=5, prompts=64, seed=SEED).parse_args()
    with TemporaryDirectory() as folder:
        save_base(load_base(locate_base(options.base)), Path(folder))
        measure(options, Path(folder))


if __name__ == "__main__":
    main()
