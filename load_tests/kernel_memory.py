"""Shows how an engine on a CPU grows: oneDNN keeps a compiled kernel for each number of tokens in a step.

    .venv/bin/python -m load_tests.kernel_memory

The smallest program that grows as vLLM's engine core does: one matrix multiplication of vLLM, called for every number of tokens
up to 1,024. It runs with the capacity that the service sets and with oneDNN's default, each in a process of its own.
Source: https://uxlfoundation.github.io/oneDNN/dev_guide_primitive_cache.html
"""

import os
import subprocess
import sys

from load_tests.arguments import make_parser
from load_tests.raw_results import write_raw
from service.contract.vllm_settings import cpu_environment
from service.engines.vllm.profile import fast_cpu_dtype

CAPACITY = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
_GROW = """
import sys
import psutil, torch
from vllm import _custom_ops as ops
from vllm.platforms import current_platform
current_platform.import_kernels()
size, dtype = int(sys.argv[1]), getattr(torch, sys.argv[2])
weight = torch.ones(size, size, dtype=dtype)
handler = ops.create_onednn_mm(weight.t(), 32)  # vLLM itself keeps the kernels of 32 numbers
def step(tokens):
    ops.onednn_mm(handler, torch.ones(tokens, size, dtype=dtype), None)
step(1024)  # allocates the largest matrices
before = psutil.Process().memory_info().rss
for tokens in range(1, 1025):
    step(tokens)
print((psutil.Process().memory_info().rss - before) / 2**20)
"""


def measure_growth(capacity: str, size: int) -> float:
    """Return by how many MiB a process grows whose square weight has `size` rows, in the format that the service chooses here."""
    environment = {**os.environ, **cpu_environment(1), CAPACITY: capacity}
    command = [sys.executable, "-c", _GROW, str(size), fast_cpu_dtype()]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return float(done.stdout.split()[-1])


def main() -> None:
    """Read the command line and measure."""
    options = make_parser(__doc__, size=576).parse_args()
    served, default = (measure_growth(each, options.size) for each in (cpu_environment(1)[CAPACITY], "1024"))
    print(
        f"as served {served:.0f} MiB, with oneDNN's default {default:.0f} MiB: {default / served:.1f} times as much"
    )
    write_raw(options, {"growth_mib": {"served": served, "default": default}})


if __name__ == "__main__":
    main()
