"""What is made of a video's faces: scores by face, frame and track, the verdict, and the pictures behind them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from dfdc_ray.evaluate.aggregate import RULES, aggregate_video
from dfdc_ray.evaluate.metrics import THRESHOLD
from dfdc_ray.evaluate.scorer import Scorer
from dfdc_ray.preprocess.settings import Settings
from dfdc_ray.preprocess.unit import VideoResult
from dfdc_ray.video.sound import MUTE


@dataclass(frozen=True, kw_only=True)
class FaceScore:
    """One face in one frame; rectangles are x, y, width, height in pixels of the frame."""

    frame: int  # presentation order
    time_s: float  # from the video's first frame on, here and below
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
    caveat: str | None = None  # why the score is a rough probability, if it is
    raw_threshold: float = THRESHOLD  # of raw_score and of the scores of frames and tracks: above it they speak for a fake
    short_tracks: bool = False  # no face was there long enough, so the longest decided
    width: int | None = None  # of the frames, pixels
    height: int | None = None
    unit: Literal["frames", "clips"] = "frames"  # what is scored, and what `frames` and `tracks` hold
    subject: Literal["face", "frame"] = "face"  # frame: the model looks at whole frames, and nobody looked for faces
    frames_sampled: int = 0  # decoded and searched for faces; of a model that looks at clips, clips, as in what follows
    frames: tuple[FrameScore, ...] = ()  # ascending; frames without a counted face are absent
    tracks: tuple[TrackScore, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A video's score and what was scored, one each: faces, or the clips of a model that looks at clips. Empty without a score."""

    video: VideoScore
    rows: tuple[dict[str, Any], ...] = ()  # as of a face shard; of a clip its first frame's
    pictures: tuple[tuple[bytes, ...], ...] = ()  # encoded: one, or a clip's
    scores: tuple[float, ...] = ()  # before calibration

    @property
    def deciding(self) -> list[int]:
        """Which of them are of tracks that count, the highest score first."""
        counted = {track.track_id for track in self.video.tracks if track.counted}
        some = [n for n, row in enumerate(self.rows) if (row["track_id"] or 0) in counted]
        return sorted(some, key=lambda n: -self.scores[n])


def from_the_beginning(result: VideoResult) -> VideoResult:
    """The same with times that count from the video's first frame; shards keep those that the file gives."""
    faces = [row | {"time_s": row["time_s"] - result.begins_s} for row in result.faces]
    sampled = tuple((frame, time_s - result.begins_s) for frame, time_s in result.sampled)
    return replace(result, faces=faces, sampled=sampled, begins_s=0.0)


def judge(
    uri: str, result: VideoResult, scorer: Scorer, settings: Settings, *, on_batch: Callable[[float], None] = lambda share: None
) -> Evidence:
    """Score what preprocess.unit found in a video. uri: as the video shall be called. on_batch: as of Scorer.score."""
    found = _judge(uri, result, scorer, settings, on_batch)
    said = replace(found.video, unit=scorer.unit, subject="frame" if settings.crop == "frame" else "face")
    return replace(found, video=said)


def _judge(uri: str, result: VideoResult, scorer: Scorer, settings: Settings, on_batch: Callable[[float], None]) -> Evidence:
    ledger, rows = result.ledger, result.faces
    if ledger["status"] != "ok":
        status: Literal["no_face", "error"] = "no_face" if ledger["status"] == "no_face" else "error"
        sampled = ledger["core_decoded"] // (settings.frames if scorer.clips else 1)
        why = f"no face in {sampled} sampled {scorer.unit}" if status == "no_face" else ledger["error"]
        return Evidence(video=VideoScore(uri=uri, status=status, stage=ledger["stage"], error=why, frames_sampled=sampled))
    clips = _clips(rows) if scorer.clips else [[row] for row in rows]
    if scorer.sound:
        clips = [clip for clip in clips if all(row["has_sound"] for row in clip)]
        if not clips:
            why = MUTE.get(ledger["sound"], f"no clip of it has sound throughout ({ledger['sound']})")
            return Evidence(video=VideoScore(uri=uri, status="error", stage="sound", error=f"the model listens, and {why}"))
    pictures = tuple(tuple(row["image"]["bytes"] for row in clip) for clip in clips)
    sound = [[row["sound"] for row in clip] for clip in clips] if scorer.sound else ()
    scores = scorer.score(pictures, sound, on_batch=on_batch)
    first = tuple(clip[0] for clip in clips)
    video = _judged(uri, first, scores, sampled=ledger["core_decoded"] // len(clips[0]), scorer=scorer)
    return Evidence(video=video, rows=first, pictures=pictures, scores=tuple(scores.tolist()))


def _clips(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Rows of the same clip of the same track, in the order of its frames."""
    clips: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["clip_position"]):
        clips.setdefault((row["track_id"] or 0, row["clip_id"]), []).append(row)
    return list(clips.values())


def _judged(uri: str, rows: Sequence[dict[str, Any]], scores: np.ndarray, *, sampled: int, scorer: Scorer) -> VideoScore:
    track_ids = np.array([row["track_id"] or 0 for row in rows])  # null for whole frames: one track
    frames = np.array([row["frame"] for row in rows])
    whole = aggregate_video(track_ids, frames, scores, sampled, rule=scorer.rule)
    times = {row["frame"]: row["time_s"] for row in rows}
    tracks = []
    calibration = scorer.calibration
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
        raw_score=whole.score if calibration else None,
        verdict="FAKE" if probability > THRESHOLD else "REAL",
        caveat=calibration.caveat(sampled) if calibration else None,
        raw_threshold=calibration.threshold if calibration else THRESHOLD,
        short_tracks=whole.short,
        width=rows[0]["frame_width"],
        height=rows[0]["frame_height"],
        frames_sampled=sampled,
        frames=tuple(
            FrameScore(frame=int(f), time_s=times[int(f)], score=float(s)) for f, s in zip(whole.frames, whole.frame_scores, strict=True)
        ),
        tracks=tuple(tracks),
    )
