"""Packing: which rows of a preprocess output go into which large shard, and the bytes of one such shard. Knows nothing of Ray.

Groups are put into sets: a large one (a DFDC part) is a set by itself, small ones are put together until they are about a shard. No shard
has rows of two sets, so a split that keeps groups whole reads whole shards, but for those of small groups; such that share a row group of
the source, as `import` writes it, stay together. Within a set the source files (families) are shuffled and cut into shards of equal size;
within a shard the tracks are shuffled and cut into row groups. So each source file is read once, but for those at a cut, and a row group
has tracks of many families.
"""

import hashlib
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dfdc_ray import storage
from dfdc_ray.errors import UserError
from dfdc_ray.shards.manifest import Manifest, ShardFile, open_shard
from dfdc_ray.shards.schema import FACES
from dfdc_ray.shards.write import parquet_writer

_THREADS = 16  # for reading many small objects
_CELL = ["group_id", "part", "label"]


@dataclass(frozen=True)
class Piece:
    """The row groups of one source file that go into one shard."""

    file: ShardFile
    row_groups: tuple[int, ...]


@dataclass(frozen=True)
class Shard:
    """One shard to make. bytes: of its images, as the sources' footers say."""

    number: int
    pieces: tuple[Piece, ...]
    rows: int
    bytes: int

    @property
    def plan_hash(self) -> str:
        """SHA-256 of what it is made of."""
        return hashlib.sha256(repr([(piece.file.sha256, piece.row_groups) for piece in self.pieces]).encode()).hexdigest()


@dataclass(frozen=True)
class Packed:
    """One shard made. data: the Parquet file. cells: videos, tracks and rows by group_id, part and label."""

    data: bytes
    rows: int
    row_groups: int
    cells: list[dict[str, Any]]


def plan(manifest: Manifest, *, seed: int, shard_bytes: float) -> list[Shard]:
    """All shards, from the footers of the source files: a few numbers for each video are held, nothing for each row.

    A function of the manifest, the seed and the size. UserError if a source file is absent, damaged or not of preprocess.
    """
    found = _scan(manifest.files)
    rng = np.random.default_rng(seed)
    sets = _sets(np.bincount(found.group, weights=found.bytes), shard_bytes, rng)[found.group]
    turn = rng.permutation(len(manifest.files))
    order = np.lexsort((found.number, turn[found.file], sets))
    shards: list[Shard] = []
    for members in _runs(order, sets[order]):
        for chosen in _portions(members, found.bytes[members], shard_bytes):
            pieces = [
                Piece(manifest.files[found.file[some[0]]], tuple(found.number[some].tolist())) for some in _runs(chosen, found.file[chosen])
            ]
            shards.append(Shard(len(shards), tuple(pieces), int(found.rows[chosen].sum()), int(found.bytes[chosen].sum())))
    return shards


