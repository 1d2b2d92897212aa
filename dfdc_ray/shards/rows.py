"""Which face rows there are and where: the small columns of all shards, without the pictures."""

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dfdc_ray.corpus.splits import Split, assign
from dfdc_ray.errors import UserError
from dfdc_ray.shards.manifest import Manifest, ShardFile, open_shard

_THREADS = 16  # for reading many small objects
_COLUMNS = ["video_id", "family_id", "group_id", "part", "label", "core", "frame", "time_s", "track_id", "clip_id", "clip_position"]
_DICTIONARY = ["video_id", "family_id", "group_id", "label"]


@dataclass(frozen=True)
class RowTable:
    """Where every face row is, and its small columns.

    files: URIs of the shards; sizes: in bytes; sha256: of their bytes, in hexadecimal.
    groups: int64 [G,4], one line for each row group: file, row group in the file, bytes of its images, its first row in the file.
    table: one line for each row: group (line of `groups`), row (in the row group), video_id, family_id, group_id, part, label, core,
    frame, time_s, track_id, clip_id, clip_position. Of `clips_of` one line for each clip.
    unheard: how many labelled videos `samples_of` left out for want of sound.
    """

    files: tuple[str, ...]
    sizes: tuple[int, ...]
    sha256: tuple[str, ...]
    groups: np.ndarray
    table: pa.Table
    unheard: int = 0

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def take(self, wanted: np.ndarray) -> "RowTable":
        """These rows (bool mask or integer positions)."""
        positions = np.flatnonzero(wanted) if wanted.dtype == bool else wanted
        return replace(self, table=self.table.take(pa.array(positions)))

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """float32 [N]: 1 fake, 0 real, nan unlabelled."""
        fake = pc.cast(pc.equal(self.table["label"], "FAKE"), pa.float32())
        return fake.to_numpy().astype(np.float32, copy=False)

    @functools.cached_property
    def videos(self) -> np.ndarray:
        """int64 [N]: a number for each video, the same for all of its rows."""
        return pc.dictionary_encode(self.table["video_id"]).combine_chunks().indices.to_numpy().astype(np.int64)

    @property
    def clip_length(self) -> int | None:
        """Frames in each line's clip; None where lines are single frames."""
        kind = self.table.schema.field("group").type
        return kind.list_size if pa.types.is_fixed_size_list(kind) else None

    def column(self, name: str) -> np.ndarray:
        """[N]; of `group`, `row` and has_sound of clips [N,T]."""
        column = self.table[name].combine_chunks()
        if not pa.types.is_fixed_size_list(column.type):
            return column.to_numpy(zero_copy_only=False)
        return column.flatten().to_numpy(zero_copy_only=False).reshape(len(self), column.type.list_size)


