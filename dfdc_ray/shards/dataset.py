"""Face shards as a stream of batches for torch.

The order of the samples is a function of (seed, epoch) alone, not of the number of training processes or loader workers: row groups are
permuted, and rows are shuffled within windows of consecutive row groups, so that a reader reads each row group about once. Global batch s
is the slice [s * B, (s + 1) * B) of that order, and rank r of W takes every W-th sample of the slice. An epoch ends with a full batch by
wrapping round to its first samples: none is left out, and every rank has equally many steps of equally many samples.
"""

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from dfdc_ray.corpus.splits import Split, assign
from dfdc_ray.errors import UserError
from dfdc_ray.faces.crop import decode
from dfdc_ray.shards.manifest import Manifest, ShardFile, open_shard, parquet_input

WINDOW_BYTES = 128 << 20  # of images: about 250 DFDC videos are mixed at a time
CACHE_BYTES = 2 * WINDOW_BYTES + (64 << 20)  # two windows, for the batch that straddles their border
_THREADS = 16  # for reading many small objects
_COLUMNS = ["video_id", "group_id", "part", "label", "core", "frame", "time_s", "track_id"]
_DICTIONARY = ["video_id", "group_id", "label"]

Transform = Callable[[torch.Tensor], torch.Tensor]  # uint8 [3,H,W] RGB -> float32 [3,S,S]


@dataclass(frozen=True)
class RowTable:
    """Where every face row is, and its small columns.

    files: URIs of the shards; sizes: in bytes; sha256: of their bytes, in hexadecimal.
    groups: int64 [G,3], one line for each row group: file, row group in the file, bytes of its images.
    table: one line for each row: group (line of `groups`), row (in the row group), video_id, group_id, part, label, core, frame, time_s,
    track_id.
    """

    files: tuple[str, ...]
    sizes: tuple[int, ...]
    sha256: tuple[str, ...]
    groups: np.ndarray
    table: pa.Table

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

    def column(self, name: str) -> np.ndarray:
        return self.table[name].to_numpy()


def read_rows(manifest: Manifest) -> RowTable:
    """Read the small columns of every shard that the manifest names. UserError if one is absent, damaged or of another length."""
    with ThreadPoolExecutor(_THREADS) as pool:
        parts = list(pool.map(_read_small, manifest.files))
    groups: list[tuple[int, int, int]] = []
    tables = []
    for number, (table, row_groups, _) in enumerate(parts):
        first = len(groups)
        groups += [(number, group, size) for group, (_, size) in enumerate(row_groups)]
        counts = [rows for rows, _ in row_groups]
        group = np.repeat(np.arange(first, first + len(counts), dtype=np.int32), counts)
        row = np.concatenate([np.arange(n, dtype=np.int32) for n in counts])
        tables.append(table.add_column(0, "row", pa.array(row)).add_column(0, "group", pa.array(group)))
    table = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
    return RowTable(
        files=tuple(file.uri for file in manifest.files),
        sizes=tuple(size for _, _, size in parts),
        sha256=tuple(file.sha256 for file in manifest.files),
        groups=np.array(groups, dtype=np.int64).reshape(-1, 3),
        table=table,
    )


def split_mask(rows: RowTable, rule: str, split: Split) -> np.ndarray:
    """bool [N]: which rows belong to this split by the rule. UserError if the rule is bad or cuts a group."""
    pairs = rows.table.select(["group_id", "part"]).group_by(["group_id", "part"]).aggregate([])
    groups = pairs["group_id"].cast(pa.string()).to_pylist()
    chosen = {group for group, s in zip(groups, assign(rule, groups, pairs["part"].to_pylist()), strict=True) if s == split}
    return pc.is_in(rows.table["group_id"].cast(pa.string()), value_set=pa.array(sorted(chosen), pa.string())).to_numpy()


def _read_small(file: ShardFile) -> tuple[pa.Table, list[tuple[int, int]], int]:
    """The small columns, for each row group its number of rows and the bytes of its images, and the size of the file."""
    with open_shard(file, read_dictionary=_DICTIONARY) as (parquet, size):
        groups = [parquet.metadata.row_group(g) for g in range(parquet.num_row_groups)]
        image = parquet.schema.names.index("bytes")
        row_groups = [(group.num_rows, group.column(image).total_uncompressed_size) for group in groups]
        return parquet.read(columns=_COLUMNS), row_groups, size


class Samples(NamedTuple):
    """What one step of one process wants: positions in the RowTable, and for each the seed of its augmentation (None: no augmentation)."""

    positions: np.ndarray
    seeds: list[tuple[int, int, int]] | None


