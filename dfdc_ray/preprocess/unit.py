"""What is done with one video and one unit: decode the sampled frames, find faces, cut them out. Knows nothing of Ray or processes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from dfdc_ray.console import duration
from dfdc_ray.corpus.zips import open_video
from dfdc_ray.errors import Stage, VideoError, VideoGone
from dfdc_ray.faces.crop import crop_rect, cut, encode
from dfdc_ray.faces.detect import Box, Detector, Face
from dfdc_ray.faces.follow import Follower
from dfdc_ray.faces.tracks import link, steady
from dfdc_ray.preprocess import align
from dfdc_ray.preprocess.plan import Unit, Video
from dfdc_ray.preprocess.settings import Settings
from dfdc_ray.storage import Input, Traffic
from dfdc_ray.video.decode import VideoInfo, decode_frames, probe
from dfdc_ray.video.sampling import Sample, sample, subset
from dfdc_ray.video.sound import sound_around


@dataclass(frozen=True)
class Guide:
    """What fakes take over from their original: which frames, the faces in them, and small pictures to check the alignment with."""

    width: int
    height: int
    length: int  # frames
    core: tuple[Sample, ...]
    faces: dict[int, list[tuple[int, Face]]]  # frame -> (track, face)
    thumbnails: dict[int, np.ndarray]


@dataclass
class VideoResult:
    """The video's ledger row, rows for the shard, and the guide if it can be one for its family."""

    ledger: dict[str, Any]
    faces: list[dict[str, Any]] = field(default_factory=list)  # columns of shards.schema.FACES
    guide: Guide | None = None
    seconds: dict[str, float] = field(default_factory=dict)  # CPU seconds by stage
    traffic: Traffic = field(default_factory=Traffic)  # what reading it took from S3
    sampled: tuple[
        tuple[int, float], ...
    ] = ()  # frame and time (s) of the core samples, with a face or without; of clips their first frames
    begins_s: float = 0.0  # time of the first frame: times here are the file's, which need not begin at 0


@dataclass
class UnitResult:
    """All of a family, in the unit's order."""

    unit: Unit
    videos: list[VideoResult]


_NO_FILE = "its metadata.json lists it, but there is no such file (nor is a pipe, a folder, or a link that leads nowhere)"


def process_unit(unit: Unit, process: Callable[[Video, Guide | None], VideoResult]) -> UnitResult:
    """The original first, then its fakes with what it found; a video without a file is `missing`."""
    results = []
    guide: Guide | None = None
    for video in unit.videos:
        result = process(video, guide) if video.uri is not None else VideoResult(ledger_row(video, status="missing", error=_NO_FILE))
        if video.video_id == unit.family_id:
            guide = result.guide
        results.append(result)
    return UnitResult(unit, results)


def ledger_row(video: Video, *, status: str, stage: str | None = None, error: str | None = None, **counts: Any) -> dict[str, Any]:
    """One row of the ledger; counts that are not given are 0, what describes frames and faces None."""
    zeros: dict[str, Any] = {"frames_wanted": 0, "frames_decoded": 0, "core_decoded": 0, "frames_with_face": 0, "faces": 0}
    zeros |= dict.fromkeys(("box_source", "alignment", "brightness", "face_brightness", "crop_side", "sound"))
    ids = {name: getattr(video, name) for name in ("corpus", "video_id", "family_id", "group_id", "part", "label", "method", "original")}
    return ids | {"status": status, "stage": stage, "error": error} | zeros | counts


def process_video(
    video: Video,
    settings: Settings,
    detector: Detector | None,
    guide: Guide | None,
    *,
    on_stage: Callable[[Stage], None] = lambda stage: None,
    longest_s: float | None = None,
) -> VideoResult:
    """Decode, detect and crop one video. What is wrong with it ends in its ledger row; StorageError passes through.

    detector: None with whole frames (settings.crop == "frame").
    on_stage: told what comes next, so that whoever watches knows where a process died; "open" too while more of a large file is read.
    longest_s: a video that is longer is an error, before it is decoded.
    """
    work = _Work(video, settings, detector, on_stage, longest_s)
    try:
        return work.run(guide)
    except VideoGone as error:
        return work.failed("missing", error.stage, error.message)
    except VideoError as error:
        return work.failed("error", error.stage, error.message)
    except MemoryError:
        return work.failed("error", work.stage, "needs more memory than a video may take (--video-memory-mb)")


