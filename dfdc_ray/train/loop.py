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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dfdc_ray import __version__, storage
from dfdc_ray.config import Objective, TrainConfig
from dfdc_ray.console import console, duration
from dfdc_ray.errors import UserError
from dfdc_ray.models import create_model, restore, takes_sound
from dfdc_ray.shards.dataset import Batch, FaceDataset, loader
from dfdc_ray.shards.order import FixedOrder, ShuffledOrder
from dfdc_ray.train import checkpoint, transforms
from dfdc_ray.train.mix import cutmix
from dfdc_ray.train.objectives import OBJECTIVES, for_training
from dfdc_ray.train.plan import Plan, checkpoints, loaders, on_this_node
from dfdc_ray.train.progress import Board, Meter
from dfdc_ray.train.validation import METRICS, model_to_device, precision, to_device, use_bf16, validate

LAST = "the newest when it was saved; nothing chose it"
SELECTION = "lowest validation video log loss (mean probability of a video's core faces)"
WARM_UP = 0.05  # share of the steps over which the learning rate rises from 0
_OF_EPOCH = ("samples", "loss_sum", "seconds")  # of a Position, what state.pt keeps of an epoch under way
_KEEP = 2  # checkpoints: the newest may be the one that a crash of the machine damaged

Report = Callable[[dict[str, Any]], None]
Feed = Callable[[FaceDataset, int], Iterable[Batch]]  # of so many steps an epoch


@dataclass
class Position:
    """Where a run is: whole epochs done, samples of the current one (all processes), steps; what it found: one entry for each epoch done.

    loss_sum: over the samples of the current epoch, from the losses of one rank's share of them. seconds: that they took.
    """

    epoch: int = 0
    samples: int = 0
    step: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def best(self) -> float:
        return min((entry["video_log_loss"] for entry in self.history), default=math.inf)


def train_loop(
    config: TrainConfig,
    plan: Plan,
    *,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | None = None,
    report: Report | None = None,
    feed: Feed | None = None,
) -> list[dict[str, Any]]:
    """Train, from the newest intact checkpoint in OUT if there is one, and return the metrics of each epoch.

    With world_size > 1 every process calls this with its rank, after torch.distributed was initialised. `report` is called on every rank
    after each epoch. `feed` makes the batches of a dataset, in order, in place of a loader. Only rank 0 writes and prints. `loader_workers`
    and `feed` change nothing in the result, `world_size` nothing in the order.
    UserError when the loss is no longer finite.
    """
    plan = on_this_node(plan, config)
    run = _start(config, plan, rank=rank, world_size=world_size, device=device or torch.device("cpu"))
    at = run.at
    order = ShuffledOrder(
        plan.train, config.batch_size, config.seed, config.epochs, at.epoch, at.samples, config.balance, rank=rank, world_size=world_size
    )
    pin, sound = run.device.type == "cuda", takes_sound(config.model)
    training = FaceDataset(plan.train, transforms.training(run.spec), order, plan.fake, sound=sound)
    fixed = FixedOrder(len(plan.validation), config.batch_size, rank, world_size)
    held_out = FaceDataset(plan.validation, transforms.evaluation(run.spec), fixed, sound=sound)
    made: list[Iterable[Batch]] = [
        feed(dataset, steps) if feed else loader(dataset, workers=loaders(config), pin_memory=pin)
        for dataset, steps in ((training, order.steps_per_epoch), (held_out, len(fixed)))
    ]
    stream, validation = iter(made[0]), made[1]  # loader workers read on into the next epoch during validation

    with Board(config.out if rank == 0 else None, at.step) as board:
        meter = Meter(config.epochs, order.steps_per_epoch * config.epochs, at.step)
        while at.epoch < config.epochs:
            entry = {"epoch": at.epoch + 1} | _train_epoch(run, stream, order.steps_per_epoch, meter, board)
            entry |= validate(run.model, validation, plan.validation, device=run.device, world_size=world_size)
            better = entry["video_log_loss"] < at.best
            at.epoch, at.samples, at.loss_sum, at.seconds = at.epoch + 1, 0, 0.0, 0.0
            at.history.append(entry)
            if rank == 0:
                if better:  # before the checkpoint: a run that is cut off between them does the end of this epoch again
                    run.save_best()
                run.save()
                board.scalars(at.step, {f"validation/{name}": entry[name] for name in METRICS})
                board.upload()
                console.print(_epoch_line(entry, config, better), highlight=False, soft_wrap=True)
            if report:
                report(entry)
    return at.history


