"""Measures how many pairs a second the engine reads, by the number of vectors in place of the note, and from the note's text.

    .venv/bin/python -m load_tests.untrained_encoder --out checkpoints/untrained
    .venv/bin/python -m load_tests.vector_counts --checkpoint checkpoints/untrained

The service's engine, without HTTP and the service's caches. Each turn sends new queries and notes, all at once. The vectors are
random: their values change no speed.
"""

import argparse
import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from load_tests.arguments import SEED, make_parser
from load_tests.bench.peer import Request
from load_tests.bench.workloads import Shape, cold, take
from load_tests.figures import print_sides
from load_tests.raw_results import write_raw
from load_tests.rounds import in_turn
from service.contract.checkpoint import Checkpoint, SecondReading, load_checkpoint
from service.contract.text import canonicalize
from service.contract.vector_prompt import VectorPrompt
from service.engines.base import Engine, EngineModel, EnginePrompt
from service.engines.vllm.engine import VllmEngine
from service.engines.vllm.options import VllmOptions

TEXT = "text"


async def measure(
    options: argparse.Namespace, engine: Engine, checkpoint: Checkpoint, second: SecondReading
) -> None:
    """Print the pairs a second of the text and of each count, and the ratio to the text in the same round."""
    rates: dict[str, list[float]] = {}
    traffic = cold(f"{options.seed} vector counts", Shape(notes=options.notes))
    rng = np.random.default_rng(options.seed)

    def vectors_of(asked: Request, count: int) -> Sequence[EnginePrompt]:
        criteria = checkpoint.renderer.default_criteria
        prefix = second.renderer.prefix(canonicalize(asked.query), criteria)
        rows = rng.standard_normal((len(asked.prompts), count, second.reading.width)).astype("<f2")
        return [VectorPrompt(prefix, own.tobytes(), second.renderer.cue) for own in rows]

    for number in range(-1, options.rounds):  # round -1 is the warm-up
        for count in in_turn((0, *options.counts), number):
            asked = take(checkpoint.renderer, traffic, options.requests)
            prompts = [
                prompt for each in asked for prompt in (vectors_of(each, count) if count else each.prompts)
            ]
            started = time.monotonic()
            await asyncio.gather(*(engine.score(prompt, 0) for prompt in prompts))
            if number >= 0:
                rate = len(prompts) / (time.monotonic() - started)
                rates.setdefault(f"{count} vectors" if count else TEXT, []).append(rate)
    print_sides(rates, "pairs/s", TEXT)
    write_raw(options, {"pairs_per_s": rates})


async def run(options: argparse.Namespace) -> None:
    """Start the engine, measure and stop it."""
    checkpoint = load_checkpoint(options.checkpoint)
    if checkpoint.vectors is None:
        raise SystemExit(f"{options.checkpoint} has no encoder: load_tests.untrained_encoder makes one")
    longest = checkpoint.vectors.max_prompt_tokens - checkpoint.vectors.reading.per_note + max(options.counts)
    engine = VllmEngine(
        EngineModel(
            checkpoint.folder,
            checkpoint.manifest.label_token_ids,
            max(checkpoint.renderer.max_prompt_tokens, longest),
            vector_width=checkpoint.vectors.reading.width,
        ),
        VllmOptions(),
    )
    await engine.start()
    try:
        await measure(options, engine, checkpoint, checkpoint.vectors)
    finally:
        await engine.close()


def main() -> None:
    """Read the command line and measure."""
    parser = make_parser(
        __doc__, checkpoint=Path("checkpoints/untrained"), rounds=5, requests=4, notes=20, seed=SEED
    )
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="numbers of vectors")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
