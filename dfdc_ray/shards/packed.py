"""The output folder of pack: what is done, once and exactly once.

OUT/config.json                            the options and the source's data hash; others are refused
OUT/shards/<number>.<sha256>.parquet       written before its receipt; a file that no receipt names does not exist
OUT/shards/<number>.json                   the commit of one shard
OUT/index.parquet  ledger.parquet          the source's own, so that evaluation knows every video
OUT/manifest.json                          written last
"""

import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from dfdc_ray import storage
from dfdc_ray.errors import UserError
from dfdc_ray.shards.format import FORMAT_VERSION
from dfdc_ray.shards.manifest import Manifest
from dfdc_ray.shards.output import claim, data_hash, json_bytes, write_data
from dfdc_ray.shards.pack import Shard, build

_THREADS = 16  # for reading many small objects
_COUNTED = ("videos", "tracks", "rows")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides which bytes come out."""

    faces_data_hash: str
    seed: int
    shard_mb: float
    row_group_mb: float
    format_version: int = FORMAT_VERSION


def open_output(out: str, settings: Settings) -> None:
    """Take a new folder, or one that was begun with the same settings. UserError names what differs otherwise."""
    claim(out, asdict(settings), folders=["shards"])


def done(out: str, shards: Sequence[Shard]) -> dict[int, dict[str, Any]]:
    """The receipts of those shards that are made, by number. One of another plan (other versions of the libraries) does not count."""
    known = {f"{_name(shard)}.json": shard for shard in shards}
    entries = [entry for entry in storage.list_dir(storage.join(out, "shards")) if entry.name in known]
    with ThreadPoolExecutor(_THREADS) as pool:
        receipts = list(pool.map(lambda entry: json.loads(storage.read_bytes(entry.uri)), entries))
    pairs = [(known[entry.name], receipt) for entry, receipt in zip(entries, receipts, strict=True)]
    return {shard.number: receipt for shard, receipt in pairs if receipt["plan"] == shard.plan_hash}


def commit(out: str, shard: Shard, settings: Settings) -> dict[str, Any]:
    """Make one shard, write it, then its receipt, which is returned."""
    packed = build(shard, seed=settings.seed, row_group_bytes=settings.row_group_mb * 1e6)
    file = write_data(out, f"shards/{_name(shard)}", packed.data, rows=packed.rows)
    file |= {"bytes": len(packed.data), "row_groups": packed.row_groups}
    receipt = {"plan": shard.plan_hash, "file": file, "cells": packed.cells}
    storage.write_bytes(storage.join(out, "shards", f"{_name(shard)}.json"), json_bytes(receipt))
    return receipt


def companions(source: Manifest) -> dict[str, bytes]:
    """The files of the source, by name, that a packed folder has as they are. UserError if one is absent."""
    found = {}
    for name in ("index.parquet", "ledger.parquet"):
        uri = storage.join(source.root, name)
        try:
            found[name] = storage.read_bytes(uri)
        except FileNotFoundError as error:
            raise UserError(
                f"{uri} is absent. Copy the whole preprocess output, or run its `dfdc-ray preprocess` command again."
            ) from error
    return found


def publish(
    out: str,
    source: Manifest,
    receipts: dict[int, dict[str, Any]],
    settings: Settings,
    *,
    copied: dict[str, bytes],
    versions: dict[str, str],
) -> dict[str, Any]:
    """Write the companions, then the manifest from the receipts of all shards, and return it."""
    files = [
        receipt["file"] | {"groups": sorted({cell["group_id"] for cell in receipt["cells"]})} for _, receipt in sorted(receipts.items())
    ]
    cells = [cell for receipt in receipts.values() for cell in receipt["cells"]]
    rows = sum(file["rows"] for file in files)
    if rows != source.rows:
        raise RuntimeError(f"{out} holds {rows} rows, but {source.root} has {source.rows}")
    for name, data in copied.items():
        storage.write_bytes(storage.join(out, name), data)
    manifest = {
        "format": FORMAT_VERSION,
        "kind": "packed",
        "data_hash": data_hash(files),
        "config": source.config,
        "pack": asdict(settings),
        "written_by": versions,
        "counts": {name: _sums(cells, key) for name, key in (("label", "label"), ("part", "part"), ("group", "group_id"))},
        "files": files,
    }
    storage.write_bytes(storage.join(out, "manifest.json"), json_bytes(manifest))
    return manifest


def _name(shard: Shard) -> str:
    return f"{shard.number:05d}"


def _sums(cells: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """Videos, tracks and rows for each value of `key`; unknown (null) ones last."""
    sums: dict[Any, Counter[str]] = {}
    for cell in cells:
        sums.setdefault(cell[key], Counter()).update({name: cell[name] for name in _COUNTED})
    return [{key: value} | {name: sums[value][name] for name in _COUNTED} for value in sorted(sums, key=lambda v: (v is None, v or 0))]
