"""The training loop: plain torch, one process or several under DistributedDataParallel. Knows nothing of Ray.

    plan = prepare(config); train_loop(config, plan)

OUT/checkpoints/step-N/   the two newest states to resume from: after every epoch and every `checkpoint_minutes`
OUT/best/                 the model of the epoch with the lowest validation video log loss
OUT/tensorboard/          scalars
"""

import dataclasses
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torchmetrics.functional.classification import binary_auroc

from dfdc_ray import __version__, storage
from dfdc_ray.config import TrainConfig
from dfdc_ray.console import console, duration
from dfdc_ray.errors import UserError
from dfdc_ray.models import create_model
from dfdc_ray.shards.dataset import Batch, FaceDataset, FixedOrder, RowTable, ShuffledOrder, loader
from dfdc_ray.train import checkpoint, transforms
from dfdc_ray.train.board import Board
from dfdc_ray.train.objectives import OBJECTIVES
from dfdc_ray.train.plan import Plan, checkpoints

SELECTION = "lowest validation video log loss (mean of the probabilities of a video's core faces)"
WARM_UP = 0.05  # share of the steps over which the learning rate rises from 0
_KEEP = 2  # checkpoints: the newest may be the one that a crash of the machine damaged
_LINE_EVERY_S = 10.0

Report = Callable[[dict[str, Any]], None]


@dataclass
class Position:
    """Where a run is: whole epochs done, samples of the current one (all processes), steps; what it found: one entry for each epoch done.

    loss_sum: over the samples of the current epoch, from the losses of one rank's share of them.
    """

    epoch: int = 0
    samples: int = 0
    step: int = 0
    loss_sum: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def best(self) -> float:
        return min((entry["video_log_loss"] for entry in self.history), default=math.inf)


def train_loop(
    config: TrainConfig, plan: Plan, *, rank: int = 0, world_size: int = 1, device: torch.device | None = None, report: Report | None = None
) -> list[dict[str, Any]]:
    """Train, from the newest intact checkpoint in OUT if there is one, and return the metrics of each epoch.

    With world_size > 1 every process calls this with its rank, after torch.distributed was initialised. `report` is called on every rank after
    each epoch. Only rank 0 writes and prints. The result does not depend on `loader_workers`; the order of samples not on world_size either.
    """
    device = device or torch.device("cpu")
    spec = transforms.recipe(config.image_size)
    model, optimizer, at = _start(config, plan, device)
    ddp = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None) if world_size > 1 else model
    objective = OBJECTIVES[config.objective]
    order = ShuffledOrder(
        plan.train, config.batch_size, config.seed, config.epochs, at.epoch, at.samples, config.balance, rank=rank, world_size=world_size
    )
    steps = order.steps_per_epoch * config.epochs
    pin = device.type == "cuda"
    stream = iter(loader(FaceDataset(plan.train, transforms.training(spec), order), workers=config.loader_workers, pin_memory=pin))
    fixed = FixedOrder(len(plan.validation), config.batch_size, rank, world_size)
    validation = loader(FaceDataset(plan.validation, transforms.evaluation(spec), fixed), workers=config.loader_workers, pin_memory=pin)

    with Board(config.out if rank == 0 else None, at.step) as board:
        meter = _Meter(config.epochs, steps, at.step) if rank == 0 else None
        saved_at = time.monotonic()
        for epoch in range(at.epoch, config.epochs):
            ddp.train()
            started, first_step, waited = time.monotonic(), at.step, 0.0
            losses = torch.tensor(at.loss_sum, dtype=torch.float64, device=device)
            while at.samples < order.steps_per_epoch * config.batch_size:
                before = time.monotonic()
                batch = next(stream)
                wait = time.monotonic() - before
                waited += wait
                rate = config.learning_rate * schedule(at.step, steps)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                torch.manual_seed(_step_seed(config.seed, at.step, rank))  # dropout needs no state to resume
                loss = _step(ddp, optimizer, objective, batch, device)
                losses += loss.detach() * config.batch_size
                at.step += 1
                at.samples += config.batch_size
                if meter and meter.due(wait, config.batch_size):
                    meter.line(epoch, at.step, _finite(loss.item(), config))
                    board.scalars(at.step, {"train/loss": loss.item(), "train/learning_rate": rate, **meter.scalars})
                if rank == 0 and time.monotonic() - saved_at >= config.checkpoint_minutes * 60:
                    at.loss_sum = _finite(losses.item(), config)
                    _save(config, plan, spec, model, optimizer, at)
                    saved_at = time.monotonic()

            seconds = time.monotonic() - started
            entry = {"epoch": epoch + 1, "step": at.step, "train_loss": _finite(losses.item(), config) / at.samples}
            if world_size > 1:  # the ranks' running statistics differ by their last batch
                for buffer in model.buffers():
                    distributed.broadcast(buffer, 0)
            entry |= video_metrics(*_predict(model, validation, device, plan.validation, world_size))
            entry |= {"images_per_s": (at.step - first_step) * config.batch_size / seconds, "data_wait": waited / seconds, "seconds": seconds}
            better = entry["video_log_loss"] < at.best
            at.epoch, at.samples, at.loss_sum = epoch + 1, 0, 0.0
            at.history.append(entry)
            if rank == 0:
                board.scalars(at.step, {f"validation/{name}": entry[name] for name in ("frame_log_loss", "frame_auc", "video_log_loss", "video_auc")})
                if better:  # before the checkpoint: a run that is cut off between them does this epoch's end again
                    checkpoint.save(storage.join(config.out, "best"), weights=model.state_dict(), config=_describe(config, plan, spec, at), state=None)
                _save(config, plan, spec, model, optimizer, at)
                saved_at = time.monotonic()
                board.upload()
                console.print(_epoch_line(entry, config, better), highlight=False, soft_wrap=True)
            if report:
                report(entry)
    return at.history


