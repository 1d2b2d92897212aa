"""Videos inside zips, read in place: nothing is unpacked to disk.

A member is addressed as ZIP!/MEMBER, or OUTER.zip!/INNER.zip!/MEMBER for a zip in a zip (ZIP ends in .zip). A stored member is a window on
the zip, so that a long video does not enter memory; a deflated one is inflated into memory. Their CRC-32 is checked (not that of a large
member in S3, which is not read as a whole). An inner zip must be stored.
From S3 a member of ordinary size comes whole, in one request: FFmpeg reads a video twice, and its end before its middle.
The format: PKWARE's APPNOTE.TXT, 4.3.7 (local file header); the central directory is read by Python's zipfile.
"""

import errno
import io
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO, TypeVar

from dfdc_ray import storage
from dfdc_ray.errors import StorageError, UserError, VideoError, VideoGone

MAX_INFLATED = 2 << 30  # bytes of memory that one deflated member may take
MAX_WHOLE = 64 << 20  # bytes of a file in S3 that is read whole (DFDC's have 1 to 30 MB)
_CHUNK = 1 << 20
_KEPT = 8  # zips whose directories are kept; DFDC's have about 300 kB
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, ..., length of the name, length of the extra field
_MAX_EXTRA = 1 << 16
_SEPARATOR = re.compile(r"(?<=\.zip)!/", re.IGNORECASE)
# Absolute names, names that climb out of their folder, are no name or mean something else on Windows, and such as no uri could address.
_UNSAFE = re.compile(r"^/|(^|/)\.\.(/|$)|(^|/)\.$|\\|\0|^[A-Za-z]:|\.zip!/", re.IGNORECASE)
_ENCRYPTED = 0x1
_File = TypeVar("_File", storage.Input, io.BytesIO)
# What zipfile is known to raise on a damaged central directory.
_DAMAGED = (zipfile.BadZipFile, struct.error, ValueError, EOFError, OverflowError, NotImplementedError)


@dataclass(frozen=True)
class Member:
    """A file in a zip: its name there, its uri, its size when read (bytes), and whether it is compressed."""

    name: str
    uri: str
    size: int
    compressed: bool


class _BadZip(Exception):
    """What is wrong with a zip or a member of it; becomes VideoError for a video and UserError for an index."""


def open_video(uri: str) -> BinaryIO:
    """A seekable file, from a plain file or a zip's member.

    Raises VideoGone when the file is absent, VideoError("open", ...) when it is unreadable or its zip damaged, StorageError when storage
    fails, S3 denies access, or all that should be around the file is absent too (which says nothing about the video).
    """
    try:
        return _open(uri)
    except FileNotFoundError as error:
        _refuse_lost_folder(uri)
        raise VideoGone("open", f"{error} when it was to be read") from error
    except _BadZip as error:
        raise VideoError("open", str(error)) from error
    except UserError as error:
        if storage.is_s3(uri):
            raise StorageError(str(error)) from error
        raise VideoError("open", str(error)) from error


def _refuse_lost_folder(uri: str) -> None:
    """A disk that is not mounted leaves an empty folder or none, and condemns no video. (An S3 bucket that is gone is a UserError.)"""
    folder = os.path.dirname(outermost(uri))
    if not storage.is_s3(uri) and not (storage.exists(folder) and storage.list_dir(folder)):
        raise StorageError(f"{folder} is absent or empty: is its disk mounted on this machine?")


def outermost(uri: str) -> str:
    """The uri of what lies in storage: the file itself, or the zip around it (and around that)."""
    return _SEPARATOR.split(uri)[0]


def is_zip(name: str) -> bool:
    """Whether a file name or uri is a zip's."""
    return name.lower().endswith(".zip")


def list_members(zip_uri: str) -> list[Member]:
    """The files in a zip, in its own order; folders are left out.

    Raises UserError when the zip is damaged, or a member is encrypted, listed twice, or has a name that no unpacker should follow, and
    FileNotFoundError or StorageError like storage.
    """
    try:
        with _open_zip(zip_uri, trusted=False) as file:
            members = _directory(file, zip_uri).entries.values()
        for member in members:
            _refuse_encrypted(zip_uri, member)
    except _BadZip as error:
        raise UserError(str(error)) from error
    return [
        Member(member.filename, f"{zip_uri}!/{member.filename}", member.file_size, member.compress_type != zipfile.ZIP_STORED)
        for member in members
        if not member.is_dir()
    ]


