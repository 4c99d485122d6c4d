"""Memory that a training run on a processor takes once and keeps."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of mallopt, in the GNU C library's malloc.h


def keep_freed_memory() -> None:
    """Let this process keep what is freed for what is allocated next, where its C library is GNU's.

    Otherwise large blocks are given back to the system at once, and every one that is taken anew is cleared page by
    page. Training takes the same blocks again in every step.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library: nothing to tell it
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, -1)
