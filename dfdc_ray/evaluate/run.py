"""Judge a checkpoint on one split of a faces folder, and write the report.

    dfdc-ray evaluate --faces out/faces --checkpoint out/train/best --out out/report [--split test]

Every labelled video of the split is in every denominator: one without a face, or that could not be read, counts at the share of fakes in
training. Frames are `core` frames only. Refuses to judge groups that the model was trained on, unless that is asked for.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from rich.table import Table

from dfdc_ray import storage
from dfdc_ray.config import CalibrateConfig, EvaluateConfig
from dfdc_ray.console import console
from dfdc_ray.corpus import splits
from dfdc_ray.errors import UserError
from dfdc_ray.evaluate import calibration, files, tables
from dfdc_ray.evaluate.aggregate import DEFAULT, RULES, Aggregate, aggregate, describe
from dfdc_ray.evaluate.appearance import appearance
from dfdc_ray.evaluate.calibration import Calibration
from dfdc_ray.evaluate.duplicates import near_duplicates
from dfdc_ray.evaluate.heat import drawn
from dfdc_ray.evaluate.metrics import binary_metrics, change_of_auc, judge, log_losses
from dfdc_ray.evaluate.mistakes import Mistake, mistakes
from dfdc_ray.evaluate.protocol import protocol, warnings_of
from dfdc_ray.evaluate.report import JudgedVideo, Report, Robustness
from dfdc_ray.evaluate.robustness import CHANGES
from dfdc_ray.evaluate.scorer import Scorer, load_scorer, score_rows, weights_of
from dfdc_ray.evaluate.videos import SplitVideos, fitting_videos, refuse_trained_on, split_videos
from dfdc_ray.shards.cache import cached, check_folder
from dfdc_ray.shards.manifest import Manifest, read_manifest
from dfdc_ray.shards.rows import RowTable, samples_of
from dfdc_ray.train.memory import keep_freed_memory
from dfdc_ray.video.sound import MUTE

_BATCH = 64


@dataclass(frozen=True)
class Faces:
    """The core faces of the split's videos, or the core clips of them; sampled: frames or clips by video_id."""

    rows: RowTable
    sampled: Mapping[str, int]

    def aggregate(self, scores: np.ndarray, rule: str) -> dict[str, Aggregate]:
        """By video_id, from a score for each face; absent for videos without one."""
        return aggregate(self.video_ids, self._track_ids, self.rows.column("frame"), scores, self.sampled, rule=rule)

    def tracks(self) -> dict[tuple[str, int], np.ndarray]:
        """Positions of the rows, int64, by video_id and track."""
        ids, tracks = self.video_ids, self._track_ids
        order = np.lexsort((tracks, ids))
        starts = 1 + np.flatnonzero((ids[order][1:] != ids[order][:-1]) | (tracks[order][1:] != tracks[order][:-1]))
        return {(str(ids[rows[0]]), int(tracks[rows[0]])): rows for rows in np.split(order, starts)} if len(order) else {}

    @property
    def _track_ids(self) -> np.ndarray:
        found: np.ndarray = pc.fill_null(self.rows.table["track_id"], 0).to_numpy()  # null for whole frames: one track
        return found

    @property
    def video_ids(self) -> np.ndarray:
        ids: np.ndarray = self.rows.table["video_id"].cast(pa.string()).to_numpy()
        return ids


def evaluate(config: EvaluateConfig) -> None:
    """The command. Raises UserError for a checkpoint or faces folder that cannot be judged, and for groups seen in training."""
    tables.show(write_report(config), console)
    console.print(f"Report: {storage.join(storage.absolute(config.out), 'report.html')}", markup=False, highlight=False, soft_wrap=True)


