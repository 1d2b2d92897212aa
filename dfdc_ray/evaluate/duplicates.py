"""Near-duplicates across splits: videos whose faces look as one from training does, whatever their names and groups say.

Of each video the middle core face is hashed (OpenCV's pHash: 64 bits of the lowest frequencies of a grey 32x32 picture; Zauner,
Implementation and Benchmarking of Perceptual Image Hash Functions, 2010), and each is held against all of training.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import pyarrow as pa
import torch

from dfdc_ray.console import Work
from dfdc_ray.shards.dataset import FaceDataset, loader
from dfdc_ray.shards.order import FixedOrder
from dfdc_ray.shards.rows import RowTable

CLOSE = 4  # bits of 64: docs/benchmarks.md says how many pairs of different people are as close, and which copies are not
_BATCH = 256
_BLOCK = 64  # hashes compared with all of training at a time


@dataclass(frozen=True)
class Pair:
    """A video and the one of training that is nearest to it; bits: in which their hashes differ."""

    video_id: str
    training_video_id: str
    bits: int


def near_duplicates(judged: RowTable, training: RowTable) -> tuple[Pair, ...]:
    """The judged videos with a training video within CLOSE bits, the closest first. Core rows only, of both."""
    judged, training = _middle(judged), _middle(training)
    bits, nearest = _nearest(_hashes(judged, "hashing judged faces"), _hashes(training, "hashing training faces"))
    names, of_training = _names(judged), _names(training)
    pairs = [Pair(names[i], of_training[nearest[i]], int(bits[i])) for i in np.flatnonzero(bits <= CLOSE)]
    return tuple(sorted(pairs, key=lambda pair: (pair.bits, pair.video_id)))


def _names(rows: RowTable) -> list[str]:
    names: list[str] = rows.table["video_id"].cast(pa.string()).to_pylist()
    return names


def _middle(rows: RowTable) -> RowTable:
    """Of each video one core row: the middle one by frame."""
    core = rows.take(rows.column("core"))
    order = np.lexsort((core.column("frame"), core.videos))
    starts = np.flatnonzero(np.diff(core.videos[order], prepend=-1))
    ends = np.append(starts[1:], len(order))
    return core.take(order[(starts + ends) // 2])


def _hash(image: torch.Tensor) -> torch.Tensor:
    """uint8 [3,H,W] RGB, or of a clip [T,3,H,W] its middle -> uint8 [8]."""
    image = image if image.ndim == 3 else image[len(image) // 2]
    grey = cv2.cvtColor(np.ascontiguousarray(image.permute(1, 2, 0).numpy()), cv2.COLOR_RGB2GRAY)
    return torch.from_numpy(cv2.img_hash.pHash(grey)[0])


def _hashes(rows: RowTable, what: str) -> np.ndarray:
    """uint64 [N]."""
    found = np.zeros((len(rows), 8), np.uint8)
    with Work(what, total=len(rows), unit="faces") as work:
        for batch in loader(FaceDataset(rows, _hash, FixedOrder(len(rows), _BATCH)), workers=0):
            found[batch.positions.numpy()] = batch.images.numpy()
            work.advance(len(batch.positions))
    return found.view(np.uint64)[:, 0]


def _nearest(hashes: np.ndarray, training: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each hash the bits in which the nearest of training differs, and where that one is: int64 [N] each."""
    bits, nearest = np.empty(len(hashes), np.int64), np.empty(len(hashes), np.int64)
    for first in range(0, len(hashes), _BLOCK):
        distances = np.bitwise_count(hashes[first : first + _BLOCK, None] ^ training[None])
        nearest[first : first + _BLOCK] = distances.argmin(axis=1)
        bits[first : first + _BLOCK] = distances.min(axis=1)
    return bits, nearest
