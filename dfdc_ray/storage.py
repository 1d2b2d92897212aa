"""Bytes on a local disk or S3: read, list, replace atomically, create once.

A uri is a local path (absolute or relative), file:///path, or s3://bucket/key. S3 is s3.py's, which also says where its credentials come
from; here are the local disk and what both share.

Every function raises FileNotFoundError where something is absent, UserError where access is denied or the uri makes no sense, and
StorageError for any other trouble with the storage.
"""

import errno
import io
import os
import re
import shutil
import stat as status
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from dfdc_ray import s3
from dfdc_ray.errors import StorageError, UserError
from dfdc_ray.ranged import Input, Version
from dfdc_ray.s3 import Changed, Traffic, traffic

__all__ = [
    "Changed", "Entry", "Input", "Traffic", "Version", "absolute", "create_once", "delete", "exists", "is_s3", "join", "list_dir",
    "make_dirs", "open_input", "open_whole", "read_bytes", "stat", "traffic", "write_bytes",
]  # fmt: skip

S3_BUFFER = 4 << 20  # bytes per ranged GET when read in order
S3_TAIL = 64 << 10  # bytes at the end that opening brings along: a Parquet footer, a zip's end and a small zip's directory
S3_HEAD = 8 << 20  # bytes at the start that opening a video brings along: all of most DFDC clips
LOCAL_BUFFER = 256 << 10
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp")


@dataclass(frozen=True)
class Entry:
    """One file or folder. `name` is relative to the listed folder; `size` in bytes, None for folders.

    version: of a listed file's content (on a local disk its size and time of change); None for folders, and of `stat`.
    """

    uri: str
    name: str
    is_dir: bool
    size: int | None
    version: Version | None = field(default=None, compare=False)


def is_s3(uri: str) -> bool:
    """Whether the uri is one of S3."""
    return uri.startswith("s3://")


def absolute(uri: str) -> str:
    """The uri in a form that means the same in any process: s3:// as it is, local paths absolute; no slash at the end."""
    if is_s3(uri):
        s3.split(uri)
        return uri.rstrip("/")
    return _local_path(uri)


def join(uri: str, *names: str) -> str:
    """The uri of something below a folder."""
    return "/".join([uri.rstrip("/"), *(name.strip("/") for name in names)])


def exists(uri: str) -> bool:
    """Whether there is a file or folder (or an S3 prefix with something below it)."""
    try:
        stat(uri)
    except FileNotFoundError:
        return False
    return True


def stat(uri: str) -> Entry:
    """What is at the uri, with its base name."""
    name = os.path.basename(absolute(uri))
    if is_s3(uri):
        size = s3.size_of(uri) if s3.split(uri)[1] else None
        if size is None and next(s3.list_keys(uri, recursive=True, most=2), None) is None and s3.split(uri)[1]:
            raise FileNotFoundError(f"{uri}: not found")
        return Entry(uri, name, size is None, size)
    with _translated(uri):
        found = os.stat(_local_path(uri))
    is_dir = status.S_ISDIR(found.st_mode)
    return Entry(uri, name, is_dir, None if is_dir else found.st_size)


def read_bytes(uri: str) -> bytes:
    """The whole file."""
    if is_s3(uri):
        return s3.get(uri)[0]
    with open_input(uri) as file:
        return file.read()


def open_input(uri: str, *, known: Version | None = None) -> Input:
    """A seekable file. On S3 it fetches ranges, not the whole object; reading raises StorageError too, also when the object was replaced.

    known: the version at an earlier opening. On S3, opening then costs no request, and reading raises Changed if it is another one.
    """
    if is_s3(uri):
        tail, version = (b"", known) if known else s3.get(uri, -S3_TAIL)
        return _open_s3(uri, version, tail, version.size - len(tail))
    with _translated(uri):
        path = _local_path(uri)
        if not status.S_ISREG(os.stat(path).st_mode):  # opening a named pipe would wait for ever
            raise FileNotFoundError("it is not a file")
        file = open(path, "rb", buffering=0)  # noqa: SIM115 (the Input's)
        found = os.fstat(file.fileno())

    def read_at(size: int, position: int) -> bytes:
        with _translated(uri):
            return os.pread(file.fileno(), size, position)

    return Input(read_at, _version(found), file.close, buffer=LOCAL_BUFFER)


def open_whole(uri: str, most: int) -> Input | io.BytesIO:
    """Like open_input; but on S3 a file of at most `most` bytes comes whole, in one or two requests, and is kept in memory."""
    if not is_s3(uri):
        return open_input(uri)
    head, version = s3.get(uri, 0, S3_HEAD)
    if version.size > most:
        return _open_s3(uri, version, head, 0)
    return io.BytesIO(head if len(head) == version.size else head + s3.get(uri, len(head), version=version)[0])