def write_report(config: EvaluateConfig) -> Report:
    """What `evaluate` does but for its tables on the console."""
    keep_freed_memory()
    scorer = load_scorer(*config.checkpoint)
    manifest = read_manifest(config.faces)
    videos = split_videos(config.faces, scorer.config["split"], config.split)
    if config.split != "train":
        refuse_trained_on(videos, scorer.config, split=config.split, faces=config.faces, uri=", ".join(config.checkpoint))
    warnings = warnings_of(config, scorer, manifest, videos)
    if config.training_faces and config.split == "train":
        raise UserError("--training-faces: the split train is what was trained on. Look for near-duplicates of another --split in it.")
    training = None
    if config.training_faces:
        training, unseen = _faces_seen(config, config.training_faces, scorer)
        warnings += unseen
    storage.make_dirs(config.out)  # what cannot be written is said before the work, not after
    faces = faces_of(manifest, videos, clips=scorer.clips, sound=scorer.sound, cache=config.cache)
    report, wrong = _report(config, scorer, manifest, videos, faces, training=training, warnings=warnings)
    files.write(report, config.out, wrong)
    return report


def calibrate(config: CalibrateConfig) -> None:
    """The `calibrate` command: choose and fit on the validation videos that have a face, and write it into the checkpoint folder.

    Of all rules of aggregation the one whose calibrated scores have the lowest log loss is kept.
    """
    keep_freed_memory()
    scorer = load_scorer(config.checkpoint, calibrated=False)  # it may be of other weights
    manifest = read_manifest(config.faces)
    videos = fitting_videos(config.faces, scorer.config, uri=config.checkpoint)
    faces = faces_of(manifest, videos, clips=scorer.clips, sound=scorer.sound, cache=config.cache)
    of_faces = score_rows(scorer, faces.rows, batch_size=_BATCH)
    found = {rule: faces.aggregate(of_faces, rule) for rule in RULES}
    scored = [row for row in videos.labelled if row["video_id"] in found[DEFAULT]]
    labels = np.array([row["label"] == "FAKE" for row in scored], dtype=np.int64)
    scores = {rule: np.array([by_video[row["video_id"]].score for row in scored]) for rule, by_video in found.items()}
    rule, a, b, losses = calibration.choose(scores, labels)
    frames = int(np.median([faces.sampled[row["video_id"]] for row in scored]))
    counts = {"reals": int((labels == 0).sum()), "fakes": int(labels.sum()), "frames": frames}
    fitted = Calibration(rule=rule, a=a, b=b, **counts, unit=scorer.unit, data_hash=manifest.data_hash, weights=weights_of(scorer.config))
    calibration.save(config.checkpoint, fitted)
    before, after = scores[DEFAULT], fitted(scores[rule])
    rules = Table("rule", title="Frames to video, on validation", caption="each calibrated; nats", caption_justify="left")
    rules.add_column("log loss", justify="right")
    for one in RULES:
        rules.add_row(one, f"{losses[one]:.4f}" if one in losses else "-", style="bold" if one == rule else None)
    console.print(rules)
    console.print(
        f"{splits.describe(scorer.config['split'])}; data hash {manifest.data_hash[:12]}.\n"
        f"A video's score: {describe(rule)}.\n{fitted.describe()}.\nOn these very videos: log loss {log_losses(before, labels).mean():.4f} "
        f"before, {log_losses(after, labels).mean():.4f} after; calibration error {calibration.error(before, labels):.4f} before, "
        f"{calibration.error(after, labels):.4f} after. `evaluate` says what it does to videos that nothing was fitted to.",
        highlight=False,
        soft_wrap=True,
    )