def _train_epoch(run: "_Run", stream: Iterator[Batch], steps_per_epoch: int, meter: Meter, board: Board) -> dict[str, Any]:
    """From where the run is to the end of its epoch; what an entry of the history says of it."""
    config, at = run.config, run.at
    run.ddp.train()
    resumed, waited = time.monotonic(), 0.0
    started = resumed - at.seconds
    losses = torch.tensor(at.loss_sum, dtype=torch.float64, device=run.device)
    while at.samples < steps_per_epoch * config.batch_size:
        before = time.monotonic()
        batch = next(stream)
        wait = time.monotonic() - before
        waited += wait
        rate = config.learning_rate * schedule(at.step, steps_per_epoch * config.epochs)
        for group in run.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(_step_seed(config.seed, at.step, run.rank))  # so dropout needs no state to resume
        if config.cutmix:
            batch = cutmix(batch, config.cutmix)
        loss = step(run.ddp, run.optimizer, batch, objective=config.objective, device=run.device)
        losses += loss * config.batch_size
        at.step += 1
        at.samples += config.batch_size
        if run.rank == 0 and meter.due(wait, config.batch_size):
            meter.line(at.epoch, at.step, run.finite(loss))
            board.scalars(at.step, {"train/loss": loss.item(), "train/learning_rate": rate, **meter.scalars})
        if run.rank == 0 and time.monotonic() - run.saved_at >= config.checkpoint_minutes * 60:
            at.loss_sum, at.seconds = run.finite(losses), time.monotonic() - started
            run.save()
    now = time.monotonic()
    return {
        "step": at.step,
        "train_loss": run.finite(losses) / at.samples,
        "images_per_s": at.samples / (now - started),
        "data_wait": waited / (now - resumed),
        "seconds": now - started,
    }


def step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, *, objective: Objective, device: torch.device) -> torch.Tensor:
    """One step of the optimizer; the loss of this process's share of the batch."""
    inputs = to_device(batch.images, batch.sound, device)
    with torch.autocast(device.type, torch.bfloat16, enabled=use_bf16(model, device)):
        outputs = model(*inputs)
    loss = OBJECTIVES[objective](outputs, batch.labels.to(device, non_blocking=True))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


