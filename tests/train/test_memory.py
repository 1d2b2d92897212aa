"""That freed memory is kept: taking and filling a block again costs no page faults."""

import os
import platform
import subprocess
import sys

import pytest

from dfdc_ray.train.memory import ENVIRONMENT

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")

# Prints how many pages the system gave, the second time that 100 MB were taken, written and freed: 25,600 if it had them back.
FAULTS = """
import ctypes, resource, threading
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def use():
    block = libc.malloc(ctypes.c_size_t(100 << 20))
    ctypes.memset(block, 1, 100 << 20)
    libc.free(ctypes.c_void_p(block))
def measure():
    use()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    use()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
# Prints how many of 3 GB, which nobody writes to, the heap gives back when they are freed.
GIVEN_BACK = """
import ctypes
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
block = libc.malloc(ctypes.c_size_t(3 << 30))
end = libc.sbrk(0)
libc.free(ctypes.c_void_p(block))
print((end - libc.sbrk(0)) >> 30)
"""
IN_A_THREAD = "thread = threading.Thread(target=measure); thread.start(); thread.join()"
KEEP = "from dfdc_ray.train.memory import keep_freed_memory; keep_freed_memory()\n"


def _prints(code: str, environment: dict[str, str]) -> int:
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_glibc_gives_large_blocks_back_unless_told() -> None:
    assert _prints(FAULTS + "measure()", {}) > 40  # of 4 KiB, or of 2 MiB where the system gives those


@pytest.mark.parametrize(("code", "environment"), [(KEEP + "measure()", {}), (IN_A_THREAD, ENVIRONMENT)])
def test_it_keeps_them(code: str, environment: dict[str, str]) -> None:
    assert _prints(FAULTS + code, environment) < 20


@pytest.mark.parametrize(("code", "environment"), [(KEEP, {}), ("", ENVIRONMENT)])
def test_it_keeps_more_than_an_int_counts(code: str, environment: dict[str, str]) -> None:
    assert _prints(code + GIVEN_BACK, environment) == 0
