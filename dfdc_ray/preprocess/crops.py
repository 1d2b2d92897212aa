"""Face crops that somebody has already, as shards like those of preprocess: for `train`, `evaluate` and `pack`.

    dfdc-ray import --crops crops.parquet --out out/faces
    dfdc-ray import --crops FOLDER_WITH_real_AND_fake --crops list.csv --out s3://bucket/faces

OUT holds what preprocess leaves for a reader: index.parquet, ledger.parquet, manifest.json and faces/. Pictures stay as they are, to the
byte; each is decoded once to see that it can be, and with --landmarks looked at by a face detector. Rows come in order of group, video
and frame. A row group is of one group or of several small ones, whole: a reader pays for each row group, and a group may be one picture.
"""

import io
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.markup import escape

from dfdc_ray import storage
from dfdc_ray.config import ImportConfig
from dfdc_ray.console import Work, console
from dfdc_ray.corpus.counts import Counts, print_counts
from dfdc_ray.corpus.index import FoundVideo, tabulate
from dfdc_ray.corpus.metadata import Listing
from dfdc_ray.errors import UserError
from dfdc_ray.faces.crop import decode
from dfdc_ray.faces.detect import Detector, load_detector
from dfdc_ray.preprocess import publish
from dfdc_ray.preprocess import receipts as rc
from dfdc_ray.preprocess.crop_sources import Crop, read_source
from dfdc_ray.preprocess.plan import units
from dfdc_ray.preprocess.receipts import LEDGER
from dfdc_ray.preprocess.summary import Losses, check_error_share, print_losses, print_summary, too_many_losses
from dfdc_ray.shards.format import FORMAT_VERSION
from dfdc_ray.shards.output import claim, write_data
from dfdc_ray.shards.schema import FACES
from dfdc_ray.shards.write import parquet_writer

T = TypeVar("T")
LANDMARKS_BY = "centerface"  # of our detectors the one that gives all five
_ROW_GROUP, _FILE = 16 << 20, 256 << 20  # bytes of pictures, about
_SHARED = 1 << 20  # and of small groups that share a row group: little, so that a window of training (shards/order.py) mixes many of them


@dataclass(frozen=True)
class _Video:
    """One video: its row of the index, and its pictures in order."""

    facts: dict[str, Any]
    crops: list[Crop]


@dataclass(frozen=True)
class _Read:
    """One video with its pictures: rows for the shard, the bytes of their pictures, its ledger row, and where those are that are lost."""

    rows: list[dict[str, Any]]
    bytes: int
    ledger: dict[str, Any]
    absent: list[str]
    damaged: list[str]


def import_crops(config: ImportConfig) -> None:
    """The `import` command. UserError for sources that are none, facts that contradict each other, and an output of something else; also,
    after all the rest was written, when more pictures were absent or damaged than --max-error-share allows.
    """
    check_error_share(config.max_error_share)
    if config.margin is not None and config.margin < 0:
        raise UserError(f"--margin {config.margin}: must not be negative.")
    if len({storage.absolute(uri) for uri in config.crops}) < len(config.crops):
        raise UserError(f"--crops: a source is given twice: {', '.join(config.crops)}.")
    start = time.monotonic()
    by_name = _by_name([crop for uri in config.crops for crop in read_source(uri)])
    index, counts = tabulate(config.corpus, map(_found, by_name.values()))
    print_counts(Counts((counts,)))
    _say_strangers(by_name)
    out = storage.absolute(config.out)
    settings = {
        "imported": True,
        "sampling": "imported",
        "frames": max(map(len, by_name.values())),
        "real_multiplier": 1,
        "crop": "face",
        "margin": config.margin,  # None: not known
        "format_version": FORMAT_VERSION,
    }
    detector = load_detector(LANDMARKS_BY) if config.landmarks else None
    if detector:
        settings |= {"landmarks": detector.name}
    claim(out, settings, folders=["faces"])
    _refuse_others(out, index)
    rows = publish.remember(out, index).to_pylist()
    rows.sort(key=lambda row: (row["group_id"], row["family_id"], row["video_id"]))
    videos = [_Video(row, by_name[row["video_id"].removeprefix(f"{config.corpus}/")]) for row in rows]
    files, ledger, losses = _write(out, videos, {unit.family_id: unit.unit_id for unit in units(index)}, detector)
    ledger.sort(key=lambda row: row["video_id"])
    table = publish.write(out, ledger, files, config=settings, versions=rc.versions())
    print_summary(table, seconds=time.monotonic() - start)
    listed = sum(len(video.crops) for video in videos)
    print_losses(losses, listed)
    if wrong := too_many_losses(losses, listed, config.max_error_share):
        raise UserError(wrong)


