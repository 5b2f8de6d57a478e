"""Memory on a CPU, where glibc returns large freed blocks to the kernel, which clears them for the next tensors."""

import ctypes

# Parameters of mallopt, as in malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Have glibc keep all freed memory for later blocks of this process; with another C library, do nothing.

    Source: mallopt(3), https://man7.org/linux/man-pages/man3/mallopt.3.html
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
