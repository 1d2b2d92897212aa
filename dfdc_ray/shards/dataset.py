"""Face shards as a stream of batches for torch: the rows' pictures, decoded and transformed in a given order (order.py)."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from dfdc_ray.errors import UserError
from dfdc_ray.faces.crop import decode
from dfdc_ray.shards.manifest import open_parquet
from dfdc_ray.shards.order import WINDOW_BYTES, Order
from dfdc_ray.shards.rows import RowTable

CACHE_BYTES = 2 * WINDOW_BYTES + (64 << 20)  # two windows, for the batch that straddles their border
_THREADS = 16  # for reading many small objects

Transform = Callable[[torch.Tensor], torch.Tensor]  # uint8 [3,H,W] RGB -> float32 [3,S,S]; of clips [T,3,H,W] -> [T,3,S,S]


Fake = Callable[[torch.Tensor, int, bool], tuple[torch.Tensor, bool]]  # picture uint8 [3,H,W] RGB, position in the RowTable, real


NO_SOUND = torch.empty(0)


class Batch(NamedTuple):
    """images: float32 [b,3,S,S], of clips [b,T,3,S,S]; labels: float32 [b], nan unlabelled; positions: int64 [b], in the RowTable.

    sound: float32 [b,T,WINDOW] in -1..1 around each frame of the clips (video/sound.py); empty unless it was asked for.
    """

    images: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    sound: torch.Tensor = NO_SOUND


class Pictures(Protocol):
    """A context manager that gives uint8 [3,H,W] RGB for each (row group, row) of a RowTable, and its sound, float32 [n,WINDOW]."""

    def __enter__(self) -> "Pictures": ...
    def __exit__(self, *_: object) -> None: ...
    def read(self, wanted: Sequence[tuple[int, int]]) -> list[torch.Tensor]: ...
    def sound(self, wanted: Sequence[tuple[int, int]]) -> torch.Tensor: ...


class FaceDataset(IterableDataset[Batch]):
    """Whole batches, decoded and transformed, in the given order. Loader worker w of W makes batches w, w + W, ...

    fake: given a picture, its position and whether it is real, another in its place and whether that is a fake of its making, which then
    has the label 1; drawn by the sample's seed.
    sound: of clips, whose rows must all have it.
    """

    def __init__(self, rows: RowTable, transform: Transform, order: Order, fake: Fake | None = None, *, sound: bool = False) -> None:
        self.files, self.groups, self.fake, self.with_sound = rows.files, rows.groups, fake, sound
        self.group, self.row, self.labels = rows.column("group"), rows.column("row"), rows.labels
        self.transform, self.order = transform, order

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        with self.pictures() as images:
            for number in range(first, len(self.order), step):
                yield self.batch(images, number)

    def pictures(self) -> "Pictures":
        """Where the pictures come from, as long as it is open."""
        return _Images(self.files, self.groups, sound=self.with_sound)

    def batch(self, images: "Pictures", number: int) -> Batch:
        """One batch, from the open `pictures()`."""
        samples = self.order[number]
        group, row = self.group[samples.positions], self.row[samples.positions]
        wanted = list(zip(group.ravel().tolist(), row.ravel().tolist(), strict=True))
        pictures = images.read(wanted)
        if group.ndim == 2:
            length = group.shape[1]
            pictures = [torch.stack(pictures[i : i + length]) for i in range(0, len(pictures), length)]
        labels = self.labels[samples.positions]
        if samples.seeds is None:
            tensors = [self.transform(picture) for picture in pictures]
        else:
            tensors = []
            for i, (picture, seed) in enumerate(zip(pictures, samples.seeds, strict=True)):
                with _seeded(seed):
                    given, made = self.fake(picture, int(samples.positions[i]), bool(labels[i] == 0)) if self.fake else (picture, False)
                    labels[i] = 1 if made else labels[i]
                    tensors.append(self.transform(given))
        batch = Batch(torch.stack(tensors), torch.from_numpy(labels), torch.from_numpy(samples.positions))
        return batch._replace(sound=images.sound(wanted).view(*group.shape, -1)) if self.with_sound else batch


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

    def __init__(self, files: Sequence[str], groups: np.ndarray, *, sound: bool) -> None:
        self.files, self.groups = files, groups
        self.columns = ["image.bytes", "sound"] if sound else ["image.bytes"]
        self.cache: OrderedDict[int, pa.Table] = OrderedDict()
        self.bytes = 0

    def __enter__(self) -> "_Images":
        self.pool = ThreadPoolExecutor(_THREADS)
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown()

    def read(self, wanted: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
        """uint8 [3,H,W] RGB for each (group, row)."""
        self._bring(wanted)
        return [self._decode(group, row) for group, row in wanted]

    def encoded(self, wanted: Sequence[tuple[int, int]]) -> list[bytes]:
        """As they are stored, for each (group, row)."""
        self._bring(wanted)
        return [self.cache[group]["image"][row].as_py() for group, row in wanted]

    def sound(self, wanted: Sequence[tuple[int, int]]) -> torch.Tensor:
        """float32 [n,WINDOW] in -1..1 for each (group, row)."""
        self._bring(wanted)
        return decode_sound([self.cache[group]["sound"][row].as_py() for group, row in wanted])

    def _bring(self, wanted: Sequence[tuple[int, int]]) -> None:
        """Read the row groups that are not there, and let go of those that were used longest ago."""
        needed = {group for group, _ in wanted}
        missing = sorted(needed - self.cache.keys())
        for group, table in zip(missing, self.pool.map(self._read_group, missing), strict=True):
            self.cache[group] = table
            self.bytes += table.nbytes
        for group in sorted(needed):
            self.cache.move_to_end(group)
        while self.bytes > CACHE_BYTES and len(self.cache) > len(needed):
            self.bytes -= self.cache.popitem(last=False)[1].nbytes

    def _read_group(self, group: int) -> pa.Table:
        file, number = self.groups[group, :2]
        with open_parquet(self.files[file]) as (parquet, _):
            table = parquet.read_row_group(int(number), columns=self.columns, use_threads=False)
        at = table.schema.get_field_index("image")
        return table.set_column(at, "image", pc.struct_field(table["image"], "bytes")).combine_chunks()

    def _decode(self, group: int, row: int) -> torch.Tensor:
        encoded = self.cache[group]["image"][row].as_py()
        try:
            return torch.from_numpy(decode(encoded)).permute(2, 0, 1)
        except (ValueError, TypeError) as error:  # TypeError: null
            file, number = self.groups[group, :2]
            raise UserError(f"{self.files[file]}, row group {number}, row {row}: the image is damaged. Copy the shard again.") from error


def encoded(rows: RowTable, positions: Sequence[int]) -> list[list[bytes]]:
    """The stored pictures (JPEG or PNG) of these lines: one each, or a clip's. Reads the row groups that they are in, and no others."""
    places = np.stack([rows.column("group"), rows.column("row")], axis=-1)[np.asarray(positions, dtype=int)]
    with _Images(rows.files, rows.groups, sound=False) as images:
        return [images.encoded([(int(group), int(row)) for group, row in place.reshape(-1, 2)]) for place in places]


def decode_sound(windows: Sequence[bytes]) -> torch.Tensor:
    """float32 [n,WINDOW] in -1..1 of the column `sound`."""
    return torch.from_numpy(np.stack([np.frombuffer(window, "<i2") for window in windows]).astype(np.float32) / 32768)


@contextmanager
def _seeded(seed: tuple[int, int, int]) -> Iterator[None]:
    """torch's CPU generator seeded by (seed, epoch, position), and put back afterwards."""
    generator = torch.default_generator
    before = generator.get_state()
    generator.manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> 1))
    try:
        yield
    finally:
        generator.set_state(before)
