"""Training on Ray Train: any number of DDP workers, over gloo on CPUs or nccl on GPUs.

    dfdc-ray train --faces OUT_OF_PREPROCESS --out DIR

A worker that dies is replaced, and training goes on from our own newest checkpoint; so does the same command given again. OUT must be on
storage that all nodes see. Ray's own records of the run are in OUT/ray. The plan and the loop are imported where they are used: Ray's
controller, which has use for neither, imports this file too, and they take seconds.
"""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import ray.data
import ray.train
import ray.train.torch
import torch
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution import context as train_context
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
from ray.train.v2.torch.torch_trainer import TorchTrainer
from rich.table import Table

from dfdc_ray import storage
from dfdc_ray.cluster.run import connect, joined, require
from dfdc_ray.config import TrainConfig
from dfdc_ray.console import console
from dfdc_ray.corpus.splits import describe as describe_split
from dfdc_ray.errors import StorageError, UserError
from dfdc_ray.models import NO_FILE
from dfdc_ray.shards.cache import check_folder
from dfdc_ray.shards.dataset import Batch, FaceDataset
from dfdc_ray.train import checkpoint, memory
from dfdc_ray.train.network import tell_gloo

if TYPE_CHECKING:
    from dfdc_ray.train.plan import Plan

CACHE_WAIT_S = 4 * 3600  # instead of torch's half hour
MAX_FAILURES = 3  # worker groups lost to crashes without a new checkpoint between them; announced pre-emptions do not count


def train(config: TrainConfig) -> None:
    """Train on Ray, or go on with an interrupted run; print what there is to train on, progress, and the metrics of each epoch.

    UserError when something must be put right first; WorkerGroupError when workers kept dying.
    """
    from dfdc_ray.train.plan import describe, prepare

    config = _absolute(config)
    plan = prepare(config)
    describe(plan, config)
    if plan.finished:
        console.print(f"All {config.epochs} epochs are done already: nothing to do.", highlight=False)
        _summary(config, plan)
        return
    connect()
    require(cpus=config.workers * (config.cpus_per_worker + config.ingest_actors), gpus=config.workers if config.gpu else 0)
    if not joined():
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody pre-empts a private session
    trainer = _Trainer(
        _worker,
        train_loop_config={"config": config, "plan": ray.put(plan)},
        scaling_config=ScalingConfig(
            num_workers=config.workers,
            use_gpu=config.gpu,
            resources_per_worker={"CPU": config.cpus_per_worker, **({"GPU": 1} if config.gpu else {})},
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=config.out,
            logging_config=LoggingConfig(log_level="WARNING"),
            worker_runtime_env={} if config.gpu else {"env_vars": memory.ENVIRONMENT},  # of the actors that a worker starts, too
        ),
        # Nodes fill their caches at different speeds, and the first to be done waits for the others in its first collective operation.
        torch_config=_TorchConfig(timeout_s=CACHE_WAIT_S) if config.cache else _TorchConfig(),
    )
    try:
        trainer.fit()
    except WorkerGroupError as error:
        if cause := _user_error(error):
            raise cause from error
        error.add_note("Run the same command again to go on from the newest checkpoint.")
        raise
    _summary(config, plan)


class _Trainer(TorchTrainer):
    """Ends at once on a UserError, and does without the actor that frees the workers of a dead controller: in a private session, which has
    no state API, it only complains. Ctrl-C is Ray's while it trains, and afterwards does again what it did: Ray's handler would swallow it,
    and keep the controller alive with the plan, which holds the first weights.
    """

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        from dfdc_ray.train.plan import checkpoints

        assert self.train_loop_config is not None
        policy = _FailurePolicy(checkpoints(self.train_loop_config["config"]))
        before = signal.getsignal(signal.SIGINT)
        try:
            return super()._initialize_and_run_controller(**options | {"failure_policy": policy})
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, before)

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [c for c in callbacks if joined() or not isinstance(c, PlacementGroupCleanerCallback)]


class _TorchConfig(ray.train.torch.TorchConfig):
    """Over gloo, workers find each other at the addresses that their nodes have in the cluster."""

    @property
    def backend_cls(self) -> type:
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(_tell_gloo)
        super().on_start(worker_group, backend_config)


def _tell_gloo() -> None:
    tell_gloo(ray.util.get_node_ip_address())


class _FailurePolicy(DefaultFailurePolicy):
    """What a person must put right is not tried again. A training that gets on between losses may have any number of them."""

    def __init__(self, checkpoints: str) -> None:
        super().__init__(FailureConfig(max_failures=MAX_FAILURES))
        self._checkpoints, self._newest = checkpoints, [""]

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        if _user_error(training_failed_error):
            return FailureDecision.RAISE
        with contextlib.suppress(StorageError, UserError, OSError):  # storage that fails as well may be why workers were lost
            if (newest := checkpoint.steps(self._checkpoints)[:1]) != self._newest:
                self._newest, self._worker_group_failures = newest, 0
        return super().make_decision(training_failed_error)


