"""Records the machine and its peak performance."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from load_tests.raw_results import read_processor


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine of a run.

    Attributes:
        cores: cores that this process may use.
        load_before: load average of the minute before; more than a few tenths means that something else was running.
        gemm_gflops: peak of matrix products by number format; empty if not measured.
        gemm_device: the device on which the peak was measured.
    """

    processor: str
    cores: int
    memory_gib: float
    system: str
    load_before: float
    gemm_gflops: Mapping[str, float] = field(default_factory=dict)
    gemm_device: str | None = None

    def peak(self, quantization: str | None) -> tuple[str, float] | None:
        """Return the number format and peak to compare a checkpoint with: int8 for int8 weights, else the faster float."""
        if not self.gemm_gflops:
            return None
        floats = ("float32", "bfloat16")
        name = "int8" if quantization else max(floats, key=lambda each: self.gemm_gflops[each])
        return name, self.gemm_gflops[name]


def read_machine(checkpoint: Path) -> Machine:
    """Describe this machine, and measure its peak for some seconds, during which nothing else should run."""
    load_before = os.getloadavg()[0]
    device, gflops = _measure_gemm(checkpoint)
    return Machine(
        processor=read_processor(),
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
