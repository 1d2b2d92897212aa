"""A seekable file over a function that reads ranges, as S3 and windows on a zip are read."""

import errno
import io
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Version:
    """Which content a file had: its size in bytes, and what tells it from another of that size (on S3 the ETag)."""

    size: int
    tag: str


class Input(io.BufferedReader):
    """A seekable file over `read_at(size, position)`, which is asked for bytes within `version.size` only, and may be called directly."""

    def __init__(self, read_at: Callable[[int, int], bytes], version: Version, close: Callable[[], None], *, buffer: int) -> None:
        super().__init__(_Ranged(read_at, version.size, close), buffer)
        self.read_at, self.version, self.buffer = read_at, version, buffer

    def window(self, start: int, size: int) -> "Input":
        """A part of it as a file of its own, which takes it over."""
        read_at = self.read_at
        return Input(lambda n, position: read_at(n, start + position), Version(size, self.version.tag), self.close, buffer=self.buffer)

    def watched(self, around: Callable[[], AbstractContextManager[None]]) -> "Input":
        """The same as a file of its own, which takes it over; each reading from the storage happens within `around()`."""
        read_at = self.read_at

        def read(size: int, position: int) -> bytes:
            with around():
                return read_at(size, position)

        return Input(read, self.version, self.close, buffer=self.buffer)


class _Ranged(io.RawIOBase):
    """What an Input buffers."""

    def __init__(self, read_at: Callable[[int, int], bytes], size: int, close: Callable[[], None]) -> None:
        self._read_at, self._size, self._close, self._position = read_at, size, close, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if position < 0:
            raise OSError(errno.EINVAL, f"seek to {position}")
        self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self._position)
        if wanted <= 0:
            return 0
        data = self._read_at(wanted, self._position)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def readall(self) -> bytes:  # in one piece (of at most 2 GiB, the system's limit): the inherited one asks for 8 KiB at a time
        pieces = []
        while (left := self._size - self._position) > 0 and (data := self._read_at(left, self._position)):
            self._position += len(data)
            pieces.append(data)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        if not self.closed:
            self._close()
        super().close()