def read_bytes(uri: str) -> bytes:
    """The whole content of a plain file or a zip's member. Raises UserError when the zip is damaged, else like storage."""
    try:
        with _open(uri) as file:
            return file.read()
    except _BadZip as error:
        raise UserError(str(error)) from error


def _open(uri: str) -> BinaryIO:
    *zips, name = _SEPARATOR.split(uri)
    if not zips:
        return storage.open_whole(uri, MAX_WHOLE)
    zip_uri = "!/".join(zips)
    try:
        return _open_member(_open_zip(zip_uri, trusted=True), zip_uri, name)
    except storage.Changed:
        return _open_member(_open_zip(zip_uri, trusted=False), zip_uri, name)


def _open_zip(zip_uri: str, *, trusted: bool) -> storage.Input:
    """A zip, or a zip in a zip, as a file. trusted: a zip in S3 is thought to be as it was (else reading it raises Changed)."""
    opened, *names = _SEPARATOR.split(zip_uri)
    known = _directories.get(opened) if trusted else None
    file = storage.open_input(opened, known=known.version if known else None)
    try:
        for name in names:
            member = _entry(file, opened, name)
            where = f"{opened}: the entry {name!r}"
            if member.compress_type != zipfile.ZIP_STORED:
                raise _BadZip(f"{where} is compressed, so it cannot be read in place. Unpack the outer zip once, or use `zip -0`.")
            header = _read_within(file, _LOCAL_HEADER.size, member.header_offset)
            file = file.window(_start(member, header, file.version.size, where), member.file_size)
            opened = f"{opened}!/{name}"
    except BaseException:
        file.close()
        raise
    return file


@dataclass(frozen=True)
class _Directory:
    """A zip's central directory: its entries by name, where what follows each of them begins, and of which content that is true."""

    entries: Mapping[str, zipfile.ZipInfo]
    ends: Mapping[str, int]
    version: storage.Version


# By the zip's uri, the one used last at the end: the videos of a family and of those around it come from the same zip.
_directories: dict[str, _Directory] = {}


def _directory(file: storage.Input, zip_uri: str) -> _Directory:
    directory = _directories.pop(zip_uri, None)
    if directory is None or directory.version != file.version:
        directory = _read_directory(file, zip_uri)
    _directories[zip_uri] = directory
    if len(_directories) > _KEPT:
        del _directories[next(iter(_directories))]
    return directory


