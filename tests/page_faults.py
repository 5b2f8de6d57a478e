"""How often the kernel has to find memory for a program that frees and asks again, as a step of an engine does."""

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


def page_faults(environment: Mapping[str, str], first: str = "") -> int:
    """Of twenty such steps, in a process of its own, which does something else first."""
    return int(subprocess.check_output([sys.executable, "-c", first + _FAULTS], env=environment))
