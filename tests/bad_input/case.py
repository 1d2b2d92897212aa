"""A case of bad input, and what becomes of it on the real way from a folder to the ledger."""

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow.parquet as pq

from dfdc_ray.config import PreprocessConfig
from dfdc_ray.corpus.counts import CorpusCounts
from dfdc_ray.corpus.index import build_index
from dfdc_ray.errors import StorageError, UserError
from dfdc_ray.faces.detect import Detector, load_detector
from dfdc_ray.faces.weights import stage_weights
from dfdc_ray.preprocess import patience, publish
from dfdc_ray.preprocess import receipts as rc
from dfdc_ray.preprocess.patience import process_patiently
from dfdc_ray.preprocess.plan import Video, units
from dfdc_ray.preprocess.settings import Settings, settings_of
from dfdc_ray.preprocess.supervise import Worker
from dfdc_ray.preprocess.unit import Guide, VideoResult, process_unit, process_video

from .videos import encode, head

FRAMES_WANTED = 4
PROBE: dict[str, Any] = {"status": "error", "stage": "probe"}
DECODE: dict[str, Any] = {"status": "error", "stage": "decode"}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a child process may take for one video."""

    timeout_s: float = 60.0
    memory_mb: int = 2048


@dataclass(frozen=True, kw_only=True)
class Case:
    """Something bad in a corpus, beside a good family: good.mp4 and its fake.mp4, in part 0."""

    kind: str
    """What is bad, in the words of the table."""
    make: Callable[[Path], Any]
    """Puts it into the corpus's folder, where the good family is already. The names of videos that it spoils begin with `bad`."""
    status: str = "ok"
    """What every bad video ends as; `refused`: there is no index; `not done`: storage's trouble, and no receipt."""
    stage: str | None = None
    says: str = ""
    """Found in the message of each: a regular expression."""
    row: Mapping[str, Any] = field(default_factory=dict)
    """Columns of the bad videos' ledger rows."""
    counts: Mapping[str, Any] = field(default_factory=dict)
    """Of the index's counts: of tuples, the length."""
    size: tuple[int, int] | None = None
    """Width and height of the frames of bad videos that are ok."""
    faces: bool = False
    """Find faces; else whole frames are taken, which is faster."""
    between: Callable[[Path], Any] = lambda corpus: None
    """What happens to the corpus between index and reading."""
    around: Callable[[Path], AbstractContextManager[Any]] = lambda corpus: nullcontext()
    """What holds while it is indexed and read."""
    limits: Limits | None = None
    """Process videos in a child process under these limits; None: in this process."""


Maker = Callable[[Path], Any]


def collector(cases: list[Case]) -> Callable[..., Callable[[Maker], Maker]]:
    """A decorator that adds a case, of this kind and with these fields, which the function below it makes."""

    def case(kind: str, **fields: Any) -> Callable[[Maker], Maker]:
        def add(make: Maker) -> Maker:
            cases.append(Case(kind=kind, make=make, **fields))
            return make

        return add

    return case


@dataclass(frozen=True)
class Outcome:
    """What became of a corpus."""

    refusal: str | None
    """The message, where there is no index or a unit was not done."""
    counts: CorpusCounts | None = None
    ledger: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """By name of the video, without the corpus."""
    rows: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Those that the manifest names, likewise."""


def run(case: Case, folder: Path) -> Outcome:
    """Make the case's corpus in an empty folder, index and preprocess it."""
    corpus, out = folder / "dfdc", str(folder / "out")
    write_part(corpus, {"good.mp4": (good_video(case.faces), None), "fake.mp4": (good_video(case.faces, fake=True), "good.mp4")})
    case.make(corpus)
    settings = _settings(case.faces)
    refusal = None
    with ExitStack() as stack:
        stack.enter_context(case.around(corpus))
        try:
            index, counts = build_index([str(corpus)])
        except UserError as error:
            return Outcome(str(error))
        case.between(corpus)
        process = _in_child(settings, case.limits) if case.limits else _in_process(settings)
        output = rc.open_output(out, settings)
        planned = units(publish.remember(out, index))
        for unit, generation in rc.todo(planned, output.read(), ()):
            try:
                output.commit(process_unit(unit, process), generation=generation)
            except StorageError as error:
                refusal = str(error)
        ledger = publish.publish(output, planned, settings, versions={})
    rows: dict[str, list[dict[str, Any]]] = {}
    for file in json.loads((folder / "out" / "manifest.json").read_bytes())["files"]:
        for row in pq.read_table(folder / "out" / file["path"]).to_pylist():
            rows.setdefault(_name(row), []).append(row)
    return Outcome(refusal, counts.corpora[0], {_name(row): row for row in ledger.to_pylist()}, rows)


