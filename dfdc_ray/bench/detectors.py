"""Face detectors compared on one's own videos: in how many frames each finds a face, how many, and at what cost.

    dfdc-ray bench detectors --corpus /data/dfdc_train_part_0 --out out/bench

Every setting runs in a process of its own, on one thread, on the same frames. Time is CPU time of `detect` alone, with scaling, without
decoding and loading. Peak memory is of the whole process, decoder included. Coverage is not correctness: look at the boxes before
trusting a low threshold.
"""

import json
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import date
from multiprocessing import get_context
from pathlib import Path

from rich.table import Table

from dfdc_ray import storage
from dfdc_ray.bench.config import BenchDetectorsConfig
from dfdc_ray.bench.machine import machine
from dfdc_ray.config import DetectorName
from dfdc_ray.console import Work, console, markdown_table
from dfdc_ray.corpus.index import build_index
from dfdc_ray.corpus.zips import open_video
from dfdc_ray.errors import UserError, VideoError
from dfdc_ray.faces.detect import Detector, load_detector
from dfdc_ray.video.decode import decode_frames, probe
from dfdc_ray.video.sampling import sample


@dataclass(frozen=True)
class Setting:
    """One detector at one size; its faces are found once, at the lowest threshold, and counted at each."""

    detector: DetectorName
    long_side: int | None
    thresholds: tuple[float, ...]


SETTINGS = (
    Setting("ssd-stock", None, (0.9,)),
    Setting("ssd", 300, (0.5,)),
    Setting("ssd", 480, (0.3, 0.5)),
    Setting("ssd", 640, (0.5,)),
    Setting("opencv", 640, (0.0,)),
    Setting("centerface", 320, (0.4,)),
    Setting("centerface", 480, (0.4,)),
    Setting("centerface", 640, (0.3, 0.4, 0.5)),
)


@dataclass(frozen=True)
class Measured:
    """One video under one setting."""

    scores: tuple[tuple[float, ...], ...]  # of the faces of each frame
    seconds: float  # CPU time of detection, all frames
    peak_rss_mb: float | None  # of the process so far; None where the system does not say
    problem: str  # why there are no frames, or fewer


@dataclass(frozen=True)
class Row:
    """One line of the table: one setting at one threshold over all videos."""

    detector: str
    long_side: int
    threshold: float
    frames: int
    with_face: int
    faces: int
    ms_per_frame: float
    peak_rss_mb: float | None
    coverage_by_video: dict[str, float]


def detectors(config: BenchDetectorsConfig) -> None:
    """The `bench detectors` command: a table on the terminal, bench_detectors.json and .md under `out`."""
    index, _ = build_index(config.corpus)
    videos = [(video_id, uri) for video_id, uri in zip(*(index[c].to_pylist() for c in ("video_id", "uri")), strict=True) if uri]
    rows: list[Row] = []
    problems: dict[str, str] = {}
    with Work("bench detectors", total=len(videos) * len(SETTINGS), unit="videos") as progress:
        for setting in SETTINGS:
            measured = {}
            with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_start, initargs=(setting,)) as pool:
                jobs = [(video_id, pool.submit(_measure, uri, config.frames)) for video_id, uri in videos]
                for video_id, job in jobs:
                    measured[video_id] = job.result()
                    progress.advance(detail=f"{setting.detector} {setting.long_side or ''}".strip())
            problems |= {video_id: m.problem for video_id, m in measured.items() if m.problem}
            if not any(m.scores for m in measured.values()):
                raise UserError(f"No frame of {', '.join(config.corpus)} could be decoded: {next(iter(problems.items()))}")
            rows += rows_of(setting, measured)
    _write(config, rows, problems)


_detector: Detector | None = None  # of this worker process


def _start(setting: Setting) -> None:
    global _detector  # noqa: PLW0603 - what a pool's initializer makes has no other place
    threshold = None if setting.detector == "ssd-stock" else min(setting.thresholds)
    _detector = load_detector(setting.detector, threshold=threshold, long_side=setting.long_side)


def _measure(uri: str, frames: int) -> Measured:
    assert _detector is not None
    scores: list[tuple[float, ...]] = []
    seconds = 0.0
    problem = ""
    try:
        with open_video(uri) as file:
            info = probe(file)
            wanted = [s.frame for s in sample(info.times, method="spread", frames=frames)]
            for _, rgb in decode_frames(file, info, wanted):
                if not scores:
                    _detector.detect(rgb)  # the first frame of a size loads a network
                start = time.process_time()
                faces = _detector.detect(rgb)
                seconds += time.process_time() - start
                scores.append(tuple(face.score for face in faces))
    except VideoError as error:
        problem = f"{error.stage}: {error.message}"
    return Measured(tuple(scores), seconds, _peak_rss_mb(), problem)


def _peak_rss_mb() -> float | None:
    """Of this process alone: getrusage would count what the parent had when it started us."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    return next(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))


def rows_of(setting: Setting, measured: dict[str, Measured]) -> list[Row]:
    """A row for each threshold; videos without frames are left out of the coverage."""
    frames = sum(len(m.scores) for m in measured.values())
    seconds = sum(m.seconds for m in measured.values())
    peaks = [m.peak_rss_mb for m in measured.values() if m.peak_rss_mb is not None]
    rows = []
    for threshold in setting.thresholds:
        kept = {video_id: [sum(s >= threshold for s in scores) for scores in m.scores] for video_id, m in measured.items() if m.scores}
        rows.append(
            Row(
                detector=setting.detector,
                long_side=setting.long_side or 0,
                threshold=threshold,
                frames=frames,
                with_face=sum(n > 0 for counts in kept.values() for n in counts),
                faces=sum(n for counts in kept.values() for n in counts),
                ms_per_frame=1000 * seconds / frames,
                peak_rss_mb=max(peaks, default=None),
                coverage_by_video={video_id: sum(n > 0 for n in counts) / len(counts) for video_id, counts in kept.items()},
            )
        )
    return rows


def _write(config: BenchDetectorsConfig, rows: Sequence[Row], problems: dict[str, str]) -> None:
    header = ["detector", "long side", "score >=", "frames with a face", "worst video", "faces/ frame", "CPU ms/ frame", "peak MB"]
    cells = [
        [
            row.detector,
            str(row.long_side or "-"),
            f"{row.threshold:g}",
            f"{row.with_face}/{row.frames} {row.with_face / row.frames:.1%}",
            f"{min(row.coverage_by_video.values()):.0%}",
            f"{row.faces / row.frames:.2f}",
            f"{row.ms_per_frame:.0f}",
            "-" if row.peak_rss_mb is None else f"{row.peak_rss_mb:.0f}",
        ]
        for row in rows
    ]
    about = machine()
    title = f"{len(rows[0].coverage_by_video)} videos, {config.frames} frames each, one thread; {about['cores']} x {about['cpu']}"
    table = Table(*header, title=title)
    for line in cells:
        table.add_row(*line)
    console.print(table)
    for video_id, problem in problems.items():
        console.print(f"  {video_id}: {problem}", highlight=False, markup=False)
    markdown = f"{title}\n\n{markdown_table(header, cells)}"
    result = {"date": date.today().isoformat(), "machine": about, "corpus": config.corpus, "frames_per_video": config.frames}
    result |= {"rows": [asdict(row) for row in rows], "problems": problems}
    storage.make_dirs(config.out)
    storage.write_bytes(storage.join(config.out, "bench_detectors.md"), markdown.encode())
    storage.write_bytes(storage.join(config.out, "bench_detectors.json"), json.dumps(result, indent=1).encode())
