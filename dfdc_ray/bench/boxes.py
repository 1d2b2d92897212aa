"""Boxes of the face detectors against boxes marked by eye: which faces are found, how well they are framed, and what is no face.

    dfdc-ray bench boxes --corpus /data/dfdc_clips --corpus /data/ffpp_c40 --marks tests/data/boxes.json --out out/bench

Every way of detection sees the same decoded frames in one process, on one thread, video by video in the order of time. Time is CPU time of
detection alone, with scaling. How faces and marks are matched, and what is false: bench/marks.py.

Shares have 95 % Wilson intervals, which take frames for independent: those of one video are alike, so the truth is wider.
"""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from itertools import groupby
from typing import Any

import numpy as np
from rich.table import Table
from scipy.stats import binomtest

from dfdc_ray import storage
from dfdc_ray.bench.config import BenchBoxesConfig
from dfdc_ray.bench.detectors import Setting
from dfdc_ray.bench.machine import machine
from dfdc_ray.bench.marks import MATCH, NO_FACE, Marked, judge, read_marks
from dfdc_ray.console import Work, console, markdown_table
from dfdc_ray.corpus.index import build_index
from dfdc_ray.corpus.zips import open_video
from dfdc_ray.errors import UserError, VideoError
from dfdc_ray.faces.detect import DEFAULTS, Face, load_detector
from dfdc_ray.faces.follow import SMALLER_SIDES, Follower
from dfdc_ray.video.decode import decode_frames, probe
from dfdc_ray.video.sampling import sample

Look = Callable[[np.ndarray, float], list[Face]]
"""The faces of one frame (uint8 RGB [H, W, 3], seconds in the video), called with one video's frames in the order of time."""


@dataclass(frozen=True)
class Way:
    """One way of detection; its faces are found once, at the lowest threshold, and judged at each.

    load: called once; what it returns is called once for each video, and gives the Look for it, with whatever state that follows a video.
    spread: it also sees so many frames evenly spread over the video, as in preprocessing. They count for its time, not for its boxes.
    """

    detector: str
    long_side: int | None
    thresholds: tuple[float, ...]
    load: Callable[[], Callable[[], Look]]
    spread: int = 0


def framewise(setting: Setting) -> Way:
    """A detector as it is: no frame depends on another."""

    def load() -> Callable[[], Look]:
        threshold = None if setting.detector == "ssd-stock" else min(setting.thresholds)
        detector = load_detector(setting.detector, threshold=threshold, long_side=setting.long_side)
        return lambda: lambda rgb, time_s: detector.detect(rgb)

    return Way(setting.detector, setting.long_side, setting.thresholds, load)


def _following() -> Callable[[], Look]:
    """As preprocessing looks: smaller sizes where they do (faces/follow.py)."""
    detector = load_detector("centerface")
    return lambda: Follower(detector, SMALLER_SIDES["centerface"]).detect


WAYS = (
    *(
        framewise(setting)
        for setting in (
            Setting("ssd-stock", None, (0.9,)),
            Setting("ssd", 300, (0.3, 0.5)),
            Setting("ssd", 480, (0.3, 0.5)),
            Setting("ssd", 640, (0.3, 0.5)),
            Setting("opencv", 640, (0.0,)),
            Setting("centerface", 320, (0.3, 0.4, 0.5, 0.6)),
            Setting("centerface", 480, (0.3, 0.4, 0.5, 0.6)),
            Setting("centerface", 640, (0.3, 0.4, 0.5, 0.6)),
        )
    ),
    Way("centerface, following", DEFAULTS["centerface"][1], (DEFAULTS["centerface"][0],), _following, spread=32),
)


