"""Loaded by every Python that has this folder on PYTHONPATH: moves its wall clock by the seconds in a file, at any moment.

A library that does so below Python (libfaketime) also disturbs the waits of threads, and makes a start take minutes.
"""

import os
import time

# Kept open: a test may leave the process no file to open.
_file = os.open(os.environ["LEAPING_CLOCK"], os.O_RDONLY)
_real_time, _real_time_ns = time.time, time.time_ns


def _offset_s() -> int:
    return int(os.pread(_file, 32, 0))


time.time = lambda: _real_time() + _offset_s()
time.time_ns = lambda: _real_time_ns() + _offset_s() * 10**9
