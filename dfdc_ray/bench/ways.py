"""The ways to get faces out of videos that `dfdc-ray bench preprocess` compares, each in this process and on one thread.

opencv-read    OpenCV's read loop, nothing else
report         the founding report's way: OpenCV's read loop and `DeepFace.extract_faces` (SSD)
pyav-full      PyAV decodes every frame up to the last wanted one; our detector at its full size on each; crops
parts          what ours consists of, bare: needed packets only, boxes of the original reused, looks of all sizes, crops; nothing else
unit           preprocess.unit as the child process runs it, and the shard and the receipt as an actor writes them
ray            the command's own actors on Ray Data, one worker (bench/preprocess.py): CPU time of all its processes

All take the same frames of the same videos.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import av
import cv2
import numpy as np

from dfdc_ray.corpus.zips import open_video
from dfdc_ray.faces.crop import crop_rect, cut, encode
from dfdc_ray.faces.detect import Box, Detector
from dfdc_ray.faces.follow import Follower
from dfdc_ray.preprocess import receipts as rc
from dfdc_ray.preprocess.plan import Unit, Video
from dfdc_ray.preprocess.settings import Settings
from dfdc_ray.preprocess.unit import UnitResult, process_unit, process_video
from dfdc_ray.video.decode import decode_frames, probe
from dfdc_ray.video.sampling import sample


@dataclass
class Outcome:
    """What one run of one way over all videos gave. `with_face` is None for a way that does not look for faces."""

    frames: int = 0
    with_face: int | None = 0
    faces: int = 0
    picture_bytes: int = 0
    seconds_by_stage: dict[str, float] = field(default_factory=dict)  # CPU


@dataclass(frozen=True)
class Material:
    """Videos to measure on: units of which every file is there, each video also as a local file, and the frames that all ways take."""

    units: tuple[Unit, ...]
    paths: dict[str, str]
    wanted: dict[str, list[int]]

    @property
    def videos(self) -> list[Video]:
        return [video for unit in self.units for video in unit.videos]


def material(units: Iterable[Unit], settings: Settings, folder: Path) -> Material:
    """folder: takes copies of videos in zips and on S3, since OpenCV reads only files of their own."""
    chosen = tuple(unit for unit in units if all(video.uri for video in unit.videos))
    paths, wanted = {}, {}
    for unit in chosen:
        frames: list[int] | None = None  # of the original, which its fakes take over
        for video in unit.videos:
            paths[video.video_id] = _local(video, folder)
            with open(paths[video.video_id], "rb") as file:
                times = probe(file).times
            if frames is None or unit.videos[0].label == "FAKE":
                multiplier = settings.real_multiplier if video.label == "REAL" else 1
                samples = sample(times, method=settings.sampling, frames=settings.frames, multiplier=multiplier)
                wanted[video.video_id] = [s.frame for s in samples]
                frames = [s.frame for s in samples if s.core]
            else:
                wanted[video.video_id] = [frame for frame in frames if frame < len(times)]
    return Material(chosen, paths, wanted)


def ways(given: Material, settings: Settings, *, detector: Detector, stock: Detector) -> dict[str, Callable[[], Outcome]]:
    """The ways of this process, by name."""
    return {
        "opencv-read": lambda: _opencv(given, None),
        "report": lambda: _opencv(given, stock),
        "pyav-full": lambda: _pyav(given, detector, settings),
        "parts": lambda: _parts(given, detector, settings),
        "unit": lambda: _unit(given, detector, settings),
    }


def _opencv(given: Material, detector: Detector | None) -> Outcome:
    outcome = Outcome(with_face=None if detector is None else 0)
    for video_id, path in given.paths.items():
        capture = cv2.VideoCapture(path)
        want = set(given.wanted[video_id])
        for frame in range(max(want) + 1):
            good, bgr = capture.read()
            if good and frame in want:
                outcome.frames += 1
                if detector is not None:
                    _count(outcome, len(detector.detect(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB))))
        capture.release()
    return outcome


def _pyav(given: Material, detector: Detector, settings: Settings) -> Outcome:
    outcome = Outcome()
    for video_id, path in given.paths.items():
        want = set(given.wanted[video_id])
        last = max(want)
        with av.open(path) as container:
            container.streams.video[0].thread_count = 1
            for frame, picture in enumerate(container.decode(video=0)):
                if frame in want:
                    rgb = picture.to_ndarray(format="rgb24")
                    outcome.frames += 1
                    _crop(outcome, rgb, [face.box for face in detector.detect(rgb)], settings)
                if frame == last:
                    break
    return outcome


def _parts(given: Material, detector: Detector, settings: Settings) -> Outcome:
    outcome = Outcome()
    clock = _Clock(outcome.seconds_by_stage)
    for unit in given.units:
        known: dict[int, list[Box]] = {}  # of the original
        size = (0, 0)
        for video in unit.videos:
            follower = Follower(detector, settings.detector_smaller_sides)
            reuse = bool(known)
            with open(given.paths[video.video_id], "rb") as file:
                info = probe(file)
                clock.lap("probe")
                for frame, rgb in decode_frames(file, info, given.wanted[video.video_id]):
                    clock.lap("decode")
                    outcome.frames += 1
                    if reuse:
                        sx, sy = info.width / size[0], info.height / size[1]
                        boxes = [(x * sx, y * sy, w * sx, h * sy) for x, y, w, h in known[frame]]
                    else:
                        boxes = [face.box for face in follower.detect(rgb, float(info.times[frame]))]
                        if video.video_id == unit.family_id:
                            known[frame], size = boxes, (info.width, info.height)
                    clock.lap("detect")
                    _crop(outcome, rgb, boxes, settings)
                    clock.lap("crop")
                clock.lap("decode")
    return outcome


def _unit(given: Material, detector: Detector, settings: Settings) -> Outcome:
    outcome = Outcome()
    clock = _Clock(outcome.seconds_by_stage)
    with tempfile.TemporaryDirectory() as folder:
        output = rc.open_output(folder, settings)
        for unit in given.units:
            result = process_unit(unit, lambda v, guide: process_video(v, settings, detector, guide))
            clock.start()
            output.commit(result, generation=0)
            clock.lap("write")
            _add(outcome, result)
    return outcome


def _add(outcome: Outcome, result: UnitResult) -> None:
    for video in result.videos:
        outcome.frames += video.ledger["frames_decoded"]
        outcome.with_face = (outcome.with_face or 0) + video.ledger["frames_with_face"]
        outcome.faces += video.ledger["faces"]
        outcome.picture_bytes += sum(len(row["image"]["bytes"]) for row in video.faces)
        for stage, seconds in video.seconds.items():
            outcome.seconds_by_stage[stage] = outcome.seconds_by_stage.get(stage, 0.0) + seconds


def _crop(outcome: Outcome, rgb: np.ndarray, boxes: list[Box], settings: Settings) -> None:
    for box in boxes:
        rect = crop_rect(box, rgb.shape[1], rgb.shape[0], margin=settings.margin)
        outcome.picture_bytes += len(encode(cut(rgb, rect, max_side=settings.max_side), settings.image_format))
    _count(outcome, len(boxes))


def _count(outcome: Outcome, faces: int) -> None:
    outcome.faces += faces
    outcome.with_face = (outcome.with_face or 0) + (faces > 0)


class _Clock:
    """CPU time from one lap to the next, added up by stage."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.last = seconds, time.process_time()

    def start(self) -> None:
        self.last = time.process_time()

    def lap(self, stage: str) -> None:
        now = time.process_time()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self.last
        self.last = now


def _local(video: Video, folder: Path) -> str:
    assert video.uri is not None
    if os.path.exists(video.uri):
        return video.uri
    path = folder / video.video_id.replace("/", "_")
    with open_video(video.uri) as file:
        path.write_bytes(file.read())
    return str(path)
