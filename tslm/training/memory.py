"""Memory that a step has freed stays with the process for the next step, instead of going back to the system.

A step allocates and frees hundreds of arrays of megabytes. glibc takes each of them from the system anew, which clears
it page by page (75,000 page faults a step of the course's model): a tenth of the time of a step on a CPU.
"""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
_NEVER = 2**31 - 1  # bytes at the end of the heap that are given back; the largest number that mallopt takes
_LARGEST = 32 * 2**20  # bytes from which on a block is mapped by itself; glibc allows no more


def keep_freed_memory() -> bool:
    """Set glibc's two thresholds for this process; with another C library do nothing.

    The process's peak memory is what it was, within a few percent; between its peaks it holds more.

    Returns:
        Whether it was done.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST) and mallopt(_TRIM_THRESHOLD, _NEVER))
