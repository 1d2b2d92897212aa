"""How fast training goes from face shards, beside the same on pictures in memory: what storage, decoding and the loader cost it.

    dfdc-ray bench train --faces FACES --out out/bench

Four ways, in turn, `--repeats` times over, on the same samples in the same order:

    train     as the training loop does it: shards, decoding, augmentation, step
    memory    the same loop and loader on pictures that were decoded before
    model     steps on one batch of tensors in memory
    input     shards, decoding, augmentation and no step, in one thread: what one core of a loader gives
"""

import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from datetime import date
from typing import Any

import numpy as np
import torch
from rich.table import Table

from dfdc_ray import storage
from dfdc_ray.bench.config import BenchTrainConfig
from dfdc_ray.bench.machine import machine
from dfdc_ray.config import TrainConfig
from dfdc_ray.console import Work, console, markdown_table
from dfdc_ray.errors import UserError
from dfdc_ray.models import check_side, create_model, takes_clips
from dfdc_ray.shards.dataset import Batch, FaceDataset, Pictures, loader
from dfdc_ray.shards.manifest import read_manifest
from dfdc_ray.shards.order import Samples, ShuffledOrder
from dfdc_ray.shards.rows import RowTable, read_rows
from dfdc_ray.train import transforms
from dfdc_ray.train.loop import optimizer_of, step
from dfdc_ray.train.memory import keep_freed_memory
from dfdc_ray.train.validation import model_to_device, precision

_WARM_UP = 3  # steps of each run that are not counted
_AHEAD = 2  # batches that each loader process has made before they are asked for: torch's prefetch_factor


@dataclass
class Row:
    """One way. images_per_s: one for each repeat. data_wait: share of the time that the loop waits for the next batch."""

    way: str
    images_per_s: list[float] = field(default_factory=list)
    data_wait: list[float] = field(default_factory=list)