def build(shard: Shard, *, seed: int, row_group_bytes: float) -> Packed:
    """Read the shard's rows, shuffle its tracks and write it. The same arguments give the same bytes.

    Holds the rows and the result. UserError if a source file is absent or not what the manifest says.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        tables = list(pool.map(_read, shard.pieces))
    cells = _cells(tables)
    tracks = [track for table in tables for track in _tracks(table)]
    order = np.random.default_rng([seed, shard.number]).permutation(len(tracks))
    sizes = np.array([size for _, size in tracks])[order]
    row_groups = _portions(order, sizes, row_group_bytes)
    sink = io.BytesIO()  # it neither doubles nor copies
    with parquet_writer(sink, FACES) as writer:
        for chosen in row_groups:
            writer.write_table(pa.concat_tables([tracks[i][0] for i in chosen]).combine_chunks())
    return Packed(sink.getvalue(), sum(table.num_rows for table in tables), len(row_groups), cells)


@dataclass(frozen=True)
class _RowGroups:
    """Every row group of the source, int64 [G] each: file, number in the file, rows, bytes of its images, number of its group_id.

    Those of a row group with several groups are whole in it, and have one number.
    """

    file: np.ndarray
    number: np.ndarray
    rows: np.ndarray
    bytes: np.ndarray
    group: np.ndarray


def _scan(files: Sequence[ShardFile]) -> _RowGroups:
    with ThreadPoolExecutor(_THREADS) as pool:
        footers = list(pool.map(_footer, files))
    _check_groups([(*span, file.uri) for file, (_, _, spans) in zip(files, footers, strict=True) for span in spans])
    counts = [len(rows) for rows, _, _ in footers]
    rows, sizes = (np.concatenate([np.array(footer[i], np.int64) for footer in footers]) for i in (0, 1))
    group = np.unique(np.array([first for _, _, spans in footers for first, _ in spans]), return_inverse=True)[1]
    number = np.concatenate([np.arange(n) for n in counts])
    return _RowGroups(np.repeat(np.arange(len(files)), counts), number, rows, sizes, group)


def _check_groups(spans: list[tuple[str, str, str]]) -> None:
    """Given first and last group_id and file of each row group: UserError if one with several groups may not have them whole."""
    for before, (first, last, uri) in pairwise(sorted(spans)):
        if first <= before[1] and not before[0] == before[1] == first == last:
            raise UserError(
                f"{uri} has a row group of several groups, of which one is elsewhere too: it is not an output of `dfdc-ray preprocess` or "
                "`import`."
            )


def _footer(file: ShardFile) -> tuple[list[int], list[int], list[tuple[str, str]]]:
    """Of each row group the rows, the bytes of its images, and the first and the last group_id in it."""
    with open_shard(file) as (parquet, _):
        image, group = parquet.schema.names.index("bytes"), parquet.schema.names.index("group_id")
        found = [parquet.metadata.row_group(i) for i in range(parquet.num_row_groups)]
        ids = [row_group.column(group).statistics for row_group in found]
        if not all(s is not None and s.has_min_max for s in ids):
            raise UserError(f"{file.uri} does not say which groups it has: it is not an output of `dfdc-ray preprocess` or `import`.")
        return [g.num_rows for g in found], [g.column(image).total_uncompressed_size for g in found], [(s.min, s.max) for s in ids]


def _sets(sizes: np.ndarray, target: float, rng: np.random.Generator) -> np.ndarray:
    """int64 [groups]: the set of each group, from their sizes in bytes."""
    large, small = np.flatnonzero(sizes >= target / 2), rng.permutation(np.flatnonzero(sizes < target / 2))
    sets = np.empty(len(sizes), np.int64)
    for number, members in enumerate([*large[:, None], *_portions(small, sizes[small], target)]):
        sets[members] = number
    return sets


def _portions(items: np.ndarray, sizes: np.ndarray, target: float) -> list[np.ndarray]:
    """Cut a sequence of items of these sizes into portions of equal size, as near to `target` as whole portions come."""
    ends = np.cumsum(sizes)
    if not len(items):
        return []
    portions = max(1, round(float(ends[-1]) / target))
    return list(_runs(items, ((ends - sizes / 2) * (portions / max(1, ends[-1]))).astype(np.int64)))


def _runs(items: np.ndarray, keys: np.ndarray) -> Iterator[np.ndarray]:
    """Consecutive items with the same key."""
    yield from np.split(items, np.flatnonzero(np.diff(keys)) + 1)


def _read(piece: Piece) -> pa.Table:
    file = piece.file
    try:
        data = storage.read_bytes(file.uri)
    except FileNotFoundError as error:
        raise UserError(f"{file.uri} is absent, but the manifest names it. Copy the whole folder again.") from error
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise UserError(f"{file.uri} is damaged: its SHA-256 is not the one in the manifest. Copy it again.")
    with pq.ParquetFile(pa.BufferReader(data)) as parquet:
        table = parquet.read_row_groups(list(piece.row_groups), use_threads=False)
    if table.schema != FACES:
        raise UserError(f"{file.uri} has other columns than this version of dfdc-ray writes. Preprocess again into another --out.")
    return table


def _tracks(table: pa.Table) -> list[tuple[pa.Table, int]]:
    """The rows of each track of each video, in their order, and the bytes of their images. Copies no image."""
    video = pc.dictionary_encode(table["video_id"]).combine_chunks().indices.to_numpy().astype(np.int64)
    track = pc.fill_null(table["track_id"], -1).to_numpy()  # null for whole frames: one track
    size = pc.fill_null(pc.binary_length(pc.struct_field(table["image"], "bytes")), 0).to_numpy()
    found: dict[tuple[int, int], list[pa.Table]] = {}
    sizes: dict[tuple[int, int], int] = {}
    for run in _runs(np.arange(len(video)), video * (track.max() + 2) + track):
        key = (int(video[run[0]]), int(track[run[0]]))
        found.setdefault(key, []).append(table.slice(run[0], len(run)))
        sizes[key] = sizes.get(key, 0) + int(size[run].sum())
    return [(pa.concat_tables(tables), sizes[key]) for key, tables in found.items()]


def _cells(tables: list[pa.Table]) -> list[dict[str, Any]]:
    small = pa.concat_tables([table.select([*_CELL, "video_id", "track_id"]) for table in tables])
    tracks = small.group_by([*_CELL, "video_id", "track_id"]).aggregate([([], "count_all")])
    cells = tracks.group_by(_CELL).aggregate([("video_id", "count_distinct"), ([], "count_all"), ("count_all", "sum")])
    return cells.rename_columns([*_CELL, "videos", "tracks", "rows"]).sort_by([(name, "ascending") for name in _CELL]).to_pylist()