class _Work:
    """One video under way: the stage it is in, CPU seconds by stage, and the counts so far."""

    def __init__(
        self, video: Video, settings: Settings, detector: Detector | None, on_stage: Callable[[Stage], None], longest_s: float | None
    ) -> None:
        self.video, self.settings, self.detector, self.on_stage, self.longest_s = video, settings, detector, on_stage, longest_s
        self.stage: Stage = "open"
        self.seconds: dict[str, float] = {}
        self.counts: dict[str, Any] = {}

    @contextmanager
    def at(self, stage: Stage) -> Iterator[None]:
        if stage != self.stage:
            self.stage = stage
            self.on_stage(stage)
        start = time.process_time()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.process_time() - start

    @contextmanager
    def reading(self) -> Iterator[None]:
        """In the midst of another stage the storage is asked for more of a large file."""
        self.on_stage("open")
        try:
            yield
        finally:
            self.on_stage(self.stage)

    def failed(self, status: str, stage: str, message: str) -> VideoResult:
        return VideoResult(ledger_row(self.video, status=status, stage=stage, error=message, **self.counts), seconds=self.seconds)

    def run(self, guide: Guide | None) -> VideoResult:
        assert self.video.uri is not None
        with self.at("open"):
            file = open_video(self.video.uri)
        if isinstance(file, Input):  # else it is in memory
            file = file.watched(self.reading)
        with file:
            with self.at("probe"):
                info = probe(file)
            if self.longest_s is not None and (length := float(info.times[-1] - info.times[0])) > self.longest_s:
                raise VideoError(
                    "probe", f"it is {duration(length)} long, and at most {duration(self.longest_s)} are taken. Cut it shorter."
                )
            samples = self._samples(info, guide)
            self.counts = {"frames_wanted": len(samples), "frames_decoded": 0}
            if not samples:
                kind = "clips" if self.settings.sampling == "clips" else "frames"
                what = f"none of the original's sampled {kind} lies" if guide else "no clip of the length that was asked for lies"
                raise VideoError("probe", f"{what} within its {len(info.pts)} frames")
            found = _Found()
            source = None
            if self.settings.crop == "frame":
                self._pass(file, info, samples, found, whole=True)
            else:
                if guide is not None and any(guide.faces.get(s.frame) for s in samples):
                    self._pass(file, info, samples, found, guide=guide)
                    with self.at("align"):
                        boxes: dict[int, list[Box]] = {f: [face.box for _, face in faces] for f, faces in guide.faces.items()}
                        alignment = align.check(guide.thumbnails, found.thumbnails, boxes, width=guide.width, height=guide.height)
                    source = "original" if alignment.holds else None
                    self.counts["alignment"] = _described(alignment, info, guide)
                if source is None:
                    found, source = _Found(), "self"
                    self._pass(file, info, samples, found)
            if self.settings.sound:
                with self.at("sound"):
                    windows, self.counts["sound"] = sound_around(file, [float(info.times[s.frame]) for s in samples])
                found.sound = {s.frame: window for s, window in zip(samples, windows, strict=True)}
        return self._result(info, samples, found, source)

    def _samples(self, info: VideoInfo, guide: Guide | None) -> list[Sample]:
        s = self.settings
        if guide is not None:  # by frame index, over the prefix that both have
            return subset(guide.core, len(info.pts))
        multiplier = s.real_multiplier if self.video.label == "REAL" else 1
        return sample(info.times, method=s.sampling, frames=s.frames, multiplier=multiplier, clips=s.clips or 1, stride=s.stride or 1)

    def _pass(
        self, file: Any, info: VideoInfo, samples: list[Sample], found: "_Found", *, guide: Guide | None = None, whole: bool = False
    ) -> None:
        """Decode once; in each frame take the guide's faces (scaled to this video's size), or detect, or take the whole frame."""
        core = {s.frame for s in samples if s.core}
        steadied = guide is None and not whole and self.settings.sampling == "clips"
        last = {s.clip: s.frame for s in samples}
        clip_ends = {s.frame: s.frame == last[s.clip] or not steadied for s in samples}  # frames are held until then
        held: list[tuple[int, np.ndarray, list[Face]]] = []
        frames = decode_frames(file, info, [s.frame for s in samples])
        follower = Follower(self.detector, self.settings.detector_smaller_sides) if self.detector is not None else None
        self.counts["frames_decoded"] = 0
        while True:
            with self.at("decode"):
                item = next(frames, None)
            if item is None:
                break
            frame, rgb = item
            self.counts["frames_decoded"] += 1
            if whole:
                faces: list[Face] = []
            elif guide is not None:
                known = guide.faces.get(frame, [])
                faces = [_scaled(face, info.width / guide.width, info.height / guide.height) for _, face in known]
                found.tracks[frame] = [track for track, _ in known]
            else:
                assert follower is not None
                with self.at("detect"):
                    faces = follower.detect(rgb, float(info.times[frame]))
            if frame in core:
                with self.at("align"):
                    found.thumbnails[frame] = align.thumbnail(rgb)
            held.append((frame, rgb, faces))
            found.seen += bool(faces)
            if clip_ends[frame]:
                with self.at("crop"):
                    self._cut(info, held, found, whole=whole, steadied=steadied)
                held = []
        if not whole and guide is None:
            frames_found = sorted(found.faces.items())
            for (frame, _), tracks in zip(frames_found, link(frames_found), strict=True):
                found.tracks[frame] = tracks

    def _cut(
        self, info: VideoInfo, held: "list[tuple[int, np.ndarray, list[Face]]]", found: "_Found", *, whole: bool, steadied: bool
    ) -> None:
        """Cut the faces of one frame, or of the frames of one clip, out."""
        of_frames = steady([(frame, faces) for frame, _, faces in held]) if steadied else [faces for _, _, faces in held]
        for (frame, rgb, _), faces in zip(held, of_frames, strict=True):
            frame_rect, margin = (0, 0, info.width, info.height), self.settings.margin
            crops = [frame_rect] if whole else [crop_rect(face.box, info.width, info.height, margin=margin) for face in faces]
            found.faces[frame] = faces
            pictures = [cut(rgb, rect, max_side=self.settings.max_side) for rect in crops]
            found.pictures[frame] = [
                (rect, encode(picture, self.settings.image_format)) for rect, picture in zip(crops, pictures, strict=True)
            ]
            if not whole:
                found.sides += [max(rect[2:]) for rect in crops]
                found.luma += [float(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).mean()) for picture in pictures]

    def _result(self, info: VideoInfo, samples: list[Sample], found: "_Found", source: str | None) -> VideoResult:
        core = [s.frame for s in samples if s.core]
        kept = any(found.faces.values())
        status = "ok" if kept or source is None else "no_face"
        counts = self.counts | {
            "core_decoded": len(core),
            "frames_with_face": found.seen,
            "faces": sum(len(faces) for faces in found.faces.values()),
            "box_source": source if kept else None,
            "brightness": _mean([float(picture.mean()) for picture in found.thumbnails.values()]),
            "face_brightness": _mean(found.luma),
            "crop_side": float(np.median(found.sides)) if found.sides else None,
        }
        rows = [row for s in samples for row in self._rows(info, s, found, source)]
        rows.sort(key=lambda row: (row["track_id"] or 0, row["frame"]))
        guide = None
        core_samples = tuple(s for s in samples if s.core)
        may_guide = self.video.video_id == self.video.family_id and self.video.label != "FAKE"
        if may_guide and self.settings.crop == "face":
            faces = {f: list(zip(found.tracks[f], found.faces[f], strict=True)) for f in core}
            guide = Guide(info.width, info.height, len(info.pts), core_samples, faces, found.thumbnails)
        elif may_guide:
            guide = Guide(info.width, info.height, len(info.pts), core_samples, {}, {})
        sampled = tuple((s.frame, float(info.times[s.frame])) for s in core_samples if not s.position)
        return VideoResult(
            ledger_row(self.video, status=status, **counts), rows, guide, self.seconds, sampled=sampled, begins_s=float(info.times[0])
        )

    def _rows(self, info: VideoInfo, s: Sample, found: "_Found", source: str | None) -> list[dict[str, Any]]:
        video, frame = self.video, s.frame
        common: dict[str, Any] = {
            name: getattr(video, name) for name in ("corpus", "video_id", "family_id", "group_id", "part", "label", "method", "original")
        }
        common |= {"frame": frame, "pts": int(info.pts[frame]), "time_s": float(info.times[frame]), "core": s.core, "box_source": source}
        common |= {"frame_width": info.width, "frame_height": info.height, "clip_id": s.clip, "clip_position": s.position}
        faces: list[Face | None] = list(found.faces[frame]) if source else [None]
        tracks: list[int | None] = list(found.tracks[frame]) if source else [None]
        rows = []
        for face, track, (rect, picture) in zip(faces, tracks, found.pictures[frame], strict=True):
            rows.append(
                common
                | {
                    "track_id": track,
                    "box": face and list(face.box),
                    "landmarks": face and face.landmarks and list(face.landmarks),
                    "det_score": face and face.score,
                    "detector": self.settings.detector if face else None,
                    "crop": list(rect),
                    **self._sound(found, frame),
                    "image": {"bytes": picture, "path": None},
                }
            )
        return rows

    def _sound(self, found: "_Found", frame: int) -> dict[str, Any]:
        if not self.settings.sound:
            return {"has_sound": None, "sound": None}
        window = found.sound[frame]
        return {"has_sound": window is not None, "sound": None if window is None else window.astype("<i2").tobytes()}