def schedule(step: int, steps: int) -> float:
    """Factor of the learning rate: linear warm-up, then half a cosine down to 0 (Loshchilov and Hutter 2016, https://arxiv.org/abs/1608.03983)."""
    warm_up = max(1, round(steps * WARM_UP))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def use_bf16(device: torch.device) -> bool:
    """Whether bf16 is done in hardware. Emulated on a CPU it took 20 to 30 times as long as float32 (docs/benchmarks.md)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def video_metrics(logits: np.ndarray, labels: np.ndarray, videos: np.ndarray) -> dict[str, float | None]:
    """Log loss in nats and ROC AUC (None with one class only), by face and by video. A video's score is the mean of its faces' probabilities.

    logits, labels: [N]; videos: int [N], the same number for the faces of a video.
    """
    frame_logits, frame_labels = torch.from_numpy(logits.astype(np.float64)), torch.from_numpy(labels.astype(np.float64))
    _, first, number, count = np.unique(videos, return_index=True, return_inverse=True, return_counts=True)
    scores = torch.from_numpy(np.bincount(number, weights=torch.sigmoid(frame_logits).numpy()) / count).clamp(0, 1)
    video_labels = frame_labels[torch.from_numpy(first)]
    return {
        "frame_log_loss": functional.binary_cross_entropy_with_logits(frame_logits, frame_labels).item(),
        "frame_auc": _auc(frame_logits, frame_labels),
        "video_log_loss": functional.binary_cross_entropy(scores, video_labels).item(),
        "video_auc": _auc(scores, video_labels),
    }


def _auc(scores: torch.Tensor, labels: torch.Tensor) -> float | None:
    if labels.min() == labels.max():
        return None
    return float(binary_auroc(scores, labels.long()))


def _start(config: TrainConfig, plan: Plan, device: torch.device) -> tuple[nn.Module, torch.optim.Optimizer, Position]:
    """The model, its optimizer and the position, fresh or from the newest intact checkpoint."""
    checkpoint.mend(storage.join(config.out, "best"))
    saved = checkpoint.newest(checkpoints(config))
    weights = saved.weights if saved else plan.initial
    if weights is None:
        raise UserError(f"The checkpoints in {checkpoints(config)} have gone since this run began. Run the same command again.")
    model = create_model(config.model)
    model.load_state_dict(weights)
    model.to(device, memory_format=torch.channels_last)
    # No decay for biases and normalisation, as is usual.
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate)
    if saved is None:
        return model, optimizer, Position()
    assert saved.state is not None
    optimizer.load_state_dict(saved.state["optimizer"])
    at = Position(saved.config["epoch"], saved.state["samples"], saved.config["step"], saved.state["loss_sum"], saved.config["history"])
    return model, optimizer, at


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, objective: Callable, batch: Batch, device: torch.device) -> torch.Tensor:
    images = batch.images.to(device, memory_format=torch.channels_last, non_blocking=True)
    with torch.autocast(device.type, torch.bfloat16, enabled=use_bf16(device)):
        logits = model(images)
    loss = objective(logits.float(), batch.labels.to(device, non_blocking=True))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss


@torch.inference_mode()
def _predict(
    model: nn.Module, batches: DataLoader[Batch], device: torch.device, rows: RowTable, world_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, labels and videos of all rows, gathered from all ranks: each row once."""
    model.eval()
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for batch in batches:
        images = batch.images.to(device, memory_format=torch.channels_last, non_blocking=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=use_bf16(device)):
            logits = model(images)
        found.append((batch.index.numpy(), logits.float().cpu().numpy()))
    if world_size > 1:
        gathered: list[Any] = [None] * world_size
        distributed.all_gather_object(gathered, found)
        found = [pair for part in gathered for pair in part]
    everything = np.full(len(rows), np.nan, np.float32)
    for index, values in found:
        everything[index] = values
    return everything, rows.labels, rows.videos


