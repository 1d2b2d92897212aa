"""Bytes on a local disk or S3: read, list, replace atomically, create once.

A uri is a local path (absolute or relative), file:///path, or s3://bucket/key. Both go through pyarrow's filesystems. Credentials, region
and endpoint of S3 come from the standard AWS environment and files (AWS_PROFILE, AWS_ENDPOINT_URL, the machine's role), never from a uri.

Every function raises FileNotFoundError where something is absent, UserError where access is denied or the uri makes no sense, and
StorageError for any other trouble with the storage.
"""

import errno
import functools
import io
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from dfdc_ray.errors import StorageError, UserError

S3_BUFFER = 4 << 20  # bytes per ranged GET: most DFDC clips arrive in one or two
LOCAL_BUFFER = 256 << 10
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp")
_DENIED = re.compile(
    "ACCESS_DENIED|INVALID_ACCESS_KEY_ID|INVALID_CLIENT_TOKEN_ID|SIGNATURE_DOES_NOT_MATCH|UNRECOGNIZED_CLIENT|REQUEST_EXPIRED"
    "|MISSING_AUTHENTICATION_TOKEN|ExpiredToken|InvalidToken|HTTP status 40[13]"
)


@dataclass(frozen=True)
class Entry:
    """One file or folder. `name` is relative to the listed folder; `size` in bytes, None for folders."""

    uri: str
    name: str
    is_dir: bool
    size: int | None


def is_s3(uri: str) -> bool:
    """Whether the uri is one of S3."""
    return uri.startswith("s3://")


def absolute(uri: str) -> str:
    """The uri in a form that means the same in any process: s3:// as it is, local paths absolute; no slash at the end."""
    if is_s3(uri):
        _s3_path(uri)
        return uri.rstrip("/")
    return _local_path(uri)


def join(uri: str, *names: str) -> str:
    """The uri of something below a folder."""
    return "/".join([uri.rstrip("/"), *(name.strip("/") for name in names)])


def exists(uri: str) -> bool:
    """Whether there is a file or folder (or an S3 prefix with something below it)."""
    with _translated(uri):
        filesystem, path = _resolve(uri)
        return filesystem.get_file_info(path).type != fs.FileType.NotFound


def stat(uri: str) -> Entry:
    """What is at the uri, with its base name."""
    with _translated(uri):
        filesystem, path = _resolve(uri)
        info = filesystem.get_file_info(path)
        if info.type == fs.FileType.NotFound:
            raise FileNotFoundError("not found")
        is_dir = info.type == fs.FileType.Directory
        return Entry(uri, info.base_name, is_dir, None if is_dir else info.size)


def read_bytes(uri: str) -> bytes:
    """The whole file."""
    with open_input(uri) as file:
        return file.read()


def open_input(uri: str) -> BinaryIO:
    """A seekable file. On S3 it fetches ranges of `S3_BUFFER` bytes, not the whole object. Reading raises StorageError too."""
    with _translated(uri):
        filesystem, path = _resolve(uri)
        if not is_s3(uri):
            kind = filesystem.get_file_info(path).type  # opening a named pipe would wait for ever
            if kind not in (fs.FileType.File, fs.FileType.NotFound):
                raise FileNotFoundError("it is not a file")
        file = filesystem.open_input_file(path)

    def read_at(size: int, position: int) -> bytes:
        with _translated(uri):
            return file.read_at(size, position)

    return io.BufferedReader(RangedFile(read_at, file.size(), file.close), S3_BUFFER if is_s3(uri) else LOCAL_BUFFER)


def list_dir(uri: str, *, recursive: bool = False) -> list[Entry]:
    """What is in a folder, sorted by name. On S3, where a folder is only a prefix, one that is absent is empty.

    Left out: unfinished temporary files of this module, devices and pipes, and symbolic links that lead nowhere. A recursive listing of a
    local folder lists symbolic links to folders, but does not descend into them (they may form a loop).
    """
    s3 = is_s3(uri)
    found: list[Entry] = []
    with _translated(uri):
        filesystem, top = _resolve(uri)
        folders = [top]
        while folders:
            try:
                infos = filesystem.get_file_info(fs.FileSelector(folders.pop(), recursive=recursive and s3))
            except FileNotFoundError:
                if not s3:
                    raise
                return []
            for info in infos:
                is_dir = info.type == fs.FileType.Directory
                if not (is_dir or info.type == fs.FileType.File) or _TEMPORARY.fullmatch(info.base_name):
                    continue
                name = info.path[len(top.rstrip("/")) + 1 :]
                found.append(Entry(join(uri, name), name, is_dir, None if is_dir else info.size))
                if recursive and is_dir and not s3 and not os.path.islink(info.path):
                    folders.append(info.path)
    return sorted(found, key=lambda entry: entry.name)


def write_bytes(uri: str, data: bytes) -> None:
    """Write or replace a file atomically: readers see the old content or the new. Missing folders are made."""
    with _translated(uri):
        filesystem, path = _resolve(uri)
        if is_s3(uri):  # one PUT, or a multipart upload when large: visible only when complete
            with filesystem.open_output_stream(path) as stream:
                stream.write(data)
            return
        with _temporary(path, data) as temporary:
            os.replace(temporary, path)
            _sync_folder(path)