class _Memory:
    """Pictures that are in memory, by (row group, row)."""

    def __init__(self, found: dict[tuple[int, int], np.ndarray]) -> None:
        self.found = found

    def __enter__(self) -> "_Memory":
        return self

    def __exit__(self, *_: object) -> None: ...

    def read(self, wanted: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
        return [torch.from_numpy(self.found[key]) for key in wanted]

    def sound(self, wanted: Sequence[tuple[int, int]]) -> torch.Tensor:
        raise AssertionError("single frames have no sound")


class _InMemory(FaceDataset):
    """A FaceDataset whose pictures have been read before."""

    def __init__(self, dataset: FaceDataset) -> None:
        self.__dict__.update(dataset.__dict__)
        positions = np.unique(np.concatenate([dataset.order[i].positions for i in range(len(dataset.order))]))
        keys = list(zip(self.group[positions].tolist(), self.row[positions].tolist(), strict=True))
        with dataset.pictures() as images:
            # Arrays: a loader process would be sent a file descriptor for each tensor, and takes no more than some 250.
            self.found = dict(zip(keys, (picture.numpy() for picture in images.read(keys)), strict=True))

    def pictures(self) -> Pictures:
        return _Memory(self.found)


def train(config: BenchTrainConfig) -> None:
    """The `bench train` command: a table, bench_train.json and .md under `out`. UserError for faces that are too few."""
    if config.steps < 1 or config.repeats < 1 or config.batch_size < 1:
        raise UserError("--steps, --repeats and --batch-size: at least 1.")
    if config.gpu and not torch.cuda.is_available():
        raise UserError("--gpu: torch sees no CUDA device here.")
    if not config.gpu:
        keep_freed_memory()
    device = torch.device("cuda" if config.gpu else "cpu")
    if takes_clips(config.model):
        raise UserError(f"--model {config.model} looks at clips, and this bench is of single frames.")
    check_side(config.model, config.image_size)
    rows = read_rows(read_manifest(config.faces))
    rows = rows.take(~np.isnan(rows.labels))
    if not len(rows):
        raise UserError(f"{config.faces} has no labelled face.")
    found = [Row(way) for way in ("train", "memory", "model", "input")]
    transform = transforms.training(transforms.recipe(config.image_size, config.model))
    with Work("bench", total=len(found) * config.repeats, unit="runs") as progress:
        for repeat in range(config.repeats):
            order = _first(rows, config, seed=repeat)
            from_shards = FaceDataset(rows, transform, order)
            in_memory = _InMemory(from_shards)
            for row in found:
                alone = row.way == "input"
                take = None if alone else _stepper(config, device)
                with _one_thread() if alone else nullcontext():
                    _run(row, _batches(row.way, from_shards, in_memory, config), config, take, device)
                progress.advance(detail=row.way)
    _write(config, found, device)


def _first(rows: RowTable, config: BenchTrainConfig, *, seed: int) -> list[Samples]:
    """The samples of the first steps of training."""
    batches = _WARM_UP + _AHEAD * config.loader_workers + config.steps
    order = ShuffledOrder(rows, config.batch_size, seed, 1 + batches * config.batch_size // len(rows))
    return [order[i] for i in range(batches)]


def _batches(way: str, from_shards: FaceDataset, in_memory: FaceDataset, config: BenchTrainConfig) -> Iterator[Batch]:
    if way == "model":
        return itertools.repeat(next(iter(loader(in_memory, workers=0))))
    if way == "input":
        return iter(loader(from_shards, workers=0))
    return iter(loader(from_shards if way == "train" else in_memory, workers=config.loader_workers, pin_memory=config.gpu))


def _stepper(config: BenchTrainConfig, device: torch.device) -> Callable[[Batch], object]:
    """A fresh model and its step."""
    settings = TrainConfig(faces=config.faces, out=config.out, model=config.model)
    torch.manual_seed(0)
    model = model_to_device(create_model(config.model), device).train()
    optimizer = optimizer_of(model, settings)
    if config.compile:
        model.compile()
    return lambda batch: step(model, optimizer, batch, objective=settings.objective, device=device)


def _run(
    row: Row, batches: Iterator[Batch], config: BenchTrainConfig, take: Callable[[Batch], object] | None, device: torch.device
) -> None:
    """Measure one way once. take: what is done with a batch, if anything."""
    for _ in range(_WARM_UP):
        batch = next(batches)
        if take:
            take(batch)
    _finish(device)
    if row.way in ("train", "memory"):
        for _ in range(_AHEAD * config.loader_workers):  # made during the warm-up: they would cost nothing
            next(batches)
    waited, started = 0.0, time.monotonic()
    for _ in range(config.steps):
        before = time.monotonic()
        batch = next(batches)
        waited += time.monotonic() - before
        if take:
            take(batch)
    _finish(device)
    seconds = time.monotonic() - started
    row.images_per_s.append(config.steps * config.batch_size / seconds)
    row.data_wait.append(waited / seconds)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch compute with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _finish(device: torch.device) -> None:
    """Wait for what the GPU was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _write(config: BenchTrainConfig, rows: list[Row], device: torch.device) -> None:
    medians = {row.way: statistics.median(row.images_per_s) for row in rows}
    header = ["way", "images/s", "min - max", "of memory", "waiting for data"]
    cells = [
        [
            row.way,
            f"{medians[row.way]:.1f}",
            f"{min(row.images_per_s):.1f} - {max(row.images_per_s):.1f}",
            "-" if row.way == "input" else f"{medians[row.way] / medians['memory']:.3f}",
            "-" if row.way == "input" else f"{statistics.median(row.data_wait):.1%}",
        ]
        for row in rows
    ]
    about = machine() | {"torch": torch.__version__}
    if device.type == "cuda":
        about["gpu"] = torch.cuda.get_device_name(device)
    where = about.get("gpu") or f"{torch.get_num_threads()} threads of {about['cores']} x {about['cpu']}"
    title = (
        f"{config.model} at {config.image_size}, batch {config.batch_size}, {precision(create_model(config.model), device)}"
        f"{', compiled' if config.compile else ''}, {config.loader_workers} loader processes, {where}; {config.repeats} runs in turn of "
        f"{config.steps} steps, median"
    )
    needed = f"To keep this up, the input takes {medians['model'] / medians['input']:.2f} cores beside those of the model."
    table = Table(*header, title=title)
    for line in cells:
        table.add_row(*line)
    console.print(table)
    console.print(needed, highlight=False, soft_wrap=True)
    result: dict[str, Any] = {
        "date": date.today().isoformat(),
        "machine": about,
        "config": asdict(config),
        "rows": [asdict(row) for row in rows],
    }
    storage.make_dirs(config.out)
    storage.write_bytes(storage.join(config.out, "bench_train.md"), f"{title}\n\n{markdown_table(header, cells)}\n{needed}\n".encode())
    storage.write_bytes(storage.join(config.out, "bench_train.json"), json.dumps(result, indent=1).encode())
