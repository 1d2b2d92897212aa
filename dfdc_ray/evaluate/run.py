"""Judge a checkpoint on one split of a faces folder, and write the report.

    dfdc-ray evaluate --faces out/faces --checkpoint out/train/best --out out/report [--split test]

Every labelled video of the split is in every denominator: one without a face, or that could not be read, counts at the share of fakes in
training. Frames are `core` frames only. Refuses to judge groups that the model was trained on, unless that is asked for.
"""

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dfdc_ray import __version__, storage
from dfdc_ray.config import CalibrateConfig, EvaluateConfig
from dfdc_ray.console import Work, console
from dfdc_ray.corpus import splits
from dfdc_ray.errors import UserError
from dfdc_ray.evaluate import calibration
from dfdc_ray.evaluate import report as reports
from dfdc_ray.evaluate.aggregate import RULE, Aggregate, aggregate
from dfdc_ray.evaluate.calibration import Calibration
from dfdc_ray.evaluate.metrics import LOG_LOSS_EPS, THRESHOLD, Level, judge, log_losses
from dfdc_ray.evaluate.report import JudgedVideo, Report
from dfdc_ray.evaluate.scorer import Scorer, load_scorer, weights_of
from dfdc_ray.shards.cache import cached, check_folder
from dfdc_ray.shards.dataset import FaceDataset, FixedOrder, RowTable, loader, read_rows
from dfdc_ray.shards.manifest import Manifest, read_ledger, read_manifest
from dfdc_ray.train.checkpoint import load_model

GENERATED = "drawn_"  # how the methods of the generated corpus begin
_FREE = ("sampling", "frames", "real_multiplier")  # of the faces' configuration, what may differ from training without changing a face
_NOT_DONE = {"status": "not_done", "stage": None, "error": "preprocess was interrupted before it", "core_decoded": 0}
_GPU_LOADERS = 8  # processes that decode pictures for a GPU


@dataclass(frozen=True)
class _Videos:
    """The videos of the split: labelled rows in order of video_id; how many of the folder have no label; methods by video_id."""

    labelled: list[dict[str, Any]]
    unlabelled: int
    methods: Mapping[str, str | None]

    @property
    def groups(self) -> set[str]:
        return {row["group_id"] for row in self.labelled}


def evaluate(config: EvaluateConfig) -> None:
    """The command. Raises UserError for a checkpoint or faces folder that cannot be judged, and for groups seen in training."""
    scorer = load_scorer(config.checkpoint)
    manifest = read_manifest(config.faces)
    videos = _videos(config, scorer.config["split"])
    _refuse_seen(config, scorer.config, videos.groups)
    warnings = _warnings(config, scorer.faces_config, manifest, videos)
    storage.make_dirs(config.out)  # what cannot be written is said before the work, not after
    aggregates = _score(config, scorer, manifest, videos)
    report = _report(config, scorer, manifest, videos, aggregates, warnings=warnings)
    reports.show(report, console)
    reports.write(report, config.out)
    console.print(f"Report: {storage.join(storage.absolute(config.out), 'report.md')}", markup=False, highlight=False, soft_wrap=True)


def calibrate(config: CalibrateConfig) -> None:
    """The `calibrate` command: fit on the validation videos that have a face, and write it into the checkpoint folder."""
    scorer = Scorer(*load_model(config.checkpoint))  # without the calibration that it may have, which may be of other weights
    manifest = read_manifest(config.faces)
    options = EvaluateConfig(faces=config.faces, checkpoint=config.checkpoint, out="", split="validation", cache=config.cache)
    videos = _videos(options, scorer.config["split"])
    _refuse_seen(options, scorer.config, videos.groups)
    found = _score(options, scorer, manifest, videos)
    scored = [row for row in videos.labelled if row["video_id"] in found]
    scores = np.array([found[row["video_id"]].score for row in scored])
    labels = np.array([row["label"] == "FAKE" for row in scored], dtype=np.int64)
    a, b = calibration.fit(scores, labels)
    counts = {"reals": int((labels == 0).sum()), "fakes": int(labels.sum())}
    fitted = Calibration(a=a, b=b, **counts, data_hash=manifest.data_hash, weights=weights_of(scorer.config))
    calibration.save(config.checkpoint, fitted)
    after = fitted(scores)
    console.print(
        f"{fitted.describe()}.\nOn these very videos: log loss {log_losses(scores, labels).mean():.4f} before, "
        f"{log_losses(after, labels).mean():.4f} after; calibration error {calibration.error(scores, labels):.4f} before, "
        f"{calibration.error(after, labels):.4f} after. `evaluate` says what it does to videos that nothing was fitted to.",
        highlight=False,
        soft_wrap=True,
    )