def write_part(corpus: Path, videos: Mapping[str, tuple[bytes | None, str | None]], *, number: int = 0) -> Path:
    """Add videos (name -> content, original) to a part of the corpus, as a folder; content None: listed, but no file."""
    part = corpus / f"dfdc_train_part_{number}"
    part.mkdir(parents=True, exist_ok=True)
    metadata = part / "metadata.json"
    listed = json.loads(metadata.read_text()) if metadata.exists() else {}
    for name, (data, original) in videos.items():
        listed[name] = entry(original)
        if data is not None:
            (part / name).write_bytes(data)
    metadata.write_text(json.dumps(listed))
    return part


def both(make: Callable[[], bytes], *, extension: str = "mp4") -> Maker:
    """The video twice: as a fake in the good family, and as the original of a good fake."""

    def write(corpus: Path) -> None:
        data, original = make(), f"bad_real.{extension}"
        bad = {f"bad_fake.{extension}": (data, "good.mp4"), original: (data, None)}
        write_part(corpus, bad | {"its_fake.mp4": (good_video(), original)})

    return write


def real(make: Callable[[], bytes], *, faces: bool = False) -> Maker:
    """The video as the original of a good fake."""
    return lambda corpus: write_part(
        corpus, {"bad_real.mp4": (make(), None), "its_fake.mp4": (good_video(faces, fake=faces), "bad_real.mp4")}
    )


def fake(make: Callable[[], bytes]) -> Maker:
    """The video as a fake in the good family."""
    return lambda corpus: write_part(corpus, {"bad_fake.mp4": (make(), "good.mp4")})


def entry(original: str | None) -> dict[str, str | None]:
    """What metadata.json says of a video."""
    return {"label": "FAKE" if original else "REAL", "split": "train", "original": original}


@cache
def good_video(faces: bool = False, *, fake: bool = False) -> bytes:
    """A sound video of half a second."""
    return head(0, fake=fake) if faces else encode()


@cache
def _settings(faces: bool) -> Settings:
    crop = "face" if faces else "frame"
    return settings_of(PreprocessConfig(corpus=("x",), out="y", frames=FRAMES_WANTED, real_multiplier=1, crop=crop, max_side=64))


def _in_process(settings: Settings) -> Callable[[Video, Guide | None], VideoResult]:
    detector = _detector(settings) if settings.detector is not None else None
    return lambda video, guide: process_video(video, settings, detector, guide)


# One for all cases that can share it: a detector and a process take a second to start.
_DETECTORS: dict[str, Detector] = {}
_WORKERS: dict[tuple[str, int], Worker] = {}


def _detector(settings: Settings) -> Detector:
    assert settings.detector is not None
    if settings.detector not in _DETECTORS:
        stage_weights()
        loaded = load_detector(settings.detector, threshold=settings.detector_threshold, long_side=settings.detector_long_side)
        _DETECTORS[settings.detector] = loaded
    return _DETECTORS[settings.detector]


def _in_child(settings: Settings, limits: Limits) -> Callable[[Video, Guide | None], VideoResult]:
    worker = _worker(settings, limits)

    def process(video: Video, guide: Guide | None) -> VideoResult:
        with mock.patch.object(patience, "_PAUSES_S", (0.1,)):
            return process_patiently(worker, video, guide)

    return process


def _worker(settings: Settings, limits: Limits) -> Worker:
    worker = _WORKERS.get((settings.crop, limits.memory_mb))
    if worker is None:
        worker = Worker(settings, timeout_s=limits.timeout_s, memory_bytes=limits.memory_mb * 2**20)
        _WORKERS[settings.crop, limits.memory_mb] = worker
    worker.timeout_s = limits.timeout_s
    return worker


def child_pids() -> set[int]:
    """The child processes at work."""
    return {worker.pid for worker in list(_WORKERS.values()) if worker.pid is not None}


def stop_workers() -> None:
    """End the child processes."""
    for worker in _WORKERS.values():
        worker.stop()
    _WORKERS.clear()


def _name(row: Mapping[str, Any]) -> str:
    return str(row["video_id"]).partition("/")[2]
