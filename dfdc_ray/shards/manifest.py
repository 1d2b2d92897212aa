"""What preprocess or pack left behind, seen by a reader: only files that manifest.json names exist."""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from dfdc_ray import storage
from dfdc_ray.errors import UserError
from dfdc_ray.shards.format import FORMAT_VERSION

_BUFFER = 64 << 10  # bytes: the small columns of a row group of some MB
_BEGUN = (("receipts", "preprocess"), ("shards", "pack"))  # the folder that shows which command has begun an output


@dataclass(frozen=True)
class ShardFile:
    """One Parquet file of face rows; `sha256` of its bytes in hexadecimal."""

    uri: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json.

    kind: plain (of preprocess: a file a family, a row group a video; of import: large files) or packed (shuffled, large row groups).
    data_hash: identifies the rows and their order. config: the preprocessing that made the rows.
    """

    root: str
    kind: Literal["plain", "packed"]
    files: tuple[ShardFile, ...]
    config: dict[str, Any]
    data_hash: str

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)


def read_manifest(faces_uri: str) -> Manifest:
    """Read FACES/manifest.json. UserError if the folder is not a finished output of preprocess or pack known here, or holds no face."""
    root = storage.absolute(faces_uri)
    uri = storage.join(root, "manifest.json")
    try:
        content = json.loads(storage.read_bytes(uri))
        version = content["format"]
        if version != FORMAT_VERSION:
            raise UserError(f"{uri} has format {version!r}, but {FORMAT_VERSION} is read here. Preprocess again into another --out.")
        files = tuple(ShardFile(storage.join(root, f["path"]), int(f["rows"]), f["sha256"]) for f in content["files"])
        manifest = Manifest(root=root, kind=content["kind"], files=files, config=content["config"], data_hash=content["data_hash"])
    except FileNotFoundError as error:
        raise UserError(_absent(root)) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{uri} is damaged ({error!r}). Run the same command again that made it: it rewrites it.") from error
    if not manifest.rows:
        raise UserError(f"{root} holds no face at all. Its ledger.parquet says what became of each video.")
    return manifest


def read_ledger(faces_uri: str) -> pa.Table:
    """FACES/ledger.parquet: how each video ended, one row a video. UserError if it is absent or damaged."""
    root = storage.absolute(faces_uri)
    uri = storage.join(root, "ledger.parquet")
    try:
        return pq.read_table(pa.BufferReader(storage.read_bytes(uri)))
    except FileNotFoundError as error:
        raise UserError(_absent(root)) from error
    except pa.ArrowInvalid as error:
        raise UserError(f"{uri} is damaged ({error}). Run the same command again that made it: it rewrites it.") from error


def parquet_input(uri: str) -> BinaryIO | pa.NativeFile:
    """A file for Parquet's reader, which asks for whole ranges itself: only a little more than each is fetched from S3.

    Local files are opened by pyarrow, which reads them in half the time, after storage has seen that they can be opened.
    """
    stream = storage.open_input(uri)
    if storage.is_s3(uri):
        return io.BufferedReader(stream.detach(), _BUFFER)
    stream.close()
    return pa.OSFile(storage.absolute(uri))


@contextmanager
def open_parquet(uri: str, *, read_dictionary: list[str] | None = None) -> Iterator[tuple[pq.ParquetFile, int]]:
    """A shard to read from, and its size in bytes. UserError if it is absent or damaged: pages have checksums (write.py)."""
    try:
        with (
            parquet_input(uri) as stream,
            pq.ParquetFile(stream, read_dictionary=read_dictionary, page_checksum_verification=True) as parquet,
        ):
            yield parquet, stream.seek(0, io.SEEK_END)
    except FileNotFoundError as error:
        raise UserError(f"{uri} is absent, but the manifest names it. Copy the whole folder again.") from error
    except (pa.ArrowInvalid, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the system's; Parquet's own have no number
            raise
        raise UserError(f"{uri} is not a face shard, or it is damaged ({error}). Copy it again.") from error


@contextmanager
def open_shard(file: ShardFile, *, read_dictionary: list[str] | None = None) -> Iterator[tuple[pq.ParquetFile, int]]:
    """The same, also UserError if it is of another length than the manifest says."""
    with open_parquet(file.uri, read_dictionary=read_dictionary) as (parquet, size):
        if parquet.metadata.num_rows != file.rows:
            raise UserError(
                f"{file.uri} has {parquet.metadata.num_rows} rows, but the manifest says {file.rows}. Copy the whole folder again."
            )
        yield parquet, size


def _absent(root: str) -> str:
    for folder, command in _BEGUN:
        if storage.exists(storage.join(root, folder)):
            return f"{root} is not finished: run the same `dfdc-ray {command}` command again to complete it."
    return f"{root} is not an output of `dfdc-ray preprocess` or `dfdc-ray pack`: it has no manifest.json. Give what was --out there."