@dataclass(frozen=True)
class Share:
    """hits of `of`, with the bounds of its 95 % Wilson interval (E. B. Wilson, 1927), 0..1; None where there is nothing to count."""

    hits: int
    of: int
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Row:
    """One line of the table: one way at one threshold."""

    detector: str
    long_side: int
    threshold: float
    covered: Share  # frames with a mark, of which at least one is matched
    found: Share  # marks matched
    mean_iou: float | None  # of the matched
    false: Share  # of the boxes found, without those in ignored regions
    on_no_face: Share  # of the same boxes
    repeats: int
    ignored: int
    ms_per_frame: float
    found_by_video: dict[str, float]
    missed_boxes: list[dict[str, Any]]
    false_boxes: list[dict[str, Any]]


def boxes(config: BenchBoxesConfig) -> None:
    """The `bench boxes` command: a table on the terminal, bench_boxes.json and .md under `out`."""
    marked = read_marks(config.marks)
    index, _ = build_index(config.corpus)
    uris = {v: uri for v, uri in zip(*(index[c].to_pylist() for c in ("video_id", "uri")), strict=True) if uri}
    if missing := sorted({m.video for m in marked} - set(uris)):
        raise UserError(f"{config.marks} has marks for videos that {', '.join(config.corpus)} has not: {', '.join(missing)}.")
    videos = {video: list(group) for video, group in groupby(marked, key=lambda m: m.video)}
    trials = [_Trial(way) for way in WAYS]
    with Work("bench boxes", total=len(videos), unit="videos") as progress:
        for video, frames in videos.items():
            _show(uris[video], frames, trials)
            progress.advance(detail=video)
    _write(config, marked, [row for trial in trials for row in rows_of(trial.way, marked, trial.found, ms_per_frame=trial.ms_per_frame)])


class _Trial:
    """One way at work: what it found, and the time it took."""

    def __init__(self, way: Way) -> None:
        self.way = way
        self.found: dict[tuple[str, int], list[Face]] = {}  # by video and frame
        self._start = way.load()
        self._look: Look
        self._sizes: set[tuple[int, ...]] = set()
        self._seconds = 0.0

    @property
    def ms_per_frame(self) -> float:
        return 1000 * self._seconds / len(self.found)

    def start(self) -> None:
        """Another video follows."""
        self._look = self._start()

    def see(self, video: str, frame: int, rgb: np.ndarray, time_s: float) -> None:
        if rgb.shape not in self._sizes:  # the first frames of a size load networks: looked at for nothing
            self._sizes.add(rgb.shape)
            look = self._start()
            look(rgb, time_s)
            look(rgb, time_s)
        start = time.process_time()
        self.found[video, frame] = self._look(rgb, time_s)
        self._seconds += time.process_time() - start


def _show(uri: str, marked: Sequence[Marked], trials: Sequence[_Trial]) -> None:
    """Show one video's frames to all trials. UserError if it cannot be decoded, or the marks are not of it."""
    video = marked[0].video
    try:
        with open_video(uri) as file:
            info = probe(file)
            if any((m.width, m.height) != (info.width, info.height) for m in marked) or marked[-1].frame >= len(info.pts):
                raise UserError(f"{uri} has {len(info.pts)} frames of {info.width}x{info.height}: the marks are of another {video}.")
            wanted = [{m.frame for m in marked} | _spread(info.times, trial.way.spread) for trial in trials]
            for trial in trials:
                trial.start()
            for frame, rgb in decode_frames(file, info, sorted(set().union(*wanted))):
                for trial, frames in zip(trials, wanted, strict=True):
                    if frame in frames:
                        trial.see(video, frame, rgb, float(info.times[frame]))
    except VideoError as error:
        raise UserError(f"{uri} cannot be judged: {error.stage}: {error.message}") from error


def _spread(times: np.ndarray, frames: int) -> set[int]:
    return {s.frame for s in sample(times, method="spread", frames=frames)} if frames else set()


