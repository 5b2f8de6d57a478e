"""Every Python with this folder on PYTHONPATH loads this module, which moves its wall clock by the seconds in a file.

A library that moves the clock below Python (libfaketime) also disturbs waiting threads; a start then takes minutes.
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