def _videos(config: EvaluateConfig, rule: str) -> _Videos:
    ledger = {row["video_id"]: row for row in read_ledger(config.faces).to_pylist()}
    index = _index(config.faces)
    rows = [ledger.get(row["video_id"], row | _NOT_DONE) for row in index]
    known = [row for row in rows if row["label"] is not None]  # Kaggle's test_videos have neither label nor part: no rule can place them
    assigned = splits.assign(rule, [row["group_id"] for row in known], [row["part"] for row in known])
    labelled = [row for row, split in zip(known, assigned, strict=True) if split == config.split]
    if not labelled:
        counts = ", ".join(f"{split} {assigned.count(split)}" for split in splits.SPLITS)
        raise UserError(
            f"no labelled video of {config.faces} is in the {config.split} split by the checkpoint's rule {rule} (videos: {counts}). "
            "Give another --split, or a faces folder with more groups."
        )
    return _Videos(labelled, len(rows) - len(known), {row["video_id"]: row["method"] for row in index})


def _index(faces: str) -> list[dict[str, Any]]:
    """Every video that preprocess knows of, also those that it has not done, in order of video_id."""
    uri = storage.join(faces, "index.parquet")
    try:
        table = pq.read_table(pa.BufferReader(storage.read_bytes(uri)), columns=["video_id", "group_id", "part", "label", "method"])
    except FileNotFoundError as error:
        raise UserError(f"{uri} is absent. Copy the whole preprocess output, or run its `dfdc-ray preprocess` command again.") from error
    rows: list[dict[str, Any]] = table.sort_by("video_id").to_pylist()
    return rows


def _refuse_seen(config: EvaluateConfig, checkpoint: Mapping[str, Any], groups: set[str]) -> None:
    if config.split == "train":
        return
    seen = sorted(groups & set(checkpoint["train_groups"]))
    if seen:
        raise UserError(
            f"{len(seen)} of the {len(groups)} groups in the {config.split} split of {config.faces} were trained on by {config.checkpoint} "
            f"({', '.join(seen[:5])}{', ...' if len(seen) > 5 else ''}): the result would be worthless. "
            "Evaluate on the faces that it was trained from, or on other people; --split train judges the training data and says so."
        )


def _score(config: EvaluateConfig, scorer: Scorer, manifest: Manifest, videos: _Videos) -> dict[str, Aggregate]:
    """Score every core face of the split's labelled videos; aggregates by video_id, absent for videos without one."""
    rows = read_rows(manifest)
    ids = rows.table["video_id"].cast(pa.string())
    wanted = pc.is_in(ids, value_set=pa.array([row["video_id"] for row in videos.labelled], pa.string()))
    rows = rows.take(pc.and_(wanted, rows.table["core"]).to_numpy(zero_copy_only=False))
    if folder := check_folder(config.cache):
        (rows,) = cached([rows], folder)
    on_gpu = scorer.device.type == "cuda"
    dataset = FaceDataset(rows, scorer.transform, FixedOrder(len(rows), config.batch_size))
    batches = loader(dataset, workers=min(_GPU_LOADERS, os.cpu_count() or 1) if on_gpu else 0, pin_memory=on_gpu)
    scores = np.full(len(rows), np.nan)
    with Work("scoring", total=len(rows), unit="faces") as work:
        for batch in batches:
            scores[batch.positions.numpy()] = scorer.batch(batch.images)
            work.advance(len(batch.positions))
    return _aggregate(rows, scores, {row["video_id"]: row["core_decoded"] for row in videos.labelled})


def _aggregate(rows: RowTable, scores: np.ndarray, sampled: Mapping[str, int]) -> dict[str, Aggregate]:
    tracks = pc.fill_null(rows.table["track_id"], 0).to_numpy()  # null for whole frames: one track
    ids = rows.table["video_id"].cast(pa.string()).to_numpy()
    return aggregate(ids, tracks, rows.column("frame"), scores, sampled)


