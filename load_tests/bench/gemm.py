"""Measures the machine's peak for matrix products of the model's shapes, an upper bound for any server on it.

    .venv/bin/python -m load_tests.bench.gemm checkpoints/default

Prints GFLOPS as JSON (for int8, billions of integer operations per second). It is a separate process to keep torch and its
threads out of the load generator.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from load_tests.arguments import make_parser

# The number of tokens in one engine step (NOTEGRADE_ENGINE_MAX_BATCHED_TOKENS).
ROWS = 1024
REPEATS = 5
_MIN_S = 0.05
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def median_rate(multiply: Callable[[], object], operations: float) -> float:
    """Return billions of operations per second, the median of five measurements of at least 50 ms."""

    def seconds(times: int) -> float:
        _finish()
        started = time.perf_counter()
        for _ in range(times):
            multiply()
        _finish()
        return time.perf_counter() - started

    times = 1
    while (duration := seconds(times)) < _MIN_S:  # also warms up
        times = max(times * 2, int(times * _MIN_S / max(duration, 1e-6)))
    return statistics.median(operations * times / seconds(times) / 1e9 for _ in range(REPEATS))


def _finish() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def peaks(rows: int, inner: int, columns: int) -> dict[str, float]:
    """Measure one shape in each number format."""
    operations = 2.0 * rows * inner * columns
    a, b = torch.randn(rows, inner, device=DEVICE), torch.randn(inner, columns, device=DEVICE)
    a16, b16 = a.bfloat16(), b.bfloat16()
    a8, b8 = (matrix.mul(40).clamp(-127, 127).to(torch.int8) for matrix in (a, b))
    return {
        "float32": median_rate(lambda: torch.mm(a, b), operations),
        "bfloat16": median_rate(lambda: torch.mm(a16, b16), operations),
        "int8": median_rate(lambda: torch._int_mm(a8, b8), operations),
    }


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