def read_rows(manifest: Manifest, *, more: Sequence[str] = ()) -> RowTable:
    """Read the small columns of every shard that the manifest names. UserError if one is absent, damaged or of another length.

    more: further columns, such as landmarks and crop.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        parts = list(pool.map(functools.partial(_read_small, more=more), manifest.files))
    groups: list[tuple[int, int, int, int]] = []
    tables = []
    for number, (table, row_groups, _) in enumerate(parts):
        first = len(groups)
        counts = [rows for rows, _ in row_groups]
        starts = np.cumsum([0, *counts]).tolist()
        groups += [(number, group, size, starts[group]) for group, (_, size) in enumerate(row_groups)]
        group = np.repeat(np.arange(first, first + len(counts), dtype=np.int32), counts)
        row = np.concatenate([np.arange(n, dtype=np.int32) for n in counts])
        tables.append(table.add_column(0, "row", pa.array(row)).add_column(0, "group", pa.array(group)))
    table = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
    return RowTable(
        files=tuple(file.uri for file in manifest.files),
        sizes=tuple(size for _, _, size in parts),
        sha256=tuple(file.sha256 for file in manifest.files),
        groups=np.array(groups, dtype=np.int64).reshape(-1, 4),
        table=table,
    )


def samples_of(manifest: Manifest, *, clips: bool, sound: bool = False, more: Sequence[str] = ()) -> RowTable:
    """`read_rows`, or the clips of them; with sound only those in which every frame has it. UserError if there is none such."""
    rows = read_rows(manifest, more=(*more, "has_sound") if sound else more)
    if sound:
        heard = rows.table["has_sound"] if "has_sound" in rows.table.column_names else pa.nulls(len(rows), pa.bool_())
        if len(rows) and not pc.any(heard).as_py():
            if manifest.config.get("sound"):
                raise UserError("The model listens, and no video of these faces has sound.")
            raise UserError("These faces have no sound, and the model listens: preprocess with --sampling clips --sound.")
        others = [name for name in rows.table.column_names if name != "has_sound"]
        rows = replace(rows, table=rows.table.select(others).append_column("has_sound", pc.fill_null(heard, False)))
    samples = clips_of(rows) if clips else rows
    if sound:
        there = samples.column("has_sound")
        heard = samples.take(np.asarray(there.all(1)) if clips else there)
        if not len(heard):
            raise UserError("The model listens, and none of these clips is whole and has sound in all of its frames.")
        return replace(heard, unheard=_labelled_videos(samples) - _labelled_videos(heard))
    return samples


def _labelled_videos(rows: RowTable) -> int:
    return len(np.unique(rows.videos[~np.isnan(rows.labels)]))


def clips_of(rows: RowTable) -> RowTable:
    """One line for each clip of a track that has all its frames: its first frame's, with lists of every frame's for `group`, `row` and
    (if it is there) has_sound.

    All frames are as many as the longest clip has; shorter ones are left out. UserError if there are no clips, or they are of one frame.
    """
    clip, position = (pc.fill_null(rows.table[name], -1).to_numpy() for name in ("clip_id", "clip_position"))
    track = pc.fill_null(rows.table["track_id"], 0).to_numpy()
    if not len(rows) or position.max() < 0:
        raise UserError("These faces are single frames, but the model looks at clips: preprocess with --sampling clips.")
    length = int(position.max()) + 1
    if length < 2:
        raise UserError("These clips are of one frame each: preprocess with --sampling clips and more --frames.")
    order = np.lexsort((position, clip, track, rows.videos))
    order = order[clip[order] >= 0]
    key = np.stack([rows.videos, track, clip])[:, order]
    starts = np.flatnonzero(np.r_[True, (np.diff(key) != 0).any(0)])
    whole = starts[np.diff(np.r_[starts, len(order)]) == length]
    members = order[whole[:, None] + np.arange(length)]
    table = rows.table.take(pa.array(members[:, 0]))
    for name in (name for name in ("group", "row", "has_sound") if name in table.column_names):
        values = pa.FixedSizeListArray.from_arrays(pa.array(rows.column(name)[members].ravel()), length)
        table = table.set_column(table.schema.get_field_index(name), name, values)
    return replace(rows, table=table)


def split_mask(rows: RowTable, rule: str, split: Split) -> np.ndarray:
    """bool [N]: which rows belong to this split by the rule. UserError if the rule is bad or cuts a group."""
    pairs = rows.table.select(["group_id", "part"]).group_by(["group_id", "part"]).aggregate([])
    groups = pairs["group_id"].cast(pa.string()).to_pylist()
    chosen = {group for group, s in zip(groups, assign(rule, groups, pairs["part"].to_pylist()), strict=True) if s == split}
    return pc.is_in(rows.table["group_id"].cast(pa.string()), value_set=pa.array(sorted(chosen), pa.string())).to_numpy()


def _read_small(file: ShardFile, *, more: Sequence[str]) -> tuple[pa.Table, list[tuple[int, int]], int]:
    """The small columns, for each row group its number of rows and the bytes of its images, and the size of the file."""
    with open_shard(file, read_dictionary=_DICTIONARY) as (parquet, size):
        groups = [parquet.metadata.row_group(g) for g in range(parquet.num_row_groups)]
        image = parquet.schema.names.index("bytes")
        row_groups = [(group.num_rows, group.column(image).total_uncompressed_size) for group in groups]
        return parquet.read(columns=[*_COLUMNS, *more]), row_groups, size
