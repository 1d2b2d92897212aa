"""What one training run will do, worked out and checked before anything is started: the rows, the splits, the first weights, and whether
there is a run to go on with. Everything that a person must put right is said here."""

import dataclasses
import itertools
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from rich.table import Table

from dfdc_ray import storage
from dfdc_ray.config import Balance, TrainConfig
from dfdc_ray.console import console
from dfdc_ray.corpus.splits import SPLITS, Split
from dfdc_ray.errors import UserError
from dfdc_ray.models import NO_FILE, check_side, create_model, load_weights, takes_clips, takes_sound
from dfdc_ray.shards.cache import cached, check_folder
from dfdc_ray.shards.dataset import FaceDataset
from dfdc_ray.shards.manifest import read_manifest
from dfdc_ray.shards.order import FixedOrder, ShuffledOrder
from dfdc_ray.shards.rows import RowTable, samples_of, split_mask
from dfdc_ray.train import checkpoint, transforms
from dfdc_ray.train.blend import SelfBlend, self_blend_of

# A run may go on with these changed; anything else would make it another run. `faces` may have moved: its data hash is compared.
MAY_CHANGE = {"faces", "out", "workers", "gpu", "cpus_per_worker", "loader_workers", "ingest_actors", "checkpoint_minutes", "cache"}


ONE_PLACE = 32  # pixels a side, of which networks that halve it five times leave one
_FITTED, _AT_A_TIME = 256, 8  # clips that a model's `fit` sees, and of which pictures are in memory
_RECORDED = {"groups": "group_id", "families": "family_id"}  # what a checkpoint says that it has seen, and the column
_TRIPLET = 8  # samples, so that nearly every batch has two of one class and one of the other
_WAYS: dict[Balance, str] = {
    "frames": "every face, also the extra ones of reals",
    "sample": "the rarer class more than once",
    "groups": "each group's reals and fakes alike",
    "none": "core faces",
}


@dataclass(frozen=True)
class Counts:
    """What one split holds: groups, videos and labelled face rows by class (rows by balance for training, core rows otherwise)."""

    groups: int
    real_videos: int
    fake_videos: int
    real_rows: int
    fake_rows: int

    @property
    def fake_share(self) -> float:
        """Of the videos."""
        return self.fake_videos / (self.fake_videos + self.real_videos)


@dataclass(frozen=True)
class Plan:
    """The rows of training and validation, and what a checkpoint records of them.

    train has the columns group, row, label and group_id only. fake: makes fakes of its reals, for --self-blend. drawn: how many reals and
    fakes an epoch draws, by each way to balance. prior: share of fakes among the training videos that have a face; where all are real, of
    those that --self-blend makes of them. seen: `train_groups`, `train_families` and the like of validation, also those that the first
    weights were trained on and chosen by. faces_config: how the faces were made. unheard: how many labelled videos were left out for
    want of sound. initial: first weights of a fresh run, None when there is a checkpoint to go on from. finished: all epochs are done.
    """

    train: RowTable
    fake: SelfBlend | None
    validation: RowTable
    counts: dict[Split, Counts]
    drawn: dict[Balance, tuple[int, int]]
    prior: float
    seen: dict[str, list[str]]
    data_hash: str
    faces_config: dict[str, Any]
    unheard: int
    initial: dict[str, torch.Tensor] | None
    finished: bool