def _say_strangers(by_name: Mapping[str, list[Crop]]) -> None:
    """Originals that are named, and none of them is there: more likely written in another way than absent, and then pairs come apart."""
    named = {crops[0].original: name for name, crops in by_name.items() if crops[0].original is not None}
    reals = [name for name, crops in by_name.items() if crops[0].label == "REAL"]
    if named and reals and not named.keys() & by_name.keys():
        original, fake = next(iter(named.items()))
        console.print(
            f"[yellow]None of the {len(named)} originals that fakes name is among the videos: is {escape(repr(original))}, of "
            f"{escape(repr(fake))}, one that is called {escape(repr(reals[0]))} or so here? A fake and its original that have "
            "different names can fall into training and test.[/]",
            soft_wrap=True,
        )


def _refuse_others(out: str, index: pa.Table) -> None:
    """UserError if OUT knows of videos that are not among these: an import is written whole."""
    uri = storage.join(out, "index.parquet")
    if not storage.exists(uri):
        return
    there = set(pq.read_table(pa.BufferReader(storage.read_bytes(uri)), columns=["video_id"])["video_id"].to_pylist())
    if others := sorted(there - set(index["video_id"].to_pylist())):
        raise UserError(
            f"{out} has {len(others)} videos that are not among these ({others[0]}). Give all sources in one import, or another --out."
        )


def _by_name(crops: list[Crop]) -> dict[str, list[Crop]]:
    """The pictures of each video. UserError where they do not agree in what they say of it, or come from two sources."""
    by_name: dict[str, list[Crop]] = {}
    for crop in crops:
        first = by_name.setdefault(crop.video, [])[:1] or [crop]
        if crop.given != first[0].given:
            raise UserError(f"The video {crop.video!r} is in {first[0].given} and in {crop.given}. Give each video in one source.")
        if crop.facts != first[0].facts:
            raise UserError(
                f"{first[0].where} and {crop.where} say different things of the video {crop.video!r}: {first[0].facts}, {crop.facts}."
            )
        if crop.original is not None and crop.label != "FAKE":
            raise UserError(f"{crop.where}: {crop.video!r} names an original and is not a fake.")
        by_name[crop.video].append(crop)
    return by_name


def _found(crops: list[Crop]) -> FoundVideo:
    """A video as the index takes it."""
    first = crops[0]
    return FoundVideo(
        name=first.video,
        original=first.original,
        uri=first.source,
        size=None,
        part=first.part,
        listing=None if first.label is None else Listing(first.label, first.original, first.method),
        listed_in=first.where,
        group=first.group,
        grouped_in=first.where,
        unlisted=False,
    )


def _write(
    out: str, videos: list[_Video], unit_ids: dict[str, str], detector: Detector | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Losses]:
    """Write faces/; return the manifest's files, the ledger's rows, and what was lost."""
    files: list[dict[str, Any]] = []
    ledger: list[dict[str, Any]] = []
    losses = Losses()
    pictures = with_landmarks = 0
    with Work("import", total=sum(len(video.crops) for video in videos), unit="pictures") as progress:

        def read(video: _Video) -> _Read:
            nonlocal pictures, with_landmarks
            found = _read(video, unit_ids[video.facts["family_id"]], detector)
            ledger.append(found.ledger)
            pictures += len(found.rows)
            with_landmarks += sum(row["landmarks"] is not None for row in found.rows)
            losses.absent += found.absent
            losses.damaged += found.damaged
            progress.advance(len(video.crops), detail=f"{len(losses):,} of them absent or damaged" if losses else "")
            return found

        for row_groups in _portions(_row_groups(videos, read), _FILE, lambda rows: sum(len(row["image"]["bytes"]) for row in rows)):
            files.append(_file(out, row_groups))
    if detector:
        console.print(f"Landmarks found in {with_landmarks:,} of {pictures:,} pictures ({detector.name}).", highlight=False)
    return files, ledger, losses


