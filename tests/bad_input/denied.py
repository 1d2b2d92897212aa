"""The right to read what permissions forbid, given up for a while: tests often run as root, whom they do not stop."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

_VERSION_3 = 0x20080522  # linux/capability.h: two words of 32 capabilities each
_READ_ANYTHING = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


@contextmanager
def permissions_count() -> Iterator[None]:
    """This thread (and those that it starts) may read only what the permissions of files and folders allow."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)  # 0: this thread
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then the same for capabilities 32 and up

    def call(name: str) -> None:
        if getattr(libc, name)(header, sets) != 0:
            raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")

    call("capget")
    before = sets[0]
    sets[0] = before & ~_READ_ANYTHING
    call("capset")
    try:
        yield
    finally:
        sets[0] = before
        call("capset")