def prepare(config: TrainConfig) -> Plan:
    """Work out the run. UserError when the options, the faces, the split, the weights or an earlier run in OUT do not allow it."""
    check_options(config)
    manifest = read_manifest(config.faces)
    more = ("landmarks", "crop") if config.self_blend else ()
    rows = samples_of(manifest, clips=takes_clips(config.model), sound=takes_sound(config.model), more=more)
    rows = rows.take(~np.isnan(rows.labels))
    if not len(rows):
        raise UserError(f"{config.faces} has no labelled face: training needs videos with metadata.json labels.")
    splits = {split: _split(rows, config, split) for split in SPLITS}
    core = {split: part.take(part.column("core")) for split, part in splits.items()}
    used = core if config.balance == "none" else core | {"train": splits["train"]}
    counts = {split: _count(part) for split, part in used.items()}
    _check_splits(config, counts)

    ways = {balance: core["train"] if balance == "none" else splits["train"] for balance in get_args(Balance)}
    drawn = {way: ShuffledOrder(rows, config.batch_size, 0, 1, balance=way).drawn for way, rows in ways.items() if len(rows)}
    saved = checkpoint.newest(checkpoints(config))
    if saved:
        _check_same(config, manifest.data_hash, saved.config)
    train = used["train"]
    before = saved.config if saved else _seen_before(config, used)
    fake = self_blend_of(train, config.self_blend) if config.self_blend else None
    return Plan(
        train=replace(train, table=train.table.select(["group", "row", "label", "group_id"])),  # workers get a copy each
        fake=fake,
        validation=used["validation"],
        counts=counts,
        drawn=drawn,
        prior=counts["train"].fake_share or (fake.made(train.labels) if fake else 0.0),
        seen=_seen(used, before),
        data_hash=manifest.data_hash,
        faces_config=manifest.config,
        unheard=rows.unheard,
        initial=None if saved else _initial_weights(config, train),
        finished=saved is not None and saved.config["epoch"] >= config.epochs,
    )


def on_this_node(plan: Plan, config: TrainConfig) -> Plan:
    """The plan with its shards read from --cache, where they are copied now unless they are there. UserError if they do not fit."""
    if config.cache is None:
        return plan
    train, validation = cached([plan.train, plan.validation], config.cache)
    return replace(plan, train=train, validation=validation)


def loaders(config: TrainConfig) -> int:
    """Processes that decode and augment for each training process."""
    if config.loader_workers is None:
        return config.cpus_per_worker if config.gpu else 0
    return config.loader_workers


def checkpoints(config: TrainConfig) -> str:
    """The folder of the checkpoints to resume from."""
    return storage.join(config.out, "checkpoints")


def describe(plan: Plan, config: TrainConfig) -> None:
    """Print the splits and the balance of the classes."""
    table = Table("split", "groups", "real videos", "fake videos", "real faces", "fake faces", title=f"Split {config.split}")
    for column in table.columns[1:]:
        column.justify = "right"
    for split, c in plan.counts.items():
        table.add_row(split, *(f"{n:,}" for n in (c.groups, c.real_videos, c.fake_videos, c.real_rows, c.fake_rows)))
    console.print(table)
    if plan.unheard:
        console.print(
            f"[yellow]Left out for want of sound, to which --model {config.model} listens: {plan.unheard:,} labelled videos with faces.[/]",
            highlight=False,
            soft_wrap=True,
        )
    validation = plan.counts["validation"]
    ways = Table("--balance", "an epoch draws", "real faces", "fake faces", "fake per real", title="Balance of the training faces")
    for column in ways.columns[2:]:
        column.justify = "right"
    for way, (reals, fakes) in plan.drawn.items():
        ratio = f"{fakes / reals:.2f}" if reals else "-"
        ways.add_row(way, _WAYS[way], f"{reals:,}", f"{fakes:,}", ratio, style="bold" if way == config.balance else "dim")
    console.print(ways)
    if plan.fake:
        reals, fakes = plan.drawn[config.balance]
        blended = round(plan.fake.made(plan.train.labels) * reals)
        console.print(
            f"Of about {blended:,} of the real faces of an epoch fakes are made: it has {reals - blended:,} real and {fakes + blended:,} "
            "fake faces.",
            highlight=False,
            soft_wrap=True,
        )
    share = plan.counts["train"].fake_share
    console.print(f"This run: {config.balance}. Of the training videos {share:.1%} are fake.", highlight=False, soft_wrap=True)
    if not (validation.real_videos and validation.fake_videos):
        console.print("[yellow]Validation has videos of one class only: its AUC is not defined.[/]", soft_wrap=True)


def steps_an_epoch(config: TrainConfig) -> int:
    """Of the optimizer, on frames. UserError as `prepare`."""
    rows = samples_of(read_manifest(config.faces), clips=False)
    rows = _split(rows.take(~np.isnan(rows.labels)), config, "train")
    if config.balance == "none":
        rows = rows.take(rows.column("core"))
    return ShuffledOrder(rows, config.batch_size, config.seed, 1, balance=config.balance).steps_per_epoch