@dataclass(frozen=True)
class ShuffledOrder:
    """Training: batch after batch from sample `start` of epoch `epoch` to the end of epoch `epochs - 1` (see the module).

    balance "sample" repeats rows of the rarer class, others each epoch, until both are drawn equally often; "frames" and "none" draw every
    row once.
    """

    rows: RowTable
    batch_size: int
    seed: int
    epochs: int
    epoch: int = 0
    start: int = 0
    balance: Literal["frames", "sample", "none"] = "frames"
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size % self.world_size or self.start % self.batch_size:
            raise ValueError(f"batch size {self.batch_size} does not divide by {self.world_size} ranks, or sample {self.start} not by it")

    @property
    def steps_per_epoch(self) -> int:
        fakes = int((self.rows.labels == 1).sum())
        samples = 2 * max(fakes, len(self.rows) - fakes) if self.balance == "sample" else len(self.rows)
        return -(-samples // self.batch_size)

    def epoch_order(self, epoch: int) -> np.ndarray:
        """int64 [samples]: positions in `rows` in the order in which the epoch visits them."""
        rng = np.random.default_rng([self.seed, epoch])
        pool = self._balanced(rng) if self.balance == "sample" else np.arange(len(self.rows))
        group = self.rows.column("group")[pool]
        visited = rng.permutation(np.unique(group))
        sizes = self.rows.groups[visited, 2]
        window = np.zeros(len(self.rows.groups), np.int64)
        window[visited] = (np.cumsum(sizes) - sizes) // WINDOW_BYTES
        return pool[np.lexsort((rng.random(len(pool)), window[group]))]

    def _balanced(self, rng: np.random.Generator) -> np.ndarray:
        classes = [np.flatnonzero(self.rows.labels == label) for label in (0, 1)]
        most = max(map(len, classes))
        return np.concatenate([part for c in classes for part in [*[c] * (most // len(c)), rng.choice(c, most % len(c), replace=False)]])

    def __iter__(self) -> Iterator[Samples]:
        start = self.start
        for epoch in range(self.epoch, self.epochs):
            order = self.epoch_order(epoch)
            for first in range(start, self.steps_per_epoch * self.batch_size, self.batch_size):
                turns = np.arange(first + self.rank, first + self.batch_size, self.world_size)
                yield Samples(order[turns % len(order)], [(self.seed, epoch, int(turn)) for turn in turns])
            start = 0


@dataclass(frozen=True)
class FixedOrder:
    """Evaluation: every row once, in the order of the table; ranks take batches in turn, and the last batch may be short."""

    rows: int
    batch_size: int
    rank: int = 0
    world_size: int = 1

    def __iter__(self) -> Iterator[Samples]:
        for first in range(self.rank * self.batch_size, self.rows, self.world_size * self.batch_size):
            yield Samples(np.arange(first, min(first + self.batch_size, self.rows)), None)


class Batch(NamedTuple):
    """images: float32 [b,3,S,S]; labels: float32 [b], nan unlabelled; positions: int64 [b], in the RowTable."""

    images: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor


class FaceDataset(IterableDataset[Batch]):
    """Whole batches, decoded and transformed, in the given order. Loader worker w of W makes batches w, w + W, ..."""

    def __init__(self, rows: RowTable, transform: Transform, order: Iterable[Samples]) -> None:
        self.files, self.groups = rows.files, rows.groups
        self.group, self.row, self.labels = rows.column("group"), rows.column("row"), rows.labels
        self.transform, self.order = transform, order

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        with _Images(self.files, self.groups) as images:
            for samples in islice(self.order, first, None, step):
                yield self._batch(images, samples)

    def _batch(self, images: "_Images", samples: Samples) -> Batch:
        group, row = self.group[samples.positions], self.row[samples.positions]
        pictures = images.read(list(zip(group.tolist(), row.tolist(), strict=True)))
        if samples.seeds is None:
            tensors = [self.transform(picture) for picture in pictures]
        else:
            tensors = [_seeded(self.transform, picture, seed) for picture, seed in zip(pictures, samples.seeds, strict=True)]
        return Batch(torch.stack(tensors), torch.from_numpy(self.labels[samples.positions]), torch.from_numpy(samples.positions))


def loader(dataset: FaceDataset, *, workers: int, pin_memory: bool = False) -> DataLoader[Batch]:
    """A DataLoader for a FaceDataset. Workers are not forked: forking a process that runs threads can deadlock."""
    return DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory,
        multiprocessing_context="forkserver" if workers else None,
        persistent_workers=workers > 0,
    )


class _Images:
    """Reads pictures out of row groups, and keeps the groups that were used last, up to CACHE_BYTES."""

    def __init__(self, files: Sequence[str], groups: np.ndarray) -> None:
        self.files, self.groups = files, groups
        self.cache: OrderedDict[int, pa.Array] = OrderedDict()
        self.bytes = 0

    def __enter__(self) -> "_Images":
        self.pool = ThreadPoolExecutor(_THREADS)
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown()

    def read(self, wanted: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
        """uint8 [3,H,W] RGB for each (group, row)."""
        needed = {group for group, _ in wanted}
        missing = sorted(needed - self.cache.keys())
        for group, encoded in zip(missing, self.pool.map(self._read_group, missing), strict=True):
            self.cache[group] = encoded
            self.bytes += encoded.nbytes
        for group in sorted(needed):
            self.cache.move_to_end(group)
        while self.bytes > CACHE_BYTES and len(self.cache) > len(needed):
            self.bytes -= self.cache.popitem(last=False)[1].nbytes
        return [self._decode(group, row) for group, row in wanted]

    def _read_group(self, group: int) -> pa.Array:
        file, number, _ = self.groups[group]
        with parquet_input(self.files[file]) as stream, pq.ParquetFile(stream) as parquet:
            table = parquet.read_row_group(int(number), columns=["image.bytes"], use_threads=False)
        return pc.struct_field(table["image"], "bytes").combine_chunks()

    def _decode(self, group: int, row: int) -> torch.Tensor:
        encoded = self.cache[group][row].as_py()
        try:
            return torch.from_numpy(decode(encoded)).permute(2, 0, 1)
        except (ValueError, TypeError) as error:  # TypeError: null
            file, number, _ = self.groups[group]
            raise UserError(f"{self.files[file]}, row group {number}, row {row}: the image is damaged. Copy the shard again.") from error


def _seeded(transform: Transform, picture: torch.Tensor, seed: tuple[int, int, int]) -> torch.Tensor:
    """Apply the transform with torch's CPU generator seeded by (seed, epoch, position), and put the generator back."""
    generator = torch.default_generator
    before = generator.get_state()
    generator.manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> 1))
    try:
        return transform(picture)
    finally:
        generator.set_state(before)
