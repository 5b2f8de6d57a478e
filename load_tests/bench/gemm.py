"""How fast this machine multiplies matrices of the model's shapes: what any server on it can reach at most.

    .venv/bin/python -m load_tests.bench.gemm checkpoints/default

Prints JSON, in GFLOPS (int8: billions of integer operations). A process of its own, so that torch and its threads are not in
the load generator's.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

# As many tokens as the service puts into one step (NOTEGRADE_ENGINE_MAX_BATCHED_TOKENS).
ROWS = 1024
REPEATS = 5
_LEAST_S = 0.05
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def median_rate(multiply: Callable[[], object], operations: float) -> float:
    """Billions of operations a second, median of five measurements that each last at least 50 ms."""

    def seconds(times: int) -> float:
        _finish()
        started = time.perf_counter()
        for _ in range(times):
            multiply()
        _finish()
        return time.perf_counter() - started

    times = 1
    while (took := seconds(times)) < _LEAST_S:  # warms up as well
        times = max(times * 2, int(times * _LEAST_S / max(took, 1e-6)))
    return statistics.median(operations * times / seconds(times) / 1e9 for _ in range(REPEATS))


def _finish() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def peaks(rows: int, inner: int, columns: int) -> dict[str, float]:
    """By number format, for one shape."""
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    config = json.loads((parser.parse_args().checkpoint / "config.json").read_text(encoding="utf-8"))
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]
    up, down = peaks(ROWS, hidden, intermediate), peaks(ROWS, intermediate, hidden)
    # The better of the MLP's two shapes: most of the work is there.
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
    print(json.dumps({"device": device, "gflops": {name: max(up[name], down[name]) for name in up}}))


if __name__ == "__main__":
    main()