def _split(rows: RowTable, config: TrainConfig, split: Split) -> RowTable:
    """The rows of a split; of training those of --groups groups, the same for every seed, those of fewer among those of more."""
    rows = rows.take(split_mask(rows, config.split, split))
    if split != "train" or config.groups is None:
        return rows
    ids = rows.table["group_id"].cast("string")
    names = sorted(pc.unique(ids).to_pylist())
    if not 1 <= config.groups <= len(names):
        raise UserError(f"--groups {config.groups}: the training split of {config.faces} has {len(names)}.")
    chosen = np.random.default_rng(0).permutation(names)[: config.groups]
    return rows.take(pc.is_in(ids, value_set=pa.array(chosen.tolist())).to_numpy(zero_copy_only=False))


def check_options(config: TrainConfig) -> None:
    """UserError for options that can be refused before anything is known of the faces."""
    for name, least in {"epochs": 1, "batch_size": 1, "workers": 1, "cpus_per_worker": 1, "seed": 0, "weight_decay": 0}.items():
        if not getattr(config, name) >= least:
            raise UserError(f"--{name.replace('_', '-')} {getattr(config, name)}: at least {least}.")
    if (config.loader_workers or 0) < 0 or config.learning_rate <= 0 or config.checkpoint_minutes <= 0:
        raise UserError("--loader-workers must not be negative, --learning-rate and --checkpoint-minutes must be positive.")
    if config.image_size < 32:
        raise UserError(f"--image-size {config.image_size}: at least 32, since the networks halve it five times.")
    check_side(config.model, config.image_size)
    _check_samples(config)
    if config.batch_size % config.workers:
        raise UserError(f"--batch-size {config.batch_size} (over all workers) does not divide by --workers {config.workers}.")
    if config.batch_size == config.workers and config.image_size <= ONE_PLACE:
        raise UserError(
            f"--batch-size of 1 a worker and --image-size {config.image_size}: the last layers would have one value a channel, and batch "
            f"normalisation nothing to compare. Give an --image-size above {ONE_PLACE} or a larger --batch-size."
        )
    check_folder(config.cache)
    if config.ingest_actors < 0:
        raise UserError(f"--ingest-actors {config.ingest_actors}: must not be negative.")
    if config.ingest_actors and (config.loader_workers or config.cache):
        raise UserError("--ingest-actors: they do what --loader-workers would, and on other nodes than --cache is on. Leave those out.")


def _check_samples(config: TrainConfig) -> None:
    """What is done to samples and batches."""
    if not 0 <= config.self_blend < 1:
        raise UserError(f"--self-blend {config.self_blend}: a share of the reals, from 0 to below 1.")
    if config.stabilise and not takes_clips(config.model):
        raise UserError(f"--stabilise is for clips, and --model {config.model} looks at single frames.")
    if not 0 <= config.cutmix <= 1:
        raise UserError(f"--cutmix {config.cutmix}: a share of the steps, from 0 to 1.")
    if config.cutmix and config.objective == "triplet":
        raise UserError(
            "--cutmix makes labels between real and fake, and --objective triplet wants samples of one class: give one of them."
        )
    if config.cutmix and config.batch_size // config.workers < 2:
        raise UserError("--cutmix mixes a sample with another of its batch: give at least 2 samples a worker.")
    if config.cutmix and takes_sound(config.model):
        raise UserError(f"--cutmix mixes pictures and no sound, to which --model {config.model} listens.")
    if config.self_blend and takes_clips(config.model):
        raise UserError(f"--self-blend is for single frames, and --model {config.model} looks at clips.")
    if config.objective == "sync" and config.model != "av_sync":
        raise UserError(
            f"--objective sync is of --model av_sync, which has pictures and sound to hold together; --model {config.model} has not."
        )
    if config.objective == "triplet" and config.batch_size // config.workers < _TRIPLET:
        raise UserError(f"--objective triplet wants at least {_TRIPLET} samples a worker: give a larger --batch-size or fewer --workers.")


def _check_splits(config: TrainConfig, counts: dict[Split, Counts]) -> None:
    train, validation = counts["train"], counts["validation"]
    advice = f"--split {config.split} on {config.faces}: %s. Choose another split rule, such as hash:1, or preprocess more videos."
    if not (train.real_rows and (train.fake_rows or config.self_blend)):
        what = "training has no face" if not (train.real_rows or train.fake_rows) else "training has faces of one class only"
        raise UserError(advice % f"{what} ({train.real_rows} real, {train.fake_rows} fake)")
    if not (validation.real_rows or validation.fake_rows):
        raise UserError(advice % "validation has no face")