def _read_directory(file: storage.Input, zip_uri: str) -> _Directory:
    try:
        archive = zipfile.ZipFile(file)
    except UnicodeDecodeError as error:
        raise _BadZip(f"{zip_uri}: the name {error.object!r} is not UTF-8. Make the zip again.") from error
    except (*_DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: sent to before the file's beginning
            raise
        raise _BadZip(f"{zip_uri} is damaged or not complete ({error}). Download or copy it again.") from error
    entries: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name = member.orig_filename  # `filename` ends at a NUL
        if not name or _UNSAFE.search(name):
            raise _BadZip(f"{zip_uri}: the entry {name!r} has an unsafe name. Make the zip again, with plain relative names.")
        if name in entries:
            raise _BadZip(f"{zip_uri}: the entry {name!r} is there twice. Make the zip again.")
        entries[name] = member
    in_order = sorted(entries, key=lambda name: entries[name].header_offset)
    starts = [*(entries[name].header_offset for name in in_order), archive.start_dir]
    return _Directory(entries, dict(zip(in_order, starts[1:], strict=True)), file.version)


def _refuse_encrypted(zip_uri: str, member: zipfile.ZipInfo) -> None:
    if member.flag_bits & _ENCRYPTED:
        raise _BadZip(f"{zip_uri}: the entry {member.filename!r} is encrypted. Unpack the zip with its password and give the folder.")


def _entry(file: storage.Input, zip_uri: str, name: str) -> zipfile.ZipInfo:
    member = _directory(file, zip_uri).entries.get(name)
    if member is None:
        raise _BadZip(f"{zip_uri}: there is no entry {name!r}")
    _refuse_encrypted(zip_uri, member)
    return member


def _open_member(file: storage.Input, zip_uri: str, name: str) -> BinaryIO:
    """A member as a file of its own, which takes over `file`."""
    try:
        content = _content(file, zip_uri, name)
    except BaseException:
        file.close()
        raise
    if isinstance(content, io.BytesIO):
        file.close()
    return content


def _content(file: storage.Input, zip_uri: str, name: str) -> storage.Input | io.BytesIO:
    member = _entry(file, zip_uri, name)
    where = f"{zip_uri}: the entry {name!r}"
    stored = member.compress_type == zipfile.ZIP_STORED
    if not stored and member.compress_type != zipfile.ZIP_DEFLATED:
        raise _BadZip(f"{where} is compressed by method {member.compress_type}, not by deflate. Unpack the zip and give the folder.")
    if stored and member.file_size != member.compress_size:
        raise _BadZip(f"{where} is stored, but with two different sizes")
    if not stored and member.file_size > MAX_INFLATED:
        raise _BadZip(f"{where} would take {member.file_size} bytes of memory (limit {MAX_INFLATED}). Unpack the zip and give the folder.")
    size, offset = member.compress_size, member.header_offset
    header = _LOCAL_HEADER.size
    if whole := storage.is_s3(zip_uri) and size <= MAX_WHOLE:
        # How long the local header is, only it says. What lies before the next entry holds it and the content, and hardly more.
        least = header + len(name.encode()) + size
        header = min(max(_directory(file, zip_uri).ends[name] - offset, least), least + _MAX_EXTRA)
    head = _read_within(file, header, offset)
    start = _start(member, head, file.version.size, where)
    if whole:
        data = head[start - offset : start - offset + size]
        compressed = io.BytesIO(data if len(data) == size else file.read_at(size, start))
        return _checked(compressed, member, where) if stored else _inflate(compressed, member, where)
    if stored:
        window = file.window(start, size)
        return window if storage.is_s3(zip_uri) else _checked(window, member, where)
    file.seek(start)
    return _inflate(file, member, where)


def _read_within(file: storage.Input, size: int, position: int) -> bytes:
    size = min(size, file.version.size - position)
    return file.read_at(size, position) if position >= 0 and size > 0 else b""


def _start(member: zipfile.ZipInfo, head: bytes, zip_size: int, where: str) -> int:
    """Where in the zip a member's content begins; `head` is what its local header begins with."""
    if len(head) < _LOCAL_HEADER.size or not head.startswith(b"PK\3\4"):
        raise _BadZip(f"{where} is not where the zip's directory says")
    _, name_length, extra_length = _LOCAL_HEADER.unpack_from(head)
    start = int(member.header_offset + _LOCAL_HEADER.size + name_length + extra_length)
    if start + member.compress_size > zip_size:
        raise _BadZip(f"{where} goes beyond the end of the zip: it is not complete. Download or copy it again.")
    return start


def _checked(content: _File, member: zipfile.ZipInfo, where: str) -> _File:
    """A stored member, after a look at its CRC-32; what is read for that is not kept."""
    crc = 0
    while chunk := content.read(_CHUNK):
        crc = zlib.crc32(chunk, crc)
    if crc != member.CRC:
        raise _BadZip(f"{where} is damaged (its CRC-32 is wrong). Download or copy the zip again.")
    content.seek(0)
    return content


def _inflate(file: BinaryIO, member: zipfile.ZipInfo, where: str) -> io.BytesIO:
    """The content of a deflated member in memory, never more than the size that the directory declares."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    content = io.BytesIO()
    left, size, crc = member.compress_size, 0, 0
    try:
        while left > 0 and not inflater.eof and size <= member.file_size:
            compressed = file.read(min(_CHUNK, left))
            inflated = inflater.decompress(compressed, member.file_size + 1 - size)
            content.write(inflated)
            left, size, crc = left - len(compressed), size + len(inflated), zlib.crc32(inflated, crc)
            if not compressed:
                break
    except zlib.error as error:
        raise _BadZip(f"{where} is damaged ({error}). Download or copy the zip again.") from error
    if size > member.file_size:
        raise _BadZip(f"{where} inflates to more than the {member.file_size} bytes that the zip declares. Make the zip again.")
    if not inflater.eof or size != member.file_size or crc != member.CRC:
        raise _BadZip(f"{where} is damaged (its length or CRC-32 is wrong). Download or copy the zip again.")
    content.seek(0)
    return content
