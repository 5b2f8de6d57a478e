"""Measures the machine's peak for matrix products of the model's shapes, an upper bound for any server on it.

    .venv/bin/python -m load_tests.bench.gemm checkpoints/default

Prints GFLOPS as JSON (for int8, billions of integer operations per second). It is a separate process to keep torch and its
threads out of the load generator.
"""

import json
from pathlib import Path

import torch
from torch.utils.benchmark import Timer

from load_tests.arguments import make_parser

# The number of tokens in one engine step (NOTEGRADE_ENGINE_MAX_BATCHED_TOKENS).
ROWS = 1024
SECONDS = 0.5
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def peaks(rows: int, inner: int, columns: int) -> dict[str, float]:
    """Measure one shape in each number format: the median of at least half a second."""
    a, b = torch.randn(rows, inner, device=DEVICE), torch.randn(inner, columns, device=DEVICE)
    a8, b8 = (matrix.mul(40).clamp(-127, 127).to(torch.int8) for matrix in (a, b))
    factors = {"float32": (a, b), "bfloat16": (a.bfloat16(), b.bfloat16()), "int8": (a8, b8)}
    found = {}
    for name, (left, right) in factors.items():
        multiply = torch._int_mm if name == "int8" else torch.mm
        timer = Timer("multiply(left, right)", globals={"multiply": multiply, "left": left, "right": right},
                      num_threads=torch.get_num_threads())  # fmt: skip
        found[name] = 2e-9 * rows * inner * columns / timer.blocked_autorange(min_run_time=SECONDS).median
    return found


def main() -> None:
    """Read the command line and print."""
    parser = make_parser(__doc__)
    parser.add_argument("checkpoint", type=Path)
    config = json.loads((parser.parse_args().checkpoint / "config.json").read_text(encoding="utf-8"))
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]
    up, down = peaks(ROWS, hidden, intermediate), peaks(ROWS, intermediate, hidden)
    # The faster of the MLP's two shapes, where most of the work is.
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
    print(json.dumps({"device": device, "gflops": {name: max(up[name], down[name]) for name in up}}))


if __name__ == "__main__":
    main()
