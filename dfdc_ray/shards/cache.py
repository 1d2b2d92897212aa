"""Copies of shards on a node's own disk, so that they come from S3 (or a slow disk) once and not in every epoch.

DIR/<sha256>.parquet is a whole and checked copy, whatever folder it came from; nothing else in DIR counts. Several processes of a node
may ask for the same DIR: one copies, the others wait. Nothing but unfinished copies is ever deleted there: that is for the
person who gave the folder.
"""

import errno
import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import numpy as np

from dfdc_ray import storage
from dfdc_ray.console import Work, console
from dfdc_ray.errors import StorageError, UserError
from dfdc_ray.shards.rows import RowTable

_THREADS = 16  # files that are copied at a time
_PIECE = 16 << 20  # bytes of each that are asked for at a time
_TRIES = 5
_UNFINISHED = re.compile(r"[0-9a-f]{64}\.parquet\.tmp")
_SPARE = 1 << 30  # bytes of the disk that are left free


@dataclass(frozen=True)
class _Copy:
    """One file to have: from `uri` to `path`."""

    uri: str
    path: str
    size: int
    sha256: str

    @property
    def there(self) -> bool:
        """Whether it is. Its name is given to it last, so its size says enough."""
        try:
            return os.stat(self.path).st_size == self.size
        except FileNotFoundError:
            return False


def check_folder(folder: str | None) -> str | None:
    """The folder's absolute path. UserError if it is not one of a local disk."""
    if folder is not None and storage.is_s3(folder):
        raise UserError(f"--cache {folder}: give a folder on the nodes' own disks.")
    return folder and storage.absolute(folder)


def cached(tables: Sequence[RowTable], folder: str) -> list[RowTable]:
    """Copy the files that these rows (of one manifest) are in, unless they are there, and return the tables with the copies' places.

    UserError if the disk has no room, or a file is not what the manifest says; StorageError if it cannot be read after several tries.
    """
    used = sorted({int(file) for rows in tables for file in np.unique(rows.groups[np.unique(rows.column("group")), 0])})
    first = tables[0]
    copies = {i: _Copy(first.files[i], os.path.join(folder, f"{first.sha256[i]}.parquet"), first.sizes[i], first.sha256[i]) for i in used}
    with _translated(folder):
        os.makedirs(folder, exist_ok=True)
        with _alone(folder):
            _fill(folder, [copy for copy in {copy.path: copy for copy in copies.values()}.values() if not copy.there])
    return [replace(rows, files=tuple(copies[i].path if i in copies else uri for i, uri in enumerate(rows.files))) for rows in tables]


@contextmanager
def _alone(folder: str) -> Iterator[None]:
    """Wait until no other process of this node is filling the folder. A process that dies lets go."""
    with open(os.path.join(folder, ".lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print(f"Another process is filling {folder}: waiting for it", highlight=False, soft_wrap=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fill(folder: str, missing: Sequence[_Copy]) -> None:
    if not missing:
        return
    for name in os.listdir(folder):
        if _UNFINISHED.fullmatch(name):  # of a process that was killed
            os.unlink(os.path.join(folder, name))
    size, free = sum(copy.size for copy in missing), shutil.disk_usage(folder).free
    if size + _SPARE > free:
        raise UserError(_full(folder, f"{size / 1e9:.1f} GB are to be copied there and {free / 1e9:.1f} GB are free"))
    unit = 1e6
    with Work(f"copying to {folder}", total=round(size / unit), unit="MB") as work, ThreadPoolExecutor(_THREADS) as pool:
        copied = 0
        try:
            for copy in pool.map(_copy, missing):
                copied += copy.size
                work.advance(round(copied / unit) - work.done)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _copy(copy: _Copy) -> _Copy:
    for attempt in range(_TRIES):
        try:
            _copy_once(copy)
            break
        except FileNotFoundError as error:
            raise UserError(f"{copy.uri} is absent, but the manifest names it. Copy the whole folder again.") from error
        except StorageError:
            if attempt == _TRIES - 1:
                raise
            time.sleep(2.0**attempt)
    return copy


def _copy_once(copy: _Copy) -> None:
    temporary, digest = copy.path + ".tmp", hashlib.sha256()
    try:
        with storage.open_input(copy.uri) as source, open(temporary, "wb") as target:
            while piece := source.read(_PIECE):
                target.write(piece)
                digest.update(piece)
            target.flush()
            os.fsync(target.fileno())
            size = target.tell()
        if (size, digest.hexdigest()) != (copy.size, copy.sha256):
            raise UserError(f"{copy.uri} is damaged: its size and SHA-256 are not those of the manifest. Copy it again.")
        os.replace(temporary, copy.path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


@contextmanager
def _translated(folder: str) -> Iterator[None]:
    """Say what a person can put right about the folder."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(_full(folder, "it filled up while shards were copied")) from error
        raise UserError(f"--cache {folder}: {error.strerror or error}. Give a folder that can be written on every node.") from error


def _full(folder: str, why: str) -> str:
    return f"--cache {folder}: {why}. Delete what is not needed there, or give a folder on a larger disk."
