"""Videos inside zips, read in place: nothing is unpacked to disk.

A member is addressed as ZIP!/MEMBER, or OUTER.zip!/INNER.zip!/MEMBER for a zip in a zip (ZIP ends in .zip). A stored member is a window on
the zip, so that a long video does not enter memory; a deflated one is inflated into memory and its CRC-32 checked. An inner zip must be
stored. The format: PKWARE's APPNOTE.TXT, 4.3.7 (local file header); the central directory is read by Python's zipfile.
"""

import functools
import io
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import BinaryIO

from dfdc_ray import storage
from dfdc_ray.errors import StorageError, UserError, VideoError

MAX_INFLATED = 2 << 30  # bytes of memory that one deflated member may take
_CHUNK = 1 << 20
_WINDOW_BUFFER = 64 << 10
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, ..., length of the name, length of the extra field
_SEPARATOR = re.compile(r"(?<=\.zip)!/", re.IGNORECASE)
# Absolute names, names that climb out of their folder, are no name or mean something else on Windows, and such as no uri could address.
_UNSAFE = re.compile(r"^/|(^|/)\.\.(/|$)|(^|/)\.$|\\|\0|^[A-Za-z]:|\.zip!/", re.IGNORECASE)
_ENCRYPTED = 0x1
# What zipfile is known to raise on a damaged central directory.
_DAMAGED = (zipfile.BadZipFile, struct.error, ValueError, EOFError, OverflowError, NotImplementedError, OSError)


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

    Raises VideoError("open", ...) when the file is absent or unreadable or its zip damaged, StorageError when storage fails or S3 denies
    access (which says nothing about the video).
    """
    try:
        return _open(uri)
    except (FileNotFoundError, _BadZip) as error:
        raise VideoError("open", str(error)) from error
    except UserError as error:
        if storage.is_s3(uri):
            raise StorageError(str(error)) from error
        raise VideoError("open", str(error)) from error


def is_zip(name: str) -> bool:
    """Whether a file name or uri is a zip's."""
    return name.lower().endswith(".zip")


def list_members(zip_uri: str) -> list[Member]:
    """The files in a zip, in its own order; folders are left out.

    Raises UserError when the zip is damaged, or a member is encrypted, listed twice, or has a name that no unpacker should follow, and
    FileNotFoundError or StorageError like storage.
    """
    try:
        with _open(zip_uri) as file:
            members = _directory(zip_uri, file.seek(0, os.SEEK_END)).values()
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
    opened, *names = _SEPARATOR.split(uri)
    file = storage.open_input(opened)
    try:
        for name in names:
            directory = _directory(opened, file.seek(0, os.SEEK_END))
            file = _open_member(file, directory, opened, name)
            opened = f"{opened}!/{name}"
    except BaseException:
        file.close()
        raise
    return file


@functools.lru_cache(maxsize=8)
def _directory(zip_uri: str, _size: int) -> Mapping[str, zipfile.ZipInfo]:
    """The central directory, by name. Kept, because the videos of a family and of those around it come from the same zip."""
    with _open(zip_uri) as file:
        try:
            members = zipfile.ZipFile(file).infolist()
        except _DAMAGED as error:
            raise _BadZip(f"{zip_uri} is damaged or not complete ({error}). Download or copy it again.") from error
    directory: dict[str, zipfile.ZipInfo] = {}
    for member in members:
        name = member.orig_filename  # `filename` ends at a NUL
        if not name or _UNSAFE.search(name):
            raise _BadZip(f"{zip_uri}: the entry {name!r} has an unsafe name. Make the zip again, with plain relative names.")
        if name in directory:
            raise _BadZip(f"{zip_uri}: the entry {name!r} is there twice. Make the zip again.")
        directory[name] = member
    return directory


def _refuse_encrypted(zip_uri: str, member: zipfile.ZipInfo) -> None:
    if member.flag_bits & _ENCRYPTED:
        raise _BadZip(f"{zip_uri}: the entry {member.filename!r} is encrypted. Unpack the zip with its password and give the folder.")


def _open_member(file: BinaryIO, directory: Mapping[str, zipfile.ZipInfo], zip_uri: str, name: str) -> BinaryIO:
    """A member as a file of its own, which takes over `file`."""
    member = directory.get(name)
    if member is None:
        raise _BadZip(f"{zip_uri}: there is no entry {name!r}")
    _refuse_encrypted(zip_uri, member)
    where = f"{zip_uri}: the entry {name!r}"
    if is_zip(name) and member.compress_type != zipfile.ZIP_STORED:
        raise _BadZip(f"{where} is compressed, so it cannot be read in place. Unpack the outer zip once, or make it again with `zip -0`.")
    zip_size = file.seek(0, os.SEEK_END)
    file.seek(max(member.header_offset, 0))
    header = file.read(_LOCAL_HEADER.size)
    if member.header_offset < 0 or len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\3\4"):
        raise _BadZip(f"{where} is not where the zip's directory says")
    _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    start = member.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    if start + member.compress_size > zip_size:
        raise _BadZip(f"{where} goes beyond the end of the zip: it is not complete. Download or copy it again.")
    if member.compress_type == zipfile.ZIP_STORED:
        if member.file_size != member.compress_size:
            raise _BadZip(f"{where} is stored, but with two different sizes")
        return io.BufferedReader(storage.RangedFile(_reader(file, start), member.file_size, file.close), _WINDOW_BUFFER)
    if member.compress_type != zipfile.ZIP_DEFLATED:
        raise _BadZip(f"{where} is compressed by method {member.compress_type}; only stored and deflated entries can be read")
    if member.file_size > MAX_INFLATED:
        raise _BadZip(f"{where} would take {member.file_size} bytes of memory (limit {MAX_INFLATED}). Unpack the zip and give the folder.")
    file.seek(start)
    content = _inflate(file, member, where)
    file.close()
    return content


def _reader(file: BinaryIO, start: int) -> Callable[[int, int], bytes]:
    def read_at(size: int, position: int) -> bytes:
        file.seek(start + position)
        return file.read(size)

    return read_at


def _inflate(file: BinaryIO, member: zipfile.ZipInfo, where: str) -> BinaryIO:
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
        raise _BadZip(f"{where} is damaged ({error})") from error
    if size > member.file_size:
        raise _BadZip(f"{where} inflates to more than the {member.file_size} bytes that the zip declares")
    if not inflater.eof or size != member.file_size or crc != member.CRC:
        raise _BadZip(f"{where} is damaged (its length or CRC-32 is wrong)")
    content.seek(0)
    return content