def faces_of(manifest: Manifest, videos: SplitVideos, *, clips: bool, sound: bool, cache: str | None) -> Faces:
    """UserError if clips or sound are wanted and there are none."""
    rows = samples_of(manifest, clips=clips, sound=sound)
    wanted = pc.is_in(
        rows.table["video_id"].cast(pa.string()), value_set=pa.array([row["video_id"] for row in videos.labelled], pa.string())
    )
    rows = rows.take(pc.and_(wanted, rows.table["core"]).to_numpy(zero_copy_only=False))
    length = rows.clip_length or 1
    return Faces(_cached(rows, cache), {video_id: frames // length for video_id, frames in videos.sampled.items()})


def _cached(rows: RowTable, cache: str | None) -> RowTable:
    folder = check_folder(cache)
    return rows if folder is None else cached([rows], folder)[0]


def _faces_seen(config: EvaluateConfig, uri: str, scorer: Scorer) -> tuple[RowTable, tuple[str, ...]]:
    """The rows of the groups that were trained on (judging test or all: or chosen by), and what to say of pictures that are not among them.

    uri: the faces that the checkpoint, or one of several, was trained from.

    An earlier training, whose weights this one began with, may have been from other faces.
    """
    manifest = read_manifest(uri)
    known = str(scorer.config["data_hash"]).split("; ")  # of several checkpoints each one's
    if manifest.data_hash not in known:
        hashes = " and ".join(one[:12] for one in known)
        raise UserError(
            f"--training-faces {uri} has the data hash {manifest.data_hash[:12]}, but the checkpoint was trained from {hashes}: give the "
            "--faces of its training."
        )
    rows = samples_of(manifest, clips=scorer.clips)  # so that the same frames are compared
    chosen_by = () if config.split == "validation" else scorer.config.get("validation_groups", ())
    groups = pa.array(sorted({*scorer.config["train_groups"], *chosen_by}), pa.string())
    rows = rows.take(pc.is_in(rows.table["group_id"].cast(pa.string()), value_set=groups).to_numpy(zero_copy_only=False))
    absent = len(groups) - pc.count_distinct(rows.table["group_id"].cast(pa.string())).as_py()
    warnings = []
    if absent:
        warnings.append(
            f"NEAR-DUPLICATES: {absent} of the groups that the model was trained on or chosen by have no face in --training-faces and were "
            "not looked at."
        )
    if others := [one[:12] for one in known if one != manifest.data_hash]:
        warnings.append(
            "NEAR-DUPLICATES: of several checkpoints some were trained from other faces than --training-faces "
            f"({', '.join(others)}), which were not looked at."
        )
    return _cached(rows, config.cache), tuple(warnings)


def _report(
    config: EvaluateConfig,
    scorer: Scorer,
    manifest: Manifest,
    videos: SplitVideos,
    faces: Faces,
    *,
    training: RowTable | None,
    warnings: tuple[str, ...],
) -> tuple[Report, list[Mistake]]:
    looks = np.zeros((len(faces.rows), 2))

    def look(positions: np.ndarray, images: torch.Tensor) -> None:
        looks[positions] = appearance(images)

    prior = float(scorer.config["prior"])
    scores = score_rows(scorer, faces.rows, batch_size=config.batch_size, each=look)
    found = faces.aggregate(scores, scorer.rule)
    of_faces = manifest.config.get("crop") != "frame"  # whole frames have anything in their middle
    judged = _judged(videos, found, _medians(faces, looks) if of_faces else {}, scorer, faces.sampled)
    in_frames = _by_frame(videos, found)
    unchanged = np.array([v.counted_as for v in judged])
    rules = {
        rule: binary_metrics(_counted(videos, faces.aggregate(scores, rule), prior, lambda score: score), videos.labels) for rule in RULES
    }
    changed = []
    for name, change in CHANGES.items() if config.robustness else ():
        worse = score_rows(scorer, faces.rows, batch_size=config.batch_size, change=change, what=name)
        after = faces.aggregate(worse, scorer.rule)
        frame_scores, frame_labels, _ = _by_frame(videos, after)
        by_video = _counted(videos, after, prior, scorer.probability)
        changed.append(
            Robustness(
                change=name,
                video=binary_metrics(by_video, videos.labels),
                frame=binary_metrics(frame_scores, frame_labels),
                video_auc=change_of_auc(unchanged, by_video, videos.labels, videos.group_ids),
            )
        )
    sampled = [v.frames_sampled for v in judged if v.score is not None]
    if sampled and scorer.calibration and (caveat := scorer.calibration.caveat(int(np.median(sampled)))):
        warnings += (f"PROBABILITIES ARE ROUGH: {caveat}.",)
    report = Report(
        title=f"{scorer.config['model']} on " + ("all videos" if config.split == "all" else f"the {config.split} split"),
        protocol=protocol(config, scorer, manifest, judged, frames_scored=len(in_frames[0])),
        warnings=warnings,
        video=judge(unchanged, videos.labels, videos.group_ids, train_prior=prior, families=videos.family_ids),
        frame=judge(*in_frames, train_prior=prior),
        videos=judged,
        unlabelled_videos=videos.unlabelled,
        frame_scores=in_frames[0],
        frame_labels=in_frames[1],
        rules=rules,
        rule=scorer.rule,
        robustness=tuple(changed),
        near_duplicates=None if training is None else near_duplicates(faces.rows, training),
        unit=scorer.unit,
        maps_of=drawn(scorer),
    )
    return report, mistakes(report.worst, found, faces.rows, scores, scorer=scorer, manifest=manifest, unit=report.unit)


def _counted(videos: SplitVideos, found: Mapping[str, Aggregate], prior: float, probability: Callable[[float], float]) -> np.ndarray:
    """float64 [V]: the score of each video; one without a face counts at the prior."""
    pairs = [found.get(row["video_id"]) for row in videos.labelled]
    return np.array([prior if a is None else probability(a.score) for a in pairs])


def _by_frame(videos: SplitVideos, found: Mapping[str, Aggregate]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, labels and groups, [F] each, of the frames of the videos with a face."""
    scored = [row["video_id"] in found for row in videos.labelled]
    frame_scores = [found[row["video_id"]].frame_scores for row, there in zip(videos.labelled, scored, strict=True) if there]
    counts = [len(some) for some in frame_scores]
    labels, groups = (np.repeat(values[scored], counts) for values in (videos.labels, videos.group_ids))
    return np.concatenate([np.empty(0), *frame_scores]), labels, groups


def _medians(faces: Faces, looks: np.ndarray) -> dict[str, np.ndarray]:
    """Of what was measured in each face, float64 [N,2], the medians by video."""
    ids = faces.video_ids
    if not len(ids):
        return {}
    order = np.argsort(ids, kind="stable")
    names, starts = np.unique(ids[order], return_index=True)
    return {str(name): np.median(looks[rows], axis=0) for name, rows in zip(names, np.split(order, starts[1:]), strict=True)}


def _unheard(sound: str | None) -> str:
    """Why a model that listens could not judge a video with faces. sound: as the ledger says how it was."""
    if sound in MUTE:
        return f"{MUTE[sound]}, and the model listens"
    how = f" ({sound})" if sound not in (None, "ok") else ""
    return f"no face is there with sound throughout one of its core clips{how}"


def _judged(
    videos: SplitVideos, found: Mapping[str, Aggregate], looks: Mapping[str, np.ndarray], scorer: Scorer, sampled: Mapping[str, int]
) -> tuple[JudgedVideo, ...]:
    """sampled: frames or clips by video_id."""
    judged = []
    for row in videos.labelled:
        aggregate = found.get(row["video_id"])
        status, error = row["status"], row["error"]
        if status == "ok" and aggregate is None:
            status, error = "no_core_face", "its only faces are in the extra frames of real videos, which belong to training"
            if scorer.clips:
                error = "no face is there throughout one of its core clips"
            if scorer.sound:
                error = _unheard(row.get("sound"))
        score = None if aggregate is None else scorer.probability(aggregate.score)
        lightness, skin_tone = map(float, looks[row["video_id"]]) if row["video_id"] in looks else (None, None)
        judged.append(
            JudgedVideo(
                video_id=row["video_id"],
                group_id=row["group_id"],
                label=row["label"],
                method=videos.methods.get(row["video_id"]),
                part=row["part"],
                status=status,
                stage=row["stage"],
                error=error,
                raw_score=None if aggregate is None else aggregate.score,
                score=score,
                counted_as=float(scorer.config["prior"]) if score is None else score,
                frames_sampled=sampled[row["video_id"]],
                frames_scored=0 if aggregate is None else len(aggregate.frames),
                short_tracks=aggregate is not None and aggregate.short,
                lightness=lightness,
                skin_tone=skin_tone,
            )
        )
    return tuple(judged)
