"""Poison: videos that take too much of something, or their process with them, met by a real child process under limits."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from .case import PROBE, Case, Limits, both, child_pids, real
from .videos import encode, h264_of_size, many_frames, png_film


@contextmanager
def leased(corpus: Path) -> Iterator[None]:
    """Whoever opens the bad video waits for a process that holds a lease on it and does not give it back: as storage that hangs."""
    program = (
        "import fcntl, os, signal, sys, time\n"
        "signal.signal(signal.SIGIO, signal.SIG_IGN)\n"  # how the kernel asks to have it back
        "fcntl.fcntl(os.open(sys.argv[1], os.O_RDWR), fcntl.F_SETLEASE, fcntl.F_WRLCK)\n"
        "print('held', flush=True); time.sleep(100)\n"
    )
    path = corpus / "dfdc_train_part_0" / "bad_real.mp4"
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stderr is not None
        if holder.stdout.readline() != "held\n":
            pytest.skip(f"no leases on this file system: {holder.stderr.read().splitlines()[-1]}")
        try:
            yield
        finally:
            holder.kill()


@contextmanager
def crashed(corpus: Path) -> Iterator[None]:
    """Every child process that opens the bad video dies, as when its content leads a decoder astray."""
    path = str(corpus / "dfdc_train_part_0" / "bad_real.mp4")
    deaths: set[int] = set()
    over = threading.Event()

    def run() -> None:
        while not over.wait(0.002):
            for pid in child_pids() - deaths:
                with suppress(OSError):  # it has ended
                    if any(os.readlink(link) == path for link in Path(f"/proc/{pid}/fd").iterdir()):
                        os.kill(pid, signal.SIGSEGV)
                        deaths.add(pid)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert len(deaths) == 2, f"{len(deaths)} tries"


CASES = [
    Case(
        kind="16k x 16k pixels (H.264)",
        make=both(lambda: h264_of_size(16384, 16384)),
        **PROBE,
        says="frames can be decoded",
        limits=Limits(),
    ),
    Case(
        kind="16k x 8.5k pixels (H.264)",
        make=real(lambda: h264_of_size(16384, 8704)),
        **PROBE,
        says="16384x8704 pixels are refused.*Scale the video down",
        limits=Limits(),
    ),
    Case(
        kind="16k x 16k pixels (PNG)",
        make=both(lambda: png_film(16384, 16384)),
        **PROBE,
        says="none of its 4 frames can be decoded",
        limits=Limits(),
    ),
    Case(
        kind="10 million frames",
        make=both(lambda: many_frames(10_000_000)),
        **PROBE,
        says="it has 10000000 frames or more; above 1000000 a video is refused",
        limits=Limits(),
    ),
    Case(
        kind="more memory than a video may take",
        make=both(lambda: png_film(16384, 8192)),
        status="error",
        stage="decode",
        says="needs more memory than a video may take .--video-memory-mb",
        limits=Limits(memory_mb=512),
    ),
    Case(
        kind="more work than the deadline allows",
        make=real(lambda: png_film(16384, 8192, n=24)),
        status="poison",
        says="its process failed 2 times: took longer than 2.5 s, in stage (decode|align|crop)",
        limits=Limits(timeout_s=2.5),
    ),
    Case(
        kind="a file whose opening hangs",
        make=real(encode),
        around=leased,
        status="error",
        stage="open",
        says="bad_real.mp4: could not be read within 2.5 s .--video-timeout-s. .what is beside it can be read",
        limits=Limits(timeout_s=2.5),
    ),
    Case(
        kind="a video that crashes its process",
        make=real(lambda: png_film(8192, 8192, n=24), faces=True),
        around=crashed,
        faces=True,
        status="poison",
        says="its process failed 2 times: was killed by SIGSEGV, in stage (open|probe|decode)",
        limits=Limits(),
    ),
]