def create_once(uri: str, data: bytes) -> bool:
    """Write a file unless it is there already: of many writers exactly one gets True. Missing folders are made.

    False can also mean that this writer's own request won and its answer was lost, so a False is settled by reading the file.
    """
    with _translated(uri):
        if is_s3(uri):
            return _s3_create_once(uri, data)
        path = _local_path(uri)
        with _temporary(path, data) as temporary:
            try:
                os.link(temporary, path)  # unlike rename, it fails where the name is taken
            except FileExistsError:
                return False
            _sync_folder(path)
            return True


def make_dirs(uri: str) -> None:
    """Make a folder and those above it. Nothing to do on S3."""
    with _translated(uri):
        if not is_s3(uri):
            os.makedirs(_local_path(uri), exist_ok=True)


def delete(uri: str) -> None:
    """Delete a file, or a folder with all that is in it (links are removed, not followed)."""
    with _translated(uri):
        if not is_s3(uri):
            path = _local_path(uri)
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)
            return
        filesystem, path = _resolve(uri)
        if "/" not in path:
            raise UserError(f"{uri} is a whole bucket: not deleted")
        if filesystem.get_file_info(path).type == fs.FileType.Directory:
            filesystem.delete_dir(path)
        else:
            filesystem.delete_file(path)


class RangedFile(io.RawIOBase):
    """A raw, seekable file over `read_at(size, position)`, which is asked for at most what lies within `size` bytes."""

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

    def close(self) -> None:
        if not self.closed:
            self._close()
        super().close()


@contextmanager
def _translated(uri: str) -> Iterator[None]:
    """Turn the errors of Python, pyarrow and boto3 into those that the module's docstring promises, without the server's own words."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{uri}: {'not found' if error.errno else error}") from None
    except NotADirectoryError:
        raise FileNotFoundError(f"{uri}: not found, or not a folder") from None
    except PermissionError as error:
        raise UserError(f"{uri}: permission denied ({error.strerror or 'by the system'}). Check who owns it and its mode.") from error
    except UnicodeError as error:
        raise UserError(f"{uri}: a file name here is not UTF-8 ({error}). Rename it.") from error
    except (OSError, pa.ArrowException) as error:
        code = re.search(r"AWS Error (\w+)", str(error))
        if is_s3(uri) and _DENIED.search(str(error)):
            raise _denied(uri, code[1] if code else "access denied") from error
        if code and code[1] == "NO_SUCH_BUCKET":
            raise UserError(f"{uri}: there is no such bucket") from error
        raise StorageError(f"{uri}: {code[1] if code else error}") from error


def _denied(uri: str, code: str) -> UserError:
    return UserError(f"{uri}: S3 denies access ({code}). Check the AWS credentials of this machine and the bucket's policy.")


def _resolve(uri: str) -> tuple[fs.FileSystem, str]:
    if is_s3(uri):
        path = _s3_path(uri)
        return _s3_filesystem(path.partition("/")[0], os.getpid()), path
    return _local_filesystem(), _local_path(uri)


def _local_path(uri: str) -> str:
    if uri.startswith("file://"):
        uri = unquote(urlsplit(uri).path)
    elif re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", uri):
        raise UserError(f"{uri.split('://')[0]}:// is not supported: give a local path or s3://bucket/key")
    if not uri or "\0" in uri:
        raise UserError(f"{uri!r} is not a path")
    return os.path.abspath(uri)


def _s3_path(uri: str) -> str:
    path = uri[len("s3://") :].rstrip("/")
    bucket = path.partition("/")[0]
    if "@" in bucket or ":" in bucket:
        raise UserError("an s3:// uri must not carry credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile or role")
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{1,62}", bucket):
        raise UserError(f"{uri}: {bucket!r} is not the name of a bucket: give s3://bucket/key")
    return path


@functools.cache
def _local_filesystem() -> fs.LocalFileSystem:
    return fs.LocalFileSystem()


@functools.lru_cache(maxsize=8)
def _s3_filesystem(bucket: str, _process: int) -> fs.S3FileSystem:
    """One for each bucket and process (a fork makes its own). Only from a uri does pyarrow look up region and AWS_ENDPOINT_URL."""
    # Without this, servers other than AWS answer pyarrow's chunked checksums with 411.
    os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    return fs.FileSystem.from_uri(f"s3://{bucket}?allow_delayed_open=true")[0]  # delayed: a small file is one PUT


@functools.lru_cache(maxsize=1)
def _s3_client(_process: int) -> Any:
    import boto3
    from botocore.config import Config

    os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    own_endpoint = "AWS_ENDPOINT_URL" in os.environ or "AWS_ENDPOINT_URL_S3" in os.environ
    return boto3.client("s3", config=Config(s3={"addressing_style": "path"} if own_endpoint else {}))


def _s3_create_once(uri: str, data: bytes) -> bool:
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError, ProfileNotFound

    bucket, _, key = _s3_path(uri).partition("/")
    try:
        _s3_client(os.getpid()).put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if status == 412:
            return False
        if status in (401, 403) or code in ("ExpiredToken", "InvalidToken"):
            raise _denied(uri, code) from error
        if code == "NoSuchBucket":
            raise UserError(f"{uri}: there is no such bucket") from error
        raise StorageError(f"{uri}: {code or status}") from error
    except (NoCredentialsError, PartialCredentialsError, ProfileNotFound) as error:
        raise _denied(uri, type(error).__name__) from error
    except BotoCoreError as error:
        raise StorageError(f"{uri}: {type(error).__name__}") from error
    return True


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