@dataclass
class _Found:
    """By frame: the faces, their tracks, their encoded pictures, and the thumbnails of core frames. seen: frames with a face, before clips
    were steadied."""

    faces: dict[int, list[Face]] = field(default_factory=dict)
    tracks: dict[int, list[int]] = field(default_factory=dict)
    pictures: dict[int, list[tuple[tuple[int, int, int, int], bytes]]] = field(default_factory=dict)
    thumbnails: dict[int, np.ndarray] = field(default_factory=dict)
    seen: int = 0
    sides: list[int] = field(default_factory=list)  # of the crops, pixels of the frame, longer side
    luma: list[float] = field(default_factory=list)  # of the crops, mean grey level 0..255
    sound: dict[int, np.ndarray | None] = field(default_factory=dict)  # by frame


def _mean(values: list[float]) -> float | None:
    return round(float(np.mean(values)), 1) if values else None


def _described(alignment: align.Alignment, info: VideoInfo, guide: Guide) -> str:
    """For the ledger: the correlations, and where a fake differs from its original in size or length."""
    parts = [f"scene {alignment.scene:.3f}", "nothing moves" if alignment.motion is None else f"motion {alignment.motion:.3f}"]
    if (info.width, info.height) != (guide.width, guide.height):
        parts.append(f"{info.width}x{info.height} for {guide.width}x{guide.height}")
    if len(info.pts) != guide.length:
        parts.append(f"{len(info.pts)} frames for {guide.length}")
    return ", ".join(parts)


def _scaled(face: Face, sx: float, sy: float) -> Face:
    x, y, w, h = face.box
    points = face.landmarks and tuple(v * (sy if i % 2 else sx) for i, v in enumerate(face.landmarks))
    return Face(box=(x * sx, y * sy, w * sx, h * sy), score=face.score, landmarks=points)
