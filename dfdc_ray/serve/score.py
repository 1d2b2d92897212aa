"""Score video files and show the evidence by frame and by face.

    dfdc-ray predict VIDEO... --checkpoint out/train/best [--json | --csv]

A video goes through the very code that made the training faces (preprocess.unit), with the same detector and crop, so that what the model
sees here is what it was trained on. Nothing is written to disk but the pictures of --maps. A video without a face, or one that cannot be
read, gets no score; the exit code is then 2.
"""

import csv
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np

from dfdc_ray import storage
from dfdc_ray.config import PredictConfig, PreprocessConfig
from dfdc_ray.console import Work, console, errors
from dfdc_ray.errors import StorageError, UserError
from dfdc_ray.evaluate.aggregate import MIN_COVERAGE_PERCENT, RULES, aggregate_video, describe
from dfdc_ray.evaluate.metrics import THRESHOLD
from dfdc_ray.evaluate.scorer import Scorer, load_scorer
from dfdc_ray.faces.detect import Detector, load_detector
from dfdc_ray.preprocess.plan import Video
from dfdc_ray.preprocess.settings import Settings, settings_of
from dfdc_ray.preprocess.unit import process_video
from dfdc_ray.serve import maps, show

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class FaceScore:
    """One face in one frame; rectangles are x, y, width, height in pixels of the frame."""

    frame: int  # presentation order
    time_s: float
    score: float
    box: tuple[float, ...] | None  # None: whole frames, without detection
    crop: tuple[int, ...]  # what the model saw


@dataclass(frozen=True, kw_only=True)
class TrackScore:
    """One face over time."""

    track_id: int
    score: float  # of its frames, by the rule
    coverage: float  # its share of the sampled frames
    counted: bool  # long enough to decide
    faces: tuple[FaceScore, ...]  # ascending frame


@dataclass(frozen=True, kw_only=True)
class FrameScore:
    """The highest score among the counted faces of one frame."""

    frame: int
    time_s: float
    score: float


@dataclass(frozen=True, kw_only=True)
class VideoScore:
    """What is known about one video; score and verdict are None unless status is ok."""

    uri: str
    status: Literal["ok", "no_face", "error"]
    stage: str | None = None  # of the error: open, probe, decode, detect, crop, sound
    error: str | None = None
    score: float | None = None  # probability of fake, calibrated where the checkpoint is
    raw_score: float | None = None  # before calibration, as those of frames and tracks; None where the checkpoint is not calibrated
    verdict: Literal["REAL", "FAKE"] | None = None  # FAKE above 0.5
    short_tracks: bool = False  # no face was there long enough, so the longest decided
    width: int | None = None  # of the frames, pixels
    height: int | None = None
    frames_sampled: int = 0  # decoded and searched for faces; of a model that looks at clips, clips, as in what follows
    frames: tuple[FrameScore, ...] = ()  # ascending; frames without a counted face are absent
    tracks: tuple[TrackScore, ...] = ()


