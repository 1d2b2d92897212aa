"""What preprocess left behind, seen by a reader: only files that manifest.json names exist."""

import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dfdc_ray import storage
from dfdc_ray.errors import UserError
from dfdc_ray.shards.schema import FORMAT_VERSION


@dataclass(frozen=True)
class ShardFile:
    """One Parquet file of face rows; `sha256` of its bytes in hexadecimal."""

    uri: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json. `data_hash` identifies the rows, `config` the preprocessing that made them."""

    root: str
    files: tuple[ShardFile, ...]
    config: dict[str, Any]
    data_hash: str

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)


def read_manifest(faces_uri: str) -> Manifest:
    """Read FACES/manifest.json. UserError if the folder is not a finished preprocess output of a format known here, or holds no face."""
    root = storage.absolute(faces_uri)
    uri = storage.join(root, "manifest.json")
    try:
        content = json.loads(storage.read_bytes(uri))
        version = content["format"]
        if version != FORMAT_VERSION:
            raise UserError(f"{uri} has format {version!r}, but {FORMAT_VERSION} is read here. Preprocess again into another --out.")
        files = tuple(ShardFile(storage.join(root, f["path"]), int(f["rows"]), f["sha256"]) for f in content["files"])
        manifest = Manifest(root=root, files=files, config=content["config"], data_hash=content["data_hash"])
    except FileNotFoundError as error:
        raise UserError(_absent(root)) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{uri} is damaged ({error!r}). Run the same `dfdc-ray preprocess` command again: it rewrites it.") from error
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
        raise UserError(f"{uri} is damaged ({error}). Run the same `dfdc-ray preprocess` command again: it rewrites it.") from error


def _absent(root: str) -> str:
    if storage.exists(storage.join(root, "receipts")):
        return f"{root} is not finished: run the same `dfdc-ray preprocess` command again to complete it."
    return f"{root} is not an output of `dfdc-ray preprocess` (it has no manifest.json). Give the folder that was its --out."