def _save(config: TrainConfig, plan: Plan, spec: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, at: Position) -> None:
    folder = checkpoints(config)
    state = {"optimizer": optimizer.state_dict(), "samples": at.samples, "loss_sum": at.loss_sum}
    checkpoint.save(storage.join(folder, checkpoint.step_name(at.step)), weights=model.state_dict(), config=_describe(config, plan, spec, at), state=state)
    checkpoint.prune(folder, keep=_KEEP)


def _describe(config: TrainConfig, plan: Plan, spec: dict[str, Any], at: Position) -> dict[str, Any]:
    """config.json of a checkpoint."""
    return {
        "model": config.model,
        "transform": spec,
        "objective": config.objective,
        "split": config.split,
        "train_groups": list(plan.train_groups),
        "prior": plan.prior,
        "data_hash": plan.data_hash,
        "selection": SELECTION,
        "epoch": at.epoch,
        "step": at.step,
        "validation": at.history[-1] if at.history else None,
        "history": at.history,
        "seed": config.seed,
        "train_config": dataclasses.asdict(config),
        "versions": {
            "dfdc-ray": __version__,
            "torch": torch.__version__,
            "torchvision": version("torchvision"),
            "python": platform.python_version(),
        },
    }


def _step_seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])


def _finite(loss: float, config: TrainConfig) -> float:
    if not math.isfinite(loss):
        raise UserError(f"The loss is no longer finite: training diverged. Give a lower --learning-rate than {config.learning_rate} and another --out.")
    return loss


def _epoch_line(entry: dict[str, Any], config: TrainConfig, better: bool) -> str:
    auc = "not defined" if entry["video_auc"] is None else f"{entry['video_auc']:.3f}"
    return (
        f"epoch {entry['epoch']} of {config.epochs} done in {duration(entry['seconds'])}: training loss {entry['train_loss']:.4f}, validation video log loss "
        f"{entry['video_log_loss']:.4f}, video AUC {auc}" + (" (best so far)" if better else "")
    )


class _Meter:
    """One line every ten seconds: step, rate, loss, share of the time spent waiting for data, time left."""

    def __init__(self, epochs: int, steps: int, step: int) -> None:
        self.epochs, self.steps, self.first = epochs, steps, step
        self.began = self.last = time.monotonic()
        self.images, self.waited = 0, 0.0
        self.scalars: dict[str, float] = {}

    def due(self, wait: float, images: int) -> bool:
        """Count a step; whether it is time for a line."""
        self.images += images
        self.waited += wait
        passed = time.monotonic() - self.last
        if passed < _LINE_EVERY_S:
            return False
        self.scalars = {"train/images_per_s": self.images / passed, "train/data_wait": self.waited / passed}
        self.images, self.waited, self.last = 0, 0.0, time.monotonic()
        return True

    def line(self, epoch: int, step: int, loss: float) -> None:
        left = (time.monotonic() - self.began) / (step - self.first) * (self.steps - step)
        console.print(
            f"epoch {epoch + 1} of {self.epochs}, step {step} of {self.steps}, {self.scalars['train/images_per_s']:.1f} images/s, loss {loss:.4f}, "
            f"{self.scalars['train/data_wait']:.0%} of the time waiting for data, {duration(left)} left",
            highlight=False,
            soft_wrap=True,
        )
