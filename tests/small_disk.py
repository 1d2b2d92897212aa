"""A disk of a few megabytes of its own (a tmpfs), which a test can fill and free again. Needs root; else the test is skipped."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class SmallDisk:
    """A mounted tmpfs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / ".ballast"

    def fill(self, *, leave: int = 0) -> None:
        """Take all space, but for about so many bytes. Others may write meanwhile."""
        with self._ballast.open("ab") as file:
            while (wanted := self._space() - leave) > 0:
                with contextlib.suppress(OSError):
                    os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), wanted)

    def _space(self) -> int:
        usage = os.statvfs(self.path)
        return usage.f_bavail * usage.f_frsize

    def free(self) -> None:
        """Give it back."""
        self._ballast.unlink(missing_ok=True)


@contextmanager
def small_disk(path: Path, *, size: int) -> Iterator[SmallDisk]:
    """A disk of `size` bytes at `path`, while the context lasts. Skips the test where mounting is not allowed."""
    path.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no disk of its own can be mounted to be filled: {done.stderr.strip()}")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)