def _check_same(config: TrainConfig, data_hash: str, saved: dict[str, Any]) -> None:
    before, now = saved["train_config"], dataclasses.asdict(config)
    before = {field.name: field.default for field in dataclasses.fields(config)} | before  # options that have come since
    changed = [name for name in now if name not in MAY_CHANGE and before[name] != now[name]]
    differences = [f"  --{name.replace('_', '-')}: {before[name]!r} there, {now[name]!r} now" for name in changed]
    if saved["data_hash"] != data_hash:
        differences.append(f"  the faces: data hash {saved['data_hash'][:12]} there, {data_hash[:12]} now (some were added or changed)")
    if differences:
        listed = "\n".join(differences)
        raise UserError(
            f"{config.out} holds a run with another configuration:\n{listed}\nGive the same options to go on with it, or another --out. "
            "To train its model further, start anew from its weights: --weights OUT/best/model.safetensors."
        )


def _count(rows: RowTable) -> Counts:
    fake = rows.labels == 1
    videos = [len(np.unique(rows.videos[mask])) for mask in (~fake, fake)]
    return Counts(
        groups=pc.count_distinct(rows.table["group_id"].cast("string")).as_py(),
        real_videos=videos[0],
        fake_videos=videos[1],
        real_rows=int((~fake).sum()),
        fake_rows=int(fake.sum()),
    )


def _distinct(rows: RowTable, column: str) -> set[str]:
    return set(pc.unique(rows.table[column].cast("string")).to_pylist())


def _seen(used: dict[Split, RowTable], before: dict[str, Any]) -> dict[str, list[str]]:
    """`Plan.seen`: these rows', and what an earlier record says."""
    record = {}
    for split in ("train", "validation"):
        for name, column in _RECORDED.items():
            key = f"{split}_{name}"
            record[key] = sorted(_distinct(used[split], column) | set(before.get(key, ())))
    return record


def _seen_before(config: TrainConfig, used: dict[Split, RowTable]) -> dict[str, Any]:
    """What --weights says that it was trained on, and chosen by, where it comes from a training of ours.

    UserError if one of them is in validation or test here, or one that it was chosen by in test: what is measured on them would not be of
    unseen people.
    """
    if config.weights in NO_FILE:
        return {}
    try:
        earlier = checkpoint.seen_by(config.weights)
    except FileNotFoundError:
        return {}  # _initial_weights says so
    for (name, column), (record, how) in itertools.product(_RECORDED.items(), (("train", "trained on"), ("validation", "chosen by"))):
        for split in ("validation", "test") if record == "train" else ("test",):
            if again := sorted(set(earlier.get(f"{record}_{name}", ())) & _distinct(used[split], column)):
                raise UserError(
                    f"--weights {config.weights} was {how} {len(again)} of the {name} that --split {config.split} puts into {split}, "
                    f"such as {again[0]}: what is measured there would be worth nothing. Give the split of its training "
                    f"({earlier['split']}), or other weights."
                )
    trained = set(earlier.get("train_groups", ()))
    if trained and not any(trained & _distinct(part, "group_id") for part in used.values()):
        console.print(
            f"[yellow]--weights {config.weights} was trained on groups of other names than these: whether they are other people cannot be "
            "checked.[/]",
            soft_wrap=True,
        )
    return earlier


def _initial_weights(config: TrainConfig, train: RowTable) -> dict[str, torch.Tensor]:
    torch.manual_seed(config.seed)
    model = create_model(config.model)
    load_weights(model, config.weights)
    if config.weights == "none" and hasattr(model, "fit"):
        some = train.take(np.random.default_rng(config.seed).permutation(len(train))[:_FITTED])
        spec = transforms.recipe(config.image_size, config.model, stabilise=config.stabilise)
        batches = FaceDataset(some, transforms.evaluation(spec), FixedOrder(len(some), _AT_A_TIME), sound=takes_sound(config.model))
        try:
            model.fit(torch.cat([model.features(batch.images, batch.sound) for batch in batches]))  # type: ignore[operator]
        except ValueError as error:
            raise UserError(
                f"{config.faces}: these clips do not do for --model {config.model} ({error}). Preprocess other or more videos."
            ) from error
    return model.state_dict()