def score_video(uri: str, scorer: Scorer, detector: Detector | None, settings: Settings, *, maps_folder: str | None = None) -> VideoScore:
    """Score one video (local path or s3:// URI, also a member of a zip).

    detector, settings: as `load_predictor` gives them. maps_folder: where a picture of what the model looked at is written (maps.py).
    Whatever is wrong with this video is in the result; nothing is raised for it. UserError or StorageError when the picture cannot be
    written: that is the folder's trouble, and the next video would have it too.
    """
    video = Video(corpus="", video_id=uri, uri=uri, label=None, method=None, original=None, family_id=uri, group_id=uri, part=None)
    try:
        result = process_video(video, settings, detector, None)
    except StorageError as error:  # cannot be read now: the other videos go on
        return VideoScore(uri=uri, status="error", stage="open", error=str(error))
    except Exception as error:  # a library's own trouble with one video
        return VideoScore(uri=uri, status="error", stage="decode", error=f"{type(error).__name__}: {error}")
    ledger, rows = result.ledger, result.faces
    if ledger["status"] != "ok":
        status: Literal["no_face", "error"] = "no_face" if ledger["status"] == "no_face" else "error"
        sampled = ledger["core_decoded"] // (settings.frames if scorer.clips else 1)
        why = f"no face in {sampled} sampled {'clips' if scorer.clips else 'frames'}" if status == "no_face" else ledger["error"]
        return VideoScore(uri=uri, status=status, stage=ledger["stage"], error=why, frames_sampled=sampled)
    clips = _clips(rows) if scorer.clips else [[row] for row in rows]
    if scorer.sound:
        clips = [clip for clip in clips if all(row["has_sound"] for row in clip)]
        if not clips:
            why = "it has no sound track" if ledger["sound"] == "none" else f"no clip of it has sound throughout ({ledger['sound']})"
            return VideoScore(uri=uri, status="error", stage="sound", error=f"the model listens, and {why}")
    pictures = [[row["image"]["bytes"] for row in clip] for clip in clips]
    scores = scorer.score(pictures, [[row["sound"] for row in clip] for clip in clips] if scorer.sound else ())
    if maps_folder is not None:
        drawn = maps.draw(scorer, pictures, scores.tolist(), [clip[0]["time_s"] for clip in clips], title=PurePosixPath(uri).name)
        storage.write_bytes(storage.join(maps_folder, maps.name_of(uri)), drawn)
    return _judged(uri, [clip[0] for clip in clips], scores, sampled=ledger["core_decoded"] // len(clips[0]), scorer=scorer)


def _clips(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Rows of the same clip of the same track, in the order of its frames."""
    clips: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["clip_position"]):
        clips.setdefault((row["track_id"] or 0, row["clip_id"]), []).append(row)
    return list(clips.values())


def _judged(uri: str, rows: list[dict[str, Any]], scores: np.ndarray, *, sampled: int, scorer: Scorer) -> VideoScore:
    track_ids = np.array([row["track_id"] or 0 for row in rows])  # null for whole frames: one track
    frames = np.array([row["frame"] for row in rows])
    whole = aggregate_video(track_ids, frames, scores, sampled, rule=scorer.rule)
    times = {row["frame"]: row["time_s"] for row in rows}
    tracks = []
    for track_id in np.unique(track_ids):
        faces = tuple(
            FaceScore(
                frame=row["frame"],
                time_s=row["time_s"],
                score=float(score),
                box=row["box"] and tuple(row["box"]),
                crop=tuple(row["crop"]),
            )
            for row, score, of in zip(rows, scores, track_ids, strict=True)
            if of == track_id
        )
        score = RULES[scorer.rule](np.array([face.score for face in faces]))
        counted = int(track_id) in whole.tracks
        tracks.append(TrackScore(track_id=int(track_id), score=score, coverage=len(faces) / sampled, counted=counted, faces=faces))
    probability = scorer.probability(whole.score)
    return VideoScore(
        uri=uri,
        status="ok",
        score=probability,
        raw_score=whole.score if scorer.calibration else None,
        verdict="FAKE" if probability > THRESHOLD else "REAL",
        short_tracks=whole.short,
        width=rows[0]["frame_width"],
        height=rows[0]["frame_height"],
        frames_sampled=sampled,
        frames=tuple(
            FrameScore(frame=int(f), time_s=times[int(f)], score=float(s)) for f, s in zip(whole.frames, whole.frame_scores, strict=True)
        ),
        tracks=tuple(tracks),
    )


def load_predictor(*checkpoints: str, frames: int) -> tuple[Scorer, Detector | None, Settings]:
    """The models, and the detector and settings of their training faces with `frames` frames per video, evenly spread or in clips."""
    scorer = load_scorer(*checkpoints)
    settings = replace(_settings(scorer.faces_config), real_multiplier=1, sound=scorer.sound)
    if scorer.clips:
        settings = replace(settings, clips=max(1, round(frames / settings.frames)))
    else:
        settings = replace(settings, sampling="spread", frames=frames, clips=None, stride=None)
    if settings.detector is None:  # whole frames
        return scorer, None, settings
    detector = load_detector(settings.detector, threshold=settings.detector_threshold, long_side=settings.detector_long_side)
    return scorer, detector, settings


def _settings(faces: dict[str, Any]) -> Settings:
    """How to cut faces as those of training were: for imported ones, our detector with the margin that is known of them."""
    if not faces.get("imported"):
        try:
            return Settings(**faces)
        except TypeError as error:
            raise UserError(f"The checkpoint's faces are of another version of dfdc-ray ({error}): preprocess and train again.") from error
    if faces["margin"] is None:
        raise UserError(
            "The model was trained on imported crops, and how wide they were cut is not known, so a video's faces cannot be cut alike. "
            "Import the crops with --margin and train again."
        )
    return settings_of(PreprocessConfig(corpus=(), out="", margin=faces["margin"]))


def predict(config: PredictConfig) -> None:
    """The command. Raises SystemExit(2) at the end when a video has no score, UserError for what is wrong with the options."""
    if config.json and config.csv:
        raise UserError("--json and --csv exclude each other: give one of them")
    if not config.videos:
        raise UserError("no video given: dfdc-ray predict VIDEO... --checkpoint DIR")
    if config.frames < 1:
        raise UserError(f"--frames {config.frames}: at least 1")
    if config.csv:
        _refuse_equal_names(config.videos)
    scorer, detector, settings = load_predictor(*config.checkpoint, frames=config.frames)
    if config.maps is not None:
        maps.check(scorer)
        storage.make_dirs(config.maps)
    parseable = config.json or config.csv
    results = []
    with Work("scoring", total=len(config.videos), unit="videos", to=errors if parseable or not console.is_terminal else console) as work:
        for uri in config.videos:
            result = score_video(uri, scorer, detector, settings, maps_folder=config.maps)
            results.append(result)
            work.advance()
            if parseable and result.score is None:
                errors.print(f"{uri}: no score: {result.error}", markup=False, highlight=False, soft_wrap=True)
            elif not parseable:
                show.video(result, console)
    if config.json:
        print(json.dumps(to_json(results, scorer, checkpoints=config.checkpoint, frames=config.frames), indent=2))
    elif config.csv:
        write_csv(results)
    elif len(results) > 1:
        show.summary(results, console)
    if any(result.score is None for result in results):
        raise SystemExit(2)


def to_json(results: Sequence[VideoScore], scorer: Scorer, *, checkpoints: Sequence[str], frames: int) -> dict[str, Any]:
    """Everything that is known, as plain values."""
    return {
        "format": FORMAT_VERSION,
        "checkpoint": ", ".join(checkpoints),
        "model": scorer.config["model"],
        "threshold": THRESHOLD,
        "aggregation": describe(scorer.rule),
        "min_coverage_percent": MIN_COVERAGE_PERCENT,
        "frames_per_video": frames,
        "videos": [asdict(result) for result in results],
    }


def _name(uri: str) -> str:
    return uri.rstrip("/").rsplit("/", 1)[-1]


def _refuse_equal_names(uris: Sequence[str]) -> None:
    twice = [name for name, count in Counter(map(_name, uris)).items() if count > 1]
    if twice:
        raise UserError(f"--csv names videos by file name alone, and {len(twice)} occur twice ({', '.join(twice[:3])}): score them apart")


def write_csv(results: Sequence[VideoScore]) -> None:
    """Kaggle's filename,label on stdout; a video without a score is left out, since any number there would be invented."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["filename", "label"])
    writer.writerows([_name(result.uri), f"{result.score:.6f}"] for result in results if result.score is not None)
