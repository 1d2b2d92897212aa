"""What an output says of itself, made from its receipts whenever a run ends, however it ends.

OUT/index.parquet    every video of every run
OUT/ledger.parquet   what became of each video that has a receipt in force
OUT/manifest.json    the files of faces that count, with their SHA-256

A run adds its videos to the index when it begins and, since another run may have done so meanwhile, again before it publishes: of two runs
with different parts on one output, the one that ends last publishes for both.
"""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dfdc_ray import storage
from dfdc_ray.errors import UserError
from dfdc_ray.preprocess.plan import Unit
from dfdc_ray.preprocess.receipts import LEDGER, Receipts, overtaken
from dfdc_ray.preprocess.settings import Settings
from dfdc_ray.shards.format import FORMAT_VERSION
from dfdc_ray.shards.output import data_hash, json_bytes


def remember(out: str, index: pa.Table) -> pa.Table:
    """Add this run's videos to OUT/index.parquet and return the whole: earlier parts stay when a run names only new ones."""
    uri = storage.join(out, "index.parquet")
    if storage.exists(uri):
        earlier = pq.read_table(pa.BufferReader(storage.read_bytes(uri)))
        _check_same_videos(out, earlier, index)
        again = pc.is_in(earlier["video_id"], value_set=index["video_id"].combine_chunks())
        index = pa.concat_tables([earlier.filter(pc.invert(again)), index])
    index = index.sort_by("video_id").combine_chunks()  # the same bytes, in how many runs the videos ever came
    groups: dict[str, str] = {}
    for row in index.select(["family_id", "group_id"]).to_pylist():
        if groups.setdefault(row["family_id"], row["group_id"]) != row["group_id"]:
            raise UserError(
                f"The family {row['family_id']} would be in two groups, {groups[row['family_id']]} and {row['group_id']}, because its "
                f"videos were indexed apart. Give all its parts in one command with a new --out, or a groups.csv."
            )
    _replace(uri, _parquet(index))
    return index


def _check_same_videos(out: str, earlier: pa.Table, index: pa.Table) -> None:
    """Two corpora with folders of the same name give the same ids to different videos: their sizes tell."""
    sizes = dict(zip(earlier["video_id"].to_pylist(), earlier["size_bytes"].to_pylist(), strict=True))
    for row in index.select(["video_id", "size_bytes", "uri"]).to_pylist():
        before = sizes.get(row["video_id"])
        if before is not None and row["size_bytes"] is not None and before != row["size_bytes"]:
            raise UserError(
                f"{row['uri']} ({row['size_bytes']} bytes) would be {row['video_id']}, but {out} knows another video of {before} bytes "
                "by that name. Name the corpus (--corpus NAME=URI), or give another --out."
            )


def publish(receipts: Receipts, units: Iterable[Unit], settings: Settings, *, versions: dict[str, str]) -> pa.Table:
    """Write ledger and manifest from the receipts in force; return the ledger, ordered by video_id.

    units: all that the index knows. A receipt of another one, or one that the index has overtaken, does not count: its videos would be in
    two families, or on two sides of a split, until they are done again.
    versions: of what writes this (those that made the rows are in stats/).
    """
    planned = {unit.unit_id: unit for unit in units}
    written = receipts.read().items()
    done = {unit_id: receipt for unit_id, receipt in written if unit_id in planned and not overtaken(receipt, planned[unit_id])}
    rows = sorted((row for r in done.values() for row in r.videos), key=lambda row: row["video_id"])
    files = [r.faces for _, r in sorted(done.items()) if r.faces]
    ledger = write(receipts.out, rows, files, config=asdict(settings), versions=versions)
    receipts.write_snapshot()
    return ledger


def write(
    out: str, ledger: list[dict[str, Any]], files: list[dict[str, Any]], *, config: dict[str, Any], versions: dict[str, str]
) -> pa.Table:
    """Write the ledger, then the manifest of these files; return the ledger as a table, ordered as its rows are."""
    table = pa.Table.from_pylist(ledger, schema=LEDGER)
    manifest = {
        "format": FORMAT_VERSION,
        "kind": "plain",
        "data_hash": data_hash(files),
        "config": config,
        "written_by": versions,
        "files": files,
    }
    _replace(storage.join(out, "ledger.parquet"), _parquet(table))
    _replace(storage.join(out, "manifest.json"), json_bytes(manifest))
    return table


def _replace(uri: str, data: bytes) -> None:
    """Write it unless it is there: a run that finds nothing to do changes nothing."""
    if not (storage.exists(uri) and storage.read_bytes(uri) == data):
        storage.write_bytes(uri, data)


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()
