"""Counts page faults of a program that frees and allocates memory repeatedly, like the steps of an engine."""

import subprocess
import sys
from collections.abc import Mapping

_FAULTS = """
import ctypes, resource
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
for round in range(20):
    blocks = [libc.malloc(size << 20) for size in (12, 6, 24)]
    for block, size in zip(blocks, (12, 6, 24)):
        ctypes.memset(block, 1, size << 20)
    for block in blocks:
        libc.free(block)
    if round == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(environment: Mapping[str, str]) -> int:
    """Count the page faults of nineteen such steps, in a new process with this environment."""
    return int(subprocess.check_output([sys.executable, "-c", _FAULTS], env=environment))