def rows_of(way: Way, marked: Sequence[Marked], found: Mapping[tuple[str, int], Sequence[Face]], *, ms_per_frame: float) -> list[Row]:
    """A row for each threshold. found: faces by (video, frame); those of frames without marks are left out."""
    rows = []
    for threshold in way.thresholds:
        judged = [(m, judge([f for f in found[m.video, m.frame] if f.score >= threshold], m.boxes, m.ignore)) for m in marked]
        overlaps = [overlap for _, v in judged for overlap in v.overlaps]
        false = [(m, face, nearest) for m, v in judged for face, nearest in v.false]
        repeats = sum(v.repeats for _, v in judged)
        total = len(overlaps) + repeats + len(false)
        by_video: dict[str, list[bool]] = defaultdict(list)
        for m, v in judged:
            by_video[m.video] += [True] * len(v.overlaps) + [False] * len(v.missed)
        rows.append(
            Row(
                detector=way.detector,
                long_side=way.long_side or 0,
                threshold=threshold,
                covered=share(sum(bool(v.overlaps) for _, v in judged), sum(bool(m.boxes) for m in marked)),
                found=share(len(overlaps), sum(len(m.boxes) for m in marked)),
                mean_iou=float(np.mean(overlaps)) if overlaps else None,
                false=share(len(false), total),
                on_no_face=share(sum(nearest < NO_FACE for *_, nearest in false), total),
                repeats=repeats,
                ignored=sum(v.ignored for _, v in judged),
                ms_per_frame=ms_per_frame,
                found_by_video={video: sum(hits) / len(hits) for video, hits in by_video.items() if hits},
                missed_boxes=[{"video": m.video, "frame": m.frame, "box": list(box)} for m, v in judged for box in v.missed],
                false_boxes=[_described(m, face, nearest) for m, face, nearest in false],
            )
        )
    return rows


def _described(marked: Marked, face: Face, nearest: float) -> dict[str, Any]:
    box = [round(side, 1) for side in face.box]
    return {"video": marked.video, "frame": marked.frame, "box": box, "score": round(face.score, 3), "iou": round(nearest, 3)}


def share(hits: int, of: int) -> Share:
    """A share with its interval."""
    if not of:
        return Share(hits, of, None, None)
    low, high = binomtest(hits, of).proportion_ci(method="wilson")
    return Share(hits, of, float(low), float(high))


def _text(part: Share, bounds: bool) -> str:
    if part.low is None or part.high is None:
        return "-"
    return f"{part.hits}/{part.of} {part.hits / part.of:.1%}" + (f" ({100 * part.low:.1f}-{100 * part.high:.1f})" if bounds else "")


def _cells(row: Row, *, bounds: bool) -> list[str]:
    return [
        row.detector,
        str(row.long_side or "-"),
        f"{row.threshold:g}",
        _text(row.covered, bounds),
        _text(row.found, bounds),
        "-" if row.mean_iou is None else f"{row.mean_iou:.2f}",
        _text(row.false, bounds),
        _text(row.on_no_face, bounds),
        f"{row.ms_per_frame:.0f}",
    ]


def _write(config: BenchBoxesConfig, marked: Sequence[Marked], rows: Sequence[Row]) -> None:
    header = ["detector", "long side", "score >=", "frames covered", "faces found", "mean IoU", "false boxes", "on no face", "CPU ms/frame"]
    about = machine()
    videos = len({m.video for m in marked})
    title = f"{len(marked)} marked frames of {videos} videos, IoU >= {MATCH:g}, one thread; {about['cores']} x {about['cpu']}"
    table = Table(title=title)
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*_cells(row, bounds=False))
    console.print(table)
    table_of_all = markdown_table(header, [_cells(row, bounds=True) for row in rows])
    markdown = f"{title}; in brackets the 95 % interval in %\n\n{table_of_all}"
    result: dict[str, Any] = {"date": date.today().isoformat(), "machine": about, "corpus": config.corpus, "marks": config.marks}
    result |= {"frames": len(marked), "match_iou": MATCH, "no_face_iou": NO_FACE, "rows": [asdict(row) for row in rows]}
    storage.make_dirs(config.out)
    storage.write_bytes(storage.join(config.out, "bench_boxes.md"), markdown.encode())
    storage.write_bytes(storage.join(config.out, "bench_boxes.json"), json.dumps(result, indent=1).encode())
