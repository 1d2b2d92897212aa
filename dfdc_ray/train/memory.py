"""Memory that torch frees on a CPU and soon wants again: glibc is told to keep it.

Every layer's output is a large block, which glibc takes from the system and gives back at once, and the system fills each page with zeros
anew: at 224 pixels up to 45 % of the time of training EfficientNet-Lite0 went into that (docs/benchmarks.md). Parameters: mallopt(3).
"""

import ctypes
import platform

_KEEP = 1 << 40  # bytes free at the heap's end before any is given back: never
# For processes that are yet to start. One arena, since those of other threads than the first cannot hold large blocks.
ENVIRONMENT = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(_KEEP)}
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """The same for this process, as far as its first thread computes. Nothing where the C library is not glibc."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)  # never