def _user_error(error: TrainingFailedError) -> UserError | None:
    """The UserError that a worker raised, if one did."""
    failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
    causes = [getattr(failure, "_base_exc", failure) for failure in failures]  # Ray wraps what a worker raises
    return next((cause for cause in causes if isinstance(cause, UserError)), None)


def _worker(settings: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    from dfdc_ray.train.loop import train_loop

    config: TrainConfig = settings["config"]
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.set_num_threads(config.cpus_per_worker)
    train_context.logger.setLevel(logging.WARNING)  # it repeats every report; its name is its file's, which the level above does not reach
    train_loop(
        config,
        ray.get(settings["plan"]),
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        device=device,
        report=ray.train.report,
        feed=partial(_Ingest, actors=config.ingest_actors) if config.ingest_actors else None,
    )


@dataclass(frozen=True)
class _Ingest:
    """A dataset's batches in their order, made by Ray Data's actors. One pipeline an epoch, after that of the one before."""

    dataset: FaceDataset
    steps_per_epoch: int
    actors: int

    def __iter__(self) -> Iterator[Batch]:
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # it says at length what is raised anyway
        shared, first, count = ray.put(self.dataset), 0, len(self.dataset.order)
        while first < count:
            end = first + (count - first - 1) % self.steps_per_epoch + 1  # of this epoch
            numbers = [{"number": number} for number in range(first, end)]
            ordered = ray.data.from_items(numbers, override_num_blocks=len(numbers))
            context = ordered.context
            context.enable_progress_bars = False
            context.execution_options.preserve_order = True
            context.raise_original_map_exception = True
            context.max_errored_blocks = 0  # whatever the one who calls us has set: no batch may be left out
            batches = ordered.map_batches(
                _Maker,
                batch_size=1,
                fn_constructor_args=(shared,),
                compute=ray.data.ActorPoolStrategy(size=self.actors),
                num_cpus=1,
            )
            try:
                for made in batches.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=2):
                    yield Batch(*(torch.from_numpy(made[name][0].copy()) for name in Batch._fields))
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, UserError):
                    raise error.cause from error
                raise
            first = end


class _Maker:
    """Makes batches of a dataset, by their number."""

    def __init__(self, dataset: ray.ObjectRef) -> None:
        torch.set_num_threads(1)
        self.dataset: FaceDataset = ray.get(dataset)
        self.pictures = self.dataset.pictures().__enter__()

    def __call__(self, numbers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        (number,) = numbers["number"].tolist()
        batch = self.dataset.batch(self.pictures, number)
        return {name: value.numpy()[None] for name, value in batch._asdict().items()}


def _absolute(config: TrainConfig) -> TrainConfig:
    """Workers run in another folder: paths must not depend on the current one."""
    weights = config.weights if config.weights in NO_FILE else storage.absolute(config.weights)
    return replace(
        config,
        faces=storage.absolute(config.faces),
        out=storage.absolute(config.out),
        weights=weights,
        cache=check_folder(config.cache),
    )


def _summary(config: TrainConfig, plan: "Plan") -> None:
    from dfdc_ray.train.loop import SELECTION
    from dfdc_ray.train.plan import checkpoints

    saved = checkpoint.newest(checkpoints(config))
    assert saved is not None
    history = saved.config["history"]
    best = min(history, key=lambda entry: entry["video_log_loss"])
    judged = plan.counts["validation"]
    caption = (
        f"{judged.real_videos:,} real and {judged.fake_videos:,} fake videos of {judged.groups:,} groups, "
        f"{judged.real_rows + judged.fake_rows:,} core frames or clips; {describe_split(config.split)}; data hash {plan.data_hash[:12]}"
    )
    table = Table(title="Validation", caption=caption, caption_justify="left")
    for name in ("epoch", "train loss", "frame log loss", "frame AUC", "video log loss", "video AUC", "images /s", "data wait"):
        table.add_column(name, justify="right")
    for e in history:
        scores = (e["train_loss"], e["frame_log_loss"], e["frame_auc"], e["video_log_loss"], e["video_auc"])
        cells = ["not defined" if s is None else f"{s:.4f}" for s in scores]
        mark = " *" if e is best else ""
        table.add_row(f"{e['epoch']}{mark}", *cells, f"{e['images_per_s']:.1f}", f"{e['data_wait']:.0%}")
    console.print(table)
    console.print(f"* best, by the {SELECTION}: {storage.join(config.out, 'best')}", highlight=False, soft_wrap=True)
