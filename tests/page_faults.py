"""Counts page faults of a program that frees and allocates memory repeatedly, like the steps of an engine."""

import subprocess
import sys
from collections.abc import Mapping, Sequence

_FAULTS = """
import ctypes, resource
{first}
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
for round in range(20):
    blocks = [libc.malloc(size << 20) for size in {sizes}]
    for block, size in zip(blocks, {sizes}):
        ctypes.memset(block, 1, size << 20)
    for block in blocks:
        libc.free(block)
    if round == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(environment: Mapping[str, str], first: str = "", mib: Sequence[int] = (12, 6, 24)) -> int:
    """Count the page faults of nineteen such steps with blocks of these sizes, in a new process that runs `first` before them."""
    program = _FAULTS.format(first=first, sizes=tuple(mib))
    return int(subprocess.check_output([sys.executable, "-c", program], env=environment))
