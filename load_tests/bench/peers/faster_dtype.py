"""The number format that Notegrade's engine would choose here: what the peers at their best get as well.

.venv/bin/python -m load_tests.bench.peers.faster_dtype checkpoints/default
"""

import subprocess
import sys
from functools import cache
from pathlib import Path

from service.engines.vllm.profile import choose_cpu_dtype


@cache
def ask_faster_dtype(folder: Path) -> str:
    """`float32` or `bfloat16`, measured once, in a process of its own: the load generator should not import torch."""
    command = [sys.executable, "-m", "load_tests.bench.peers.faster_dtype", str(folder.absolute())]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    print(choose_cpu_dtype(Path(sys.argv[1]), "auto"))
