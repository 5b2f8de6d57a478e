"""Measures seconds from the start of `notegrade serve` until it is ready, with a compiled model and without.

    .venv/bin/python -m load_tests.start_time

Not measured: a cold disk. A first start that nobody measures reads the files into memory, and lets vLLM compile what it keeps.
"""

from load_tests.arguments import CHECKPOINT, make_parser
from load_tests.bench.peers.notegrade import Notegrade
from load_tests.figures import print_sides
from load_tests.raw_results import write_raw
from load_tests.rounds import in_turn
from service.contract.checkpoint import Checkpoint, load_checkpoint
from service.contract.vllm_settings import has_compiler

SIDES = {"as it is": "off", "compiled": "on"}


def ready_after(checkpoint: Checkpoint, compiled: str) -> float:
    """Start the service and end it; return the seconds until it was ready."""
    settings = {"NOTEGRADE_ENGINE_COMPILE": compiled}
    with Notegrade(checkpoint, "default", cached=True, settings=settings).running() as running:
        return running.ready_s


def main() -> None:
    """Read the command line and measure."""
    parser = make_parser(__doc__, checkpoint=CHECKPOINT, rounds=3)
    options = parser.parse_args()
    if not has_compiler():
        parser.error("a compiled model needs g++")
    checkpoint = load_checkpoint(options.checkpoint)
    found: dict[str, list[float]] = {side: [] for side in SIDES}
    for compiled in SIDES.values():
        ready_after(checkpoint, compiled)
    for number in range(options.rounds):
        for side, compiled in in_turn(SIDES.items(), number):
            found[side].append(ready_after(checkpoint, compiled))
    print(f"{options.rounds} rounds; seconds until ready, min / median / max")
    print_sides(found, "s", base="as it is")
    write_raw(options, {"ready_s": found})


if __name__ == "__main__":
    main()
