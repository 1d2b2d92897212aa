"""The order in which face rows are visited.

That of training is a function of (seed, epoch) alone, not of the number of training processes or loader workers: row groups are
permuted, and rows are shuffled within windows of consecutive row groups, so that a reader reads each row group about once. Global batch s
is the slice [s * B, (s + 1) * B) of that order, and rank r of W takes every W-th sample of the slice. An epoch ends with a full batch by
wrapping round to its first samples: none is left out, and every rank has equally many steps of equally many samples.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow.compute as pc

from dfdc_ray.config import Balance
from dfdc_ray.shards.rows import RowTable

WINDOW_BYTES = 128 << 20  # of images: about 250 DFDC videos are mixed at a time


class Samples(NamedTuple):
    """What one step of one process wants: positions in the RowTable, and for each the seed of its augmentation (None: no augmentation)."""

    positions: np.ndarray
    seeds: list[tuple[int, int, int]] | None


class Order(Protocol):
    """The batches of one process, by number."""

    def __len__(self) -> int: ...
    def __getitem__(self, number: int, /) -> Samples: ...


@dataclass(frozen=True)
class ShuffledOrder:
    """Training: batch after batch from sample `start` of epoch `epoch` to the end of epoch `epochs - 1` (see the module).

    balance "sample" repeats rows of the rarer class, others each epoch, until both are drawn equally often. "groups" draws the reals and
    the fakes of every group equally often, in about as many samples as there are rows: rows of large groups are left out, others each
    epoch. "frames" and "none" draw every row once.
    """

    rows: RowTable
    batch_size: int
    seed: int
    epochs: int
    epoch: int = 0
    start: int = 0
    balance: Balance = "frames"
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size % self.world_size or self.start % self.batch_size:
            raise ValueError(f"batch size {self.batch_size} does not divide by {self.world_size} ranks, or sample {self.start} not by it")

    @functools.cached_property
    def steps_per_epoch(self) -> int:
        return -(-sum(self.drawn) // self.batch_size)

    @property
    def drawn(self) -> tuple[int, int]:
        """Samples of an epoch, before it is filled up to whole batches: of reals and of fakes."""
        if self.balance in ("sample", "groups"):
            cells, quota = self._cells
            fakes = sum(bool(self.rows.labels[cell[0]] == 1) for cell in cells)
            return (len(cells) - fakes) * quota, fakes * quota
        fakes = int((self.rows.labels == 1).sum())
        return len(self.rows) - fakes, fakes

    @functools.cached_property
    def _cells(self) -> tuple[list[np.ndarray], int]:
        """Positions of the rows that share a class, and a group where groups are balanced too; and how often each cell is drawn."""
        cell = self.rows.labels == 1
        if self.balance == "groups":
            group = pc.dictionary_encode(self.rows.table["group_id"]).combine_chunks().indices.to_numpy()
            cell = cell + 2 * group.astype(np.int64)
        order = np.argsort(cell, kind="stable")
        cells = np.split(order, np.flatnonzero(np.diff(cell[order])) + 1)
        return cells, max(map(len, cells)) if self.balance == "sample" else -(-len(order) // len(cells))

    def __len__(self) -> int:
        """Batches to the end of the last epoch."""
        return self.steps_per_epoch * (self.epochs - self.epoch) - self.start // self.batch_size

    def __getitem__(self, number: int) -> Samples:
        """The samples of a batch, whatever was asked for before."""
        if not 0 <= number < len(self):
            raise IndexError(f"batch {number} of {len(self)}")
        later, step = divmod(self.start // self.batch_size + number, self.steps_per_epoch)
        epoch, first = self.epoch + later, step * self.batch_size
        if epoch not in self._kept:
            self._kept.clear()
            self._kept[epoch] = self.epoch_order(epoch)
        order = self._kept[epoch]
        turns = np.arange(first + self.rank, first + self.batch_size, self.world_size)
        return Samples(order[turns % len(order)], [(self.seed, epoch, int(turn)) for turn in turns])

    @functools.cached_property
    def _kept(self) -> dict[int, np.ndarray]:
        """The order of the epoch that was asked for last."""
        return {}

    def epoch_order(self, epoch: int) -> np.ndarray:
        """int64 [samples]: positions in `rows` in the order in which the epoch visits them."""
        rng = np.random.default_rng([self.seed, epoch])
        pool = self._balanced(rng) if self.balance in ("sample", "groups") else np.arange(len(self.rows))
        group = self.rows.column("group")[pool]
        group = group if group.ndim == 1 else group[:, 0]  # a track's frames are in one row group
        visited = rng.permutation(np.unique(group))
        sizes = self.rows.groups[visited, 2]
        window = np.zeros(len(self.rows.groups), np.int64)
        window[visited] = (np.cumsum(sizes) - sizes) // WINDOW_BYTES
        return pool[np.lexsort((rng.random(len(pool)), window[group]))]

    def _balanced(self, rng: np.random.Generator) -> np.ndarray:
        cells, quota = self._cells
        return np.concatenate([part for c in cells for part in [*[c] * (quota // len(c)), rng.choice(c, quota % len(c), replace=False)]])


@dataclass(frozen=True)
class FixedOrder:
    """Evaluation: every row once, in the order of the table; ranks take batches in turn, and the last batch may be short."""

    rows: int
    batch_size: int
    rank: int = 0
    world_size: int = 1

    def __len__(self) -> int:
        return len(range(self.rank * self.batch_size, self.rows, self.world_size * self.batch_size))

    def __getitem__(self, number: int) -> Samples:
        if not 0 <= number < len(self):
            raise IndexError(f"batch {number} of {len(self)}")
        first = (self.rank + number * self.world_size) * self.batch_size
        return Samples(np.arange(first, min(first + self.batch_size, self.rows)), None)