def _report(
    config: EvaluateConfig,
    scorer: Scorer,
    manifest: Manifest,
    videos: _Videos,
    aggregates: Mapping[str, Aggregate],
    *,
    warnings: tuple[str, ...],
) -> Report:
    prior = float(scorer.config["prior"])
    judged = tuple(
        _judged(row, aggregates.get(row["video_id"]), videos.methods.get(row["video_id"]), prior, scorer) for row in videos.labelled
    )
    in_frames = [(v, score) for v in judged if v.video_id in aggregates for score in aggregates[v.video_id].frame_scores]
    video = _level(list(judged), [v.counted_as for v in judged], prior)
    frame = _level([v for v, _ in in_frames], [float(score) for _, score in in_frames], prior)
    return Report(
        title=f"{scorer.config['model']} on the {config.split} split",
        protocol=_protocol(config, scorer, manifest, judged, frames_scored=frame.metrics.n),
        warnings=warnings,
        video=video,
        frame=frame,
        videos=judged,
        unlabelled_videos=videos.unlabelled,
        frame_scores=np.array([score for _, score in in_frames], dtype=np.float64),
        frame_labels=np.array([v.label == "FAKE" for v, _ in in_frames], dtype=np.int64),
    )


def _level(videos: list[JudgedVideo], scores: list[float], prior: float) -> Level:
    labels = np.array([v.label == "FAKE" for v in videos], dtype=np.int64)
    return judge(np.array(scores, dtype=np.float64), labels, np.array([v.group_id for v in videos], dtype=str), train_prior=prior)


def _judged(row: Mapping[str, Any], found: Aggregate | None, method: str | None, prior: float, scorer: Scorer) -> JudgedVideo:
    status, error = row["status"], row["error"]
    if status == "ok" and found is None:
        status, error = "no_core_face", "its only faces are in the extra frames of real videos, which belong to training"
    score = None if found is None else scorer.probability(found.score)
    return JudgedVideo(
        video_id=row["video_id"],
        group_id=row["group_id"],
        label=row["label"],
        method=method,
        part=row["part"],
        status=status,
        stage=row["stage"],
        error=error,
        raw_score=None if found is None else found.score,
        score=score,
        counted_as=prior if score is None else score,
        frames_sampled=row["core_decoded"],
        frames_scored=0 if found is None else len(found.frames),
        short_tracks=found is not None and found.short,
    )


def _warnings(config: EvaluateConfig, trained: Mapping[str, Any], manifest: Manifest, videos: _Videos) -> tuple[str, ...]:
    """What must be known before any number; `trained` is the configuration of the training faces."""
    found = []
    if config.split == "train":
        found.append("TRAINING DATA: the model was fitted to these very videos. This says nothing about videos that it has not seen.")
    if config.split == "validation":
        found.append("VALIDATION DATA: the checkpoint was chosen by it, so it looks better here than on new videos. Report the test split.")
    if any((videos.methods.get(row["video_id"]) or "").startswith(GENERATED) for row in videos.labelled):
        found.append("GENERATED CORPUS: these faces are drawn. This says nothing about real fakes.")
    differing = [
        f"{name} {trained.get(name)} in training, {manifest.config.get(name)} here"
        for name in sorted(trained.keys() | manifest.config.keys())
        if name not in _FREE and trained.get(name) != manifest.config.get(name)
    ]
    if differing:
        found.append(f"These faces were made in another way than those of training: {'; '.join(differing)}.")
    return tuple(found)


def _protocol(
    config: EvaluateConfig, scorer: Scorer, manifest: Manifest, videos: tuple[JudgedVideo, ...], *, frames_scored: int
) -> dict[str, Any]:
    checkpoint, faces = scorer.config, manifest.config
    return {
        "checkpoint": config.checkpoint,
        "checkpoint_rule": checkpoint["selection"],
        "checkpoint_epoch": checkpoint["epoch"],
        "model": checkpoint["model"],
        "faces": config.faces,
        "data_hash": manifest.data_hash,
        "data_hash_of_training": checkpoint["data_hash"],
        "split": config.split,
        "split_rule": splits.describe(checkpoint["split"]),
        "groups": len({v.group_id for v in videos}),
        "videos": len(videos),
        "videos_scored": sum(v.score is not None for v in videos),
        "sampling": faces["sampling"],
        "frames_per_video": faces["frames"],
        "frames_used": "core frames only",
        "frames_sampled": sum(v.frames_sampled for v in videos),
        "frames_scored": frames_scored,
        "aggregation": RULE,
        "calibration": scorer.calibration.describe() if scorer.calibration else "none: `dfdc-ray calibrate` fits one on validation",
        "threshold": THRESHOLD,
        "log_loss_clipping": LOG_LOSS_EPS,
        "without_a_face": "counts at the training prior, by video; not in the numbers by frame",
        "train_prior": checkpoint["prior"],
        "device": str(scorer.device),
        "versions": {"python": platform.python_version(), "dfdc-ray": __version__}
        | {name: version(name) for name in ("torch", "torchvision", "torchmetrics", "numpy", "pyarrow")},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
