"""Finds the number format that Notegrade's engine would choose on this machine; tuned peers use it as well.

.venv/bin/python -m load_tests.bench.peers.faster_dtype checkpoints/default
"""

import subprocess
import sys
from functools import cache
from pathlib import Path

from service.engines.vllm.profile import choose_cpu_dtype


@cache
def ask_faster_dtype(folder: Path) -> str:
    """Return `float32` or `bfloat16`, found once in a separate process, since the load generator should not import torch."""
    command = [sys.executable, "-m", "load_tests.bench.peers.faster_dtype", str(folder.absolute())]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    print(choose_cpu_dtype(Path(sys.argv[1]), "auto"))
