"""Whether a file that cannot be read is alone in that: then it is its own trouble, else that of the storage."""

import os
import threading
from collections.abc import Iterator
from contextlib import suppress

from dfdc_ray import storage
from dfdc_ray.corpus.zips import is_zip, outermost
from dfdc_ray.errors import StorageError, UserError

_MOST = 5  # files that are tried,
_WAIT_S = 120.0  # and how long in all: storage that hangs must not take its caller with it


def folder_of(uri: str) -> str:
    """The zip that a video is in, or else its folder."""
    file = outermost(uri)
    return file if is_zip(file) else os.path.dirname(file)


def neighbour_is_readable(uri: str) -> bool:
    """Whether a byte of the zip around the video, or of another file in its folder, can be read."""
    found = threading.Event()

    def look() -> None:
        with suppress(StorageError, UserError, FileNotFoundError):
            for other in _neighbours(uri):
                with suppress(StorageError, UserError, FileNotFoundError), storage.open_input(other) as file:
                    if file.read(1):
                        found.set()
                        return

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    looking.join(_WAIT_S)
    return found.is_set()


def _neighbours(uri: str) -> Iterator[str]:
    file = outermost(uri)
    if file != uri:
        yield file
    others = [entry.uri for entry in storage.list_dir(os.path.dirname(file), most=_MOST + 1) if not entry.is_dir and entry.uri != file]
    yield from others[:_MOST]