def list_dir(uri: str, *, recursive: bool = False, most: int | None = None) -> list[Entry]:
    """What is in a folder, sorted by name; the first `most`. On S3, where a folder is only a prefix, one that is absent is empty.

    Left out: unfinished temporary files of this module, devices and pipes, and symbolic links that lead nowhere. A recursive listing of a
    local folder lists symbolic links to folders, but does not descend into them (they may form a loop).
    """
    if is_s3(uri):
        return _list_s3(uri, recursive, most)
    found: list[Entry] = []
    with _translated(uri):
        top = _local_path(uri)
        folders = [""]
        while folders:
            below = folders.pop(0)
            with os.scandir(os.path.join(top, below)) as entries:
                for entry in entries:
                    entry.name.encode()  # else it is not UTF-8
                    is_dir = entry.is_dir()
                    if not (is_dir or entry.is_file()) or _TEMPORARY.fullmatch(entry.name):
                        continue
                    name = os.path.join(below, entry.name)
                    version = None if is_dir else _version(entry.stat())
                    found.append(Entry(join(uri, name), name, is_dir, version.size if version else None, version))
                    if recursive and is_dir and not entry.is_symlink():
                        folders.append(name)
    return sorted(found, key=lambda entry: entry.name)[:most]


def write_bytes(uri: str, data: bytes) -> None:
    """Write or replace a file atomically: readers see the old content or the new. Missing folders are made. S3 takes at most 5 GiB."""
    if is_s3(uri):
        s3.put(uri, data)
        return
    with _translated(uri):
        path = _local_path(uri)
        with _temporary(path, data) as temporary:
            os.replace(temporary, path)
            _sync_folder(path)


def create_once(uri: str, data: bytes) -> bool:
    """Write a file unless it is there already: of many writers exactly one gets True. Missing folders are made.

    False can also mean that this writer's own request won and its answer was lost, so a False is settled by reading the file.
    """
    if is_s3(uri):
        return s3.put_once(uri, data)
    with _translated(uri):
        path = _local_path(uri)
        with _temporary(path, data) as temporary:
            try:
                os.link(temporary, path)  # unlike rename, it fails where the name is taken
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP):
                    raise
                raise UserError(f"{uri}: this file system has no hard links, as FAT and exFAT. Give a folder on another one.") from error
            _sync_folder(path)
            return True


def make_dirs(uri: str) -> None:
    """Make a folder and those above it. Nothing to do on S3."""
    with _translated(uri):
        if not is_s3(uri):
            os.makedirs(_local_path(uri), exist_ok=True)


def delete(uri: str) -> None:
    """Delete a file, or a folder with all that is in it (links are removed, not followed)."""
    if is_s3(uri):
        if not s3.split(uri)[1]:
            raise UserError(f"{uri} is a whole bucket: not deleted")
        if not stat(uri).is_dir:
            s3.delete(uri)
            return
        for name, _ in list(s3.list_keys(uri, recursive=True)):
            s3.delete(f"{uri.rstrip('/')}/{name}")
        return
    with _translated(uri):
        path = _local_path(uri)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)


def _open_s3(uri: str, version: Version, part: bytes, part_start: int) -> Input:
    """An object of which `part` is here already."""

    def read_at(size: int, position: int) -> bytes:
        end = min(position + size, version.size)
        if part_start <= position and end <= part_start + len(part):
            return part[position - part_start : end - part_start]
        return s3.get(uri, position, end - position, version=version)[0]

    return Input(read_at, version, lambda: None, buffer=S3_BUFFER)


def _list_s3(uri: str, recursive: bool, most: int | None) -> list[Entry]:
    found: dict[str, Version | None] = {}
    for name, version in s3.list_keys(uri, recursive=recursive, most=most):
        if recursive:  # the folders above it, which are only prefixes
            found.update((name[:i], None) for i, letter in enumerate(name) if letter == "/")
        if not name.endswith("/"):  # a folder's mark, as some tools leave
            found[name] = version
    return [Entry(join(uri, name), name, v is None, v.size if v else None, v) for name, v in sorted(found.items(), key=lambda f: f[0])]


def _version(found: os.stat_result) -> Version:
    return Version(found.st_size, str(found.st_mtime_ns))


@contextmanager
def _translated(uri: str) -> Iterator[None]:
    """Turn Python's own errors into those that the module's docstring promises."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{uri}: {'not found' if error.errno else error}") from None
    except NotADirectoryError:
        raise FileNotFoundError(f"{uri}: not found, or not a folder") from None
    except PermissionError as error:
        raise UserError(f"{uri}: permission denied. Check who owns it and its mode.") from error
    except UnicodeError as error:
        raise UserError(f"{uri}: the file name {getattr(error, 'object', error)!r} is not UTF-8. Rename it.") from error
    except OSError as error:
        raise StorageError(f"{uri}: {error}") from error


def _local_path(uri: str) -> str:
    if uri.startswith("file://"):
        uri = unquote(urlsplit(uri).path)
    elif re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", uri):
        raise UserError(f"{uri.split('://')[0]}:// is not supported: give a local path or s3://bucket/key")
    if not uri or "\0" in uri:
        raise UserError(f"{uri!r} is not a path")
    return os.path.abspath(uri)


@contextmanager
def _temporary(path: str, data: bytes) -> Iterator[str]:
    """A file with the data, on disk, beside `path`; gone afterwards unless it was renamed."""
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


def _sync_folder(path: str) -> None:
    """Make a new name survive a power cut."""
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