def optimizer_of(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW, without decay for biases and normalisation, as is usual."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)  # one pass over the weights


def schedule(step: int, steps: int) -> float:
    """Factor of the learning rate: linear warm-up, then half a cosine to 0 (Loshchilov and Hutter 2016, https://arxiv.org/abs/1608.03983)."""
    warm_up = max(1, round(steps * WARM_UP))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


@dataclass
class _Run:
    """What is trained, and what a checkpoint says of it. `ddp` is the model as it is trained: wrapped if there are several processes."""

    config: TrainConfig
    plan: Plan
    spec: dict[str, Any]
    model: nn.Module
    ddp: nn.Module
    optimizer: torch.optim.Optimizer
    at: Position
    rank: int
    device: torch.device
    saved_at: float = field(default_factory=time.monotonic)

    def save(self) -> None:
        folder = checkpoints(self.config)
        name = checkpoint.step_name(self.at.step)
        state = {"optimizer": self.optimizer.state_dict()} | {name: getattr(self.at, name) for name in _OF_EPOCH}
        checkpoint.save(storage.join(folder, name), weights=self.model.state_dict(), config=self.describe(LAST), state=state)
        checkpoint.prune(folder, last=name, keep=_KEEP)
        self.saved_at = time.monotonic()

    def save_best(self) -> None:
        checkpoint.save(storage.join(self.config.out, "best"), weights=self.model.state_dict(), config=self.describe(SELECTION), state=None)

    def describe(self, selection: str) -> dict[str, Any]:
        """config.json of a checkpoint."""
        config, plan, at = self.config, self.plan, self.at
        return {
            "model": config.model,
            "transform": self.spec,
            "objective": config.objective,
            "split": config.split,
            **plan.seen,
            "prior": plan.prior,
            "data_hash": plan.data_hash,
            "faces_config": plan.faces_config,
            "selection": selection,
            "epoch": at.epoch,
            "step": at.step,
            "validation": at.history[-1] if at.history else None,
            "history": at.history,
            "seed": config.seed,
            "device": self.device.type,
            "precision": precision(self.model, self.device),
            "train_config": dataclasses.asdict(config),
            "versions": {
                "dfdc-ray": __version__,
                "torch": torch.__version__,
                "torchvision": version("torchvision"),
                "python": platform.python_version(),
            },
        }

    def finite(self, loss: torch.Tensor) -> float:
        value = loss.item()
        if not math.isfinite(value):
            rate = self.config.learning_rate
            raise UserError(f"Training diverged: the loss is no longer finite. Give a --learning-rate below {rate:g} and another --out.")
        return value


def _start(config: TrainConfig, plan: Plan, *, rank: int, world_size: int, device: torch.device) -> _Run:
    """The model, its optimizer and the position, fresh or from the newest intact checkpoint."""
    checkpoint.mend(storage.join(config.out, "best"))
    saved = checkpoint.newest(checkpoints(config))
    weights = saved.weights if saved else plan.initial
    if weights is None:
        raise UserError(f"The checkpoints in {checkpoints(config)} have gone since this run began. Run the same command again.")
    model = create_model(config.model)
    restore(model, weights, config.out, "An older version began this run: give another --out.")
    model_to_device(model, device)
    optimizer = optimizer_of(model, config)
    at = Position()
    if saved:
        assert saved.state is not None
        optimizer.load_state_dict(saved.state["optimizer"])
        known = {name: saved.config[name] for name in ("epoch", "step", "history")}
        at = Position(**known, **{name: saved.state[name] for name in _OF_EPOCH if name in saved.state})
        now = {"device": device.type, "precision": precision(model, device)}
        before = {name: str(saved.config.get(name, value)) for name, value in now.items()}  # older checkpoints do not say
        if rank == 0 and before != now and at.epoch < config.epochs:
            console.print(
                f"[yellow]Goes on on {' in '.join(now.values())}; so far it was on {' in '.join(before.values())}: "
                "the weights will not be those of a run on either alone.[/]",
                soft_wrap=True,
            )
    ddp: nn.Module = for_training(model, config.objective)
    if world_size > 1:
        ddp = DistributedDataParallel(ddp, device_ids=[device] if device.type == "cuda" else None)
    spec = transforms.recipe(config.image_size, config.model, stabilise=config.stabilise)
    return _Run(config, plan, spec, model, ddp, optimizer, at, rank, device)


def _step_seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])


def _epoch_line(entry: dict[str, Any], config: TrainConfig, better: bool) -> str:
    auc = "not defined" if entry["video_auc"] is None else f"{entry['video_auc']:.3f}"
    return (
        f"epoch {entry['epoch']} of {config.epochs} done in {duration(entry['seconds'])}: training loss {entry['train_loss']:.4f}, "
        f"validation video log loss {entry['video_log_loss']:.4f}, video AUC {auc}" + (" (best so far)" if better else "")
    )
