"""CPU seconds per video of preprocessing, beside the loops that people write, on one's own videos, in one run.

    dfdc-ray bench preprocess --corpus /data/dfdc_train_part_0 --out out/bench

Ways, alternating, each with the same frames of the same videos (spread, multiplier 1), one thread, start-up excluded:
opencv-read     OpenCV's VideoCapture reads every frame up to the last wanted one; nothing else (a floor for loops built on it)
report          the founding report's way: the same, and DeepFace.extract_faces(ssd) as it comes on each wanted frame
pyav-full       PyAV decodes every frame; our detector, crops and JPEGs for the wanted ones
dfdc_ray        one unit as preprocess does it, without Ray: needed packets only, boxes from originals where they are aligned
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import av
import cv2
import numpy as np
from rich.table import Table

from dfdc_ray import storage
from dfdc_ray.bench.machine import machine
from dfdc_ray.config import BenchPreprocessConfig, PreprocessConfig
from dfdc_ray.console import Work, console
from dfdc_ray.corpus.index import build_index
from dfdc_ray.corpus.zips import open_video
from dfdc_ray.errors import UserError
from dfdc_ray.faces.crop import crop_rect, cut, encode
from dfdc_ray.faces.detect import Detector, load_detector
from dfdc_ray.preprocess.plan import Unit, Video, units
from dfdc_ray.preprocess.settings import Settings, settings_of
from dfdc_ray.preprocess.unit import process_unit, process_video
from dfdc_ray.video.decode import probe
from dfdc_ray.video.sampling import sample


@dataclass
class Tally:
    """CPU seconds of each run over all videos, and the frames of one run."""

    seconds: list[float] = field(default_factory=list)
    frames: int = 0
    with_face: int | None = None  # None: the way does not look


def preprocess(config: BenchPreprocessConfig) -> None:
    """The `bench preprocess` command: a table, bench_preprocess.json and .md under `out`."""
    settings = settings_of(PreprocessConfig(corpus=config.corpus, out=config.out, frames=config.frames, real_multiplier=1))
    index, _ = build_index(config.corpus)
    work = [unit for unit in units(index) if all(v.uri for v in unit.videos)]
    if not work:
        raise UserError(f"Nothing to measure in {', '.join(config.corpus)}: no family has all its files.")
    videos = [v for unit in work for v in unit.videos]
    detector, stock = load_detector(PreprocessConfig.detector), load_detector("ssd-stock")
    with tempfile.TemporaryDirectory() as folder:
        paths = {v.video_id: _local(v, Path(folder)) for v in videos}
        wanted = {v.video_id: _wanted(v, settings) for v in videos}
        ways: dict[str, Callable[[], tuple[int, int | None]]] = {
            "opencv-read": lambda: _opencv(paths, wanted, None),
            "report": lambda: _opencv(paths, wanted, stock),
            "pyav-full": lambda: _pyav(paths, wanted, detector, settings),
            "dfdc_ray": lambda: _ours(work, detector, settings),
        }
        tallies = {name: Tally() for name in ways}
        with Work("bench", total=(config.repeats + 1) * len(ways), unit="runs") as progress:
            for run in range(config.repeats + 1):  # the first warms up files and networks and is not counted
                for name, way in ways.items():
                    start = time.process_time()
                    frames, with_face = way()
                    if run:
                        tallies[name].seconds.append(time.process_time() - start)
                    tallies[name].frames, tallies[name].with_face = frames, with_face
                    progress.advance(detail=name)
    _write(config, tallies, len(videos), len(work))


def _opencv(paths: dict[str, str], wanted: dict[str, list[int]], detector: Detector | None) -> tuple[int, int | None]:
    frames = found = 0
    for video_id, path in paths.items():
        capture = cv2.VideoCapture(path)
        want = set(wanted[video_id])
        for frame in range(max(want) + 1):
            good, bgr = capture.read()
            if good and frame in want:
                frames += 1
                if detector is not None:
                    found += bool(detector.detect(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)))
        capture.release()
    return frames, None if detector is None else found


def _pyav(paths: dict[str, str], wanted: dict[str, list[int]], detector: Detector, settings: Settings) -> tuple[int, int | None]:
    frames = found = 0
    for video_id, path in paths.items():
        want = set(wanted[video_id])
        with av.open(path) as container:
            container.streams.video[0].thread_count = 1
            for frame, picture in enumerate(container.decode(video=0)):
                if frame in want:
                    rgb = picture.to_ndarray(format="rgb24")
                    frames += 1
                    found += _crops(rgb, detector, settings)
    return frames, found


def _crops(rgb: np.ndarray, detector: Detector, settings: Settings) -> bool:
    faces = detector.detect(rgb)
    for face in faces:
        rect = crop_rect(face.box, rgb.shape[1], rgb.shape[0], margin=settings.margin)
        encode(cut(rgb, rect, max_side=settings.max_side), settings.image_format)
    return bool(faces)


def _ours(work: list[Unit], detector: Detector, settings: Settings) -> tuple[int, int | None]:
    rows = [
        video.ledger for unit in work for video in process_unit(unit, lambda v, guide: process_video(v, settings, detector, guide)).videos
    ]
    return sum(row["frames_decoded"] for row in rows), sum(row["frames_with_face"] for row in rows)


def _wanted(video: Video, settings: Settings) -> list[int]:
    assert video.uri is not None
    with open_video(video.uri) as file:
        return [s.frame for s in sample(probe(file).times, method=settings.sampling, frames=settings.frames)]


def _local(video: Video, folder: Path) -> str:
    """OpenCV reads only files of their own, so others are copied out before anything is measured."""
    assert video.uri is not None
    if os.path.exists(video.uri):
        return video.uri
    path = folder / video.video_id.replace("/", "_")
    with open_video(video.uri) as file:
        path.write_bytes(file.read())
    return str(path)


def _write(config: BenchPreprocessConfig, tallies: dict[str, Tally], videos: int, families: int) -> None:
    ours = statistics.median(tallies["dfdc_ray"].seconds)
    header = ["way", "CPU s/video (median)", "min - max", "ratio to dfdc_ray", "frames", "frames with a face"]
    rows = []
    for name, tally in tallies.items():
        median = statistics.median(tally.seconds)
        share = (
            "not looked for" if tally.with_face is None else f"{tally.with_face} of {tally.frames} ({tally.with_face / tally.frames:.1%})"
        )
        spread = f"{min(tally.seconds) / videos:.2f} - {max(tally.seconds) / videos:.2f}"
        rows.append([name, f"{median / videos:.2f}", spread, f"{median / ours:.2f}", str(tally.frames), share])
    title = f"{videos} videos in {families} families, {config.frames} frames each, {config.repeats} runs, one thread"
    table = Table(*header, title=title)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    lines = [" | ".join(header), " | ".join("---" for _ in header), *(" | ".join(row) for row in rows)]
    markdown = f"{title}; {machine()['cpu']}\n\n" + "\n".join(f"| {line} |" for line in lines) + "\n"
    result = {
        "machine": machine(),
        "videos": videos,
        "families": families,
        "frames": config.frames,
        "ways": {k: vars(t) for k, t in tallies.items()},
    }
    storage.make_dirs(config.out)
    storage.write_bytes(storage.join(config.out, "bench_preprocess.md"), markdown.encode())
    storage.write_bytes(storage.join(config.out, "bench_preprocess.json"), json.dumps(result, indent=1).encode())