def _row_groups(videos: list[_Video], read: Callable[[_Video], _Read]) -> Iterator[list[dict[str, Any]]]:
    small: list[dict[str, Any]] = []  # rows of whole groups that share a row group
    held = 0
    for _, some in groupby(videos, key=lambda video: video.facts["group_id"]):
        for number, portion in enumerate(_portions(map(read, some), _ROW_GROUP, lambda found: found.bytes)):
            rows = [row for found in portion for row in found.rows]
            size = sum(found.bytes for found in portion)
            alone = number > 0 or size >= _SHARED  # the rest of a large group is part of it, however small
            if small and (alone or held >= _SHARED):
                yield small
                small, held = [], 0
            if not alone:
                small += rows
                held += size
            elif rows:
                yield rows
    if small:
        yield small


def _portions(items: Iterable[T], most: int, size: Callable[[T], int]) -> Iterator[list[T]]:
    """Consecutive items of about `most` bytes together."""
    portion: list[T] = []
    held = 0
    for item in items:
        portion.append(item)
        held += size(item)
        if held >= most:
            yield portion
            portion, held = [], 0
    if portion:
        yield portion


def _file(out: str, row_groups: list[list[dict[str, Any]]]) -> dict[str, Any]:
    sink = io.BytesIO()
    with parquet_writer(sink, FACES) as writer:
        for rows in row_groups:
            writer.write_table(pa.Table.from_pylist(rows, schema=FACES))
    return write_data(out, "faces/imported", sink.getvalue(), rows=sum(map(len, row_groups)))


def _read(video: _Video, unit_id: str, detector: Detector | None) -> _Read:
    """Its pictures, those that can be decoded. One that is damaged or absent is left out, named in the ledger, and sampled there."""
    ids = {name: video.facts[name] for name in ("corpus", "video_id", "family_id", "group_id", "part", "label", "method", "original")}
    rows, damaged, absent, size = [], [], [], 0
    for crop, frame in zip(video.crops, _frames(video), strict=True):
        place = crop.where if crop.source in crop.where else f"{crop.source} ({crop.where})"
        try:
            picture = crop.read()
            rgb = decode(picture)
        except FileNotFoundError:
            absent.append(place)
            continue
        except ValueError:
            damaged.append(place)
            continue
        size += len(picture)
        height, width = rgb.shape[:2]
        rows.append(
            dict.fromkeys(FACES.names)
            | ids
            | {"frame": frame, "core": True, "track_id": 0, "crop": [0, 0, width, height], "image": {"bytes": picture, "path": None}}
            | (_landmarks(detector, rgb) if detector else {})
        )
    rows.sort(key=lambda row: row["frame"])
    trouble = [
        f"{len(some)} of {len(video.crops)} pictures {what}, the first {some[0]}"
        for what, some in (("damaged", damaged), ("absent", absent))
        if some
    ]
    status = "ok" if rows else "error" if damaged else "missing"
    stage = "decode" if damaged else "open" if absent else None
    ledger: dict[str, Any] = dict.fromkeys(LEDGER.names)
    ledger |= ids | {"unit_id": unit_id, "generation": 0, "status": status, "stage": stage, "error": "; ".join(trouble) or None}
    ledger |= dict.fromkeys(("frames_wanted", "core_decoded"), len(video.crops))  # the latter is what `evaluate` counts as sampled
    ledger |= dict.fromkeys(("frames_decoded", "frames_with_face", "faces"), len(rows))
    return _Read(rows, size, ledger, absent, damaged)


def _landmarks(detector: Detector, rgb: np.ndarray) -> dict[str, Any]:
    """Those of the largest face, where one is found."""
    faces = detector.detect(rgb)
    largest = max(faces, key=lambda face: face.box[2] * face.box[3], default=None)
    return {"landmarks": largest and largest.landmarks and list(largest.landmarks), "detector": detector.name}


def _frames(video: _Video) -> list[int]:
    """The number of each picture's frame: as given, or in order. UserError if one is given twice."""
    frames = [i if crop.frame is None else crop.frame for i, crop in enumerate(video.crops)]
    if len(set(frames)) < len(frames):
        twice = next(frame for frame in frames if frames.count(frame) > 1)
        crops = [crop.where for crop, frame in zip(video.crops, frames, strict=True) if frame == twice]
        raise UserError(f"{crops[0]} and {crops[1]} are both frame {twice} of the video {video.crops[0].video!r}.")
    return frames
