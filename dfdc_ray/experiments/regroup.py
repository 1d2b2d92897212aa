"""The same faces with other groups, to show what a split that cuts people or videos makes of the numbers.

Never for a model that is to be used: what such a split says of it is wrong, which is the point. Nothing else in dfdc-ray splits so.
"""

import hashlib
from collections.abc import Iterator
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dfdc_ray import storage
from dfdc_ray.corpus.index import INDEX
from dfdc_ray.errors import UserError
from dfdc_ray.preprocess import publish
from dfdc_ray.preprocess import receipts as rc
from dfdc_ray.shards.manifest import open_shard, read_ledger, read_manifest
from dfdc_ray.shards.output import claim, write_data
from dfdc_ray.shards.rows import read_rows
from dfdc_ray.shards.schema import FACES
from dfdc_ray.shards.write import parquet_writer

By = Literal["frame", "family"]
_TRAIN, _VALIDATION = 0.70, 0.85  # shares of the groups up to which they are in training, and in validation: those of the rule hash:SEED


def regroup(faces: str, out: str, by: By) -> str:
    """Write a copy of a faces folder whose groups are families, or single frames: then each frame is a video and a group by itself.

    The groups are put into parts 0, 1 and 2, 70/15/15 % in an order drawn by hash; the rule that makes them the splits is returned. Does
    nothing more where it is done. UserError if OUT holds something else, or there are fewer than three groups.
    """
    manifest = read_manifest(faces)
    config = manifest.config | {"regrouped_by": by, "regrouped_from": manifest.data_hash}
    index = pq.read_table(pa.BufferReader(storage.read_bytes(storage.join(faces, "index.parquet")))).to_pylist()
    ledger = read_ledger(faces).to_pylist()
    names = {row["family_id"] for row in index} if by == "family" else set(_frames(read_rows(manifest).table).to_pylist())
    ends = (round(len(names) * _TRAIN), round(len(names) * _VALIDATION), len(names))
    if not 0 < ends[0] < ends[1] < ends[2]:
        raise UserError(f"{faces} has {len(names)} groups by {by}: too few for three splits.")
    rule = "parts:0/1/2"
    claim(out, config, folders=["faces"])
    if storage.exists(storage.join(out, "manifest.json")):
        return rule
    drawn = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    parts = {name: sum(turn >= end for end in ends) for turn, name in enumerate(drawn)}
    files: list[dict[str, Any]] = []
    core: dict[str, bool] = {}
    for number, file in enumerate(manifest.files):
        sink = pa.BufferOutputStream()
        with open_shard(file) as (parquet, _), parquet_writer(sink, FACES) as writer:
            for i in range(parquet.num_row_groups):
                table = _regrouped(parquet.read_row_group(i), by, parts)
                core.update(zip(table["video_id"].to_pylist(), table["core"].to_pylist(), strict=True))
                writer.write_table(table)
        files.append(write_data(out, f"faces/{number:05d}", sink.getvalue().to_pybytes(), rows=file.rows))
    if by == "family":
        index, ledger = (
            [row | {"group_id": row["family_id"], "part": parts[row["family_id"]]} for row in rows] for rows in (index, ledger)
        )
    else:
        judged = {frame: part for frame, part in parts.items() if core[frame] or part == 0}  # the extra frames of reals are for training
        index, ledger = (list(_by_frame(rows, judged)) for rows in (index, ledger))
        ledger = [row | {"core_decoded": int(core[row["video_id"]])} for row in ledger]
    publish.remember(out, pa.Table.from_pylist(index, schema=INDEX))
    publish.write(out, sorted(ledger, key=lambda row: row["video_id"]), files, config=config, versions=rc.versions())
    return rule


def _frames(table: pa.Table) -> pa.ChunkedArray:
    """A name for the frame of each row."""
    return pc.binary_join_element_wise(table["video_id"].cast(pa.string()), pc.cast(table["frame"], pa.string()), "#")


def _regrouped(table: pa.Table, by: By, parts: dict[str, int]) -> pa.Table:
    groups = table["family_id"] if by == "family" else _frames(table)
    changed = {"group_id": groups, "part": pa.array([parts[name] for name in groups.to_pylist()], pa.int32())}
    if by == "frame":
        changed |= {"video_id": groups, "family_id": groups}
    for name, column in changed.items():
        table = table.set_column(table.schema.get_field_index(name), name, column)
    return table


def _by_frame(videos: list[dict[str, Any]], parts: dict[str, int]) -> Iterator[dict[str, Any]]:
    """Of each video a row for each of these frames of it."""
    by_video: dict[str, list[str]] = {}
    for frame in parts:
        by_video.setdefault(frame.rpartition("#")[0], []).append(frame)
    for row in videos:
        for frame in by_video.get(row["video_id"], []):
            yield row | {"video_id": frame, "family_id": frame, "group_id": frame, "part": parts[frame]}
