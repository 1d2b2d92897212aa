"""Face crops that somebody has already, as shards like those of preprocess: for `train`, `evaluate` and `pack`.

    dfdc-ray import --crops crops.parquet --out out/faces
    dfdc-ray import --crops FOLDER_WITH_real_AND_fake --crops list.csv --out s3://bucket/faces

OUT holds what preprocess leaves for a reader: index.parquet, ledger.parquet, manifest.json and faces/. Pictures stay as they are, to the
byte; each is decoded once to see that it can be. Rows come in order of group, video and frame; a row group is of one group.
"""

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from dfdc_ray import storage
from dfdc_ray.config import ImportConfig
from dfdc_ray.console import Work, console
from dfdc_ray.corpus.index import INDEX
from dfdc_ray.errors import UserError
from dfdc_ray.faces.crop import decode
from dfdc_ray.preprocess.crop_sources import Crop, read_source
from dfdc_ray.preprocess.plan import units
from dfdc_ray.preprocess.receipts import LEDGER, json_bytes, versions
from dfdc_ray.shards.format import FORMAT_VERSION
from dfdc_ray.shards.schema import FACES
from dfdc_ray.shards.write import parquet_writer

T = TypeVar("T")
_ROW_GROUP, _FILE = 16 << 20, 256 << 20  # bytes of pictures, about


@dataclass(frozen=True)
class _Video:
    """The facts of one video: columns of INDEX, and its pictures in order."""

    facts: dict[str, Any]
    crops: list[Crop]


@dataclass(frozen=True)
class _Read:
    """One video with its pictures: rows for the shard, the bytes of their pictures, and its ledger row."""

    rows: list[dict[str, Any]]
    bytes: int
    ledger: dict[str, Any]


def import_crops(config: ImportConfig) -> None:
    """The `import` command. UserError for sources that are none, facts that contradict each other, and an output of something else."""
    if config.margin is not None and config.margin < 0:
        raise UserError(f"--margin {config.margin}: must not be negative.")
    crops = [crop for uri in config.crops for crop in read_source(uri)]
    videos = _videos(crops, config.corpus)
    out = storage.absolute(config.out)
    settings = _settings(config, videos)
    _open_output(out, settings)
    index = pa.Table.from_pylist([video.facts for video in videos], schema=INDEX).sort_by("video_id")
    storage.write_bytes(storage.join(out, "index.parquet"), _parquet(index))
    unit_ids = {unit.family_id: unit.unit_id for unit in units(index)}
    files, ledger = _write(out, videos, unit_ids)
    ledger.sort(key=lambda row: row["video_id"])
    storage.write_bytes(storage.join(out, "ledger.parquet"), _parquet(pa.Table.from_pylist(ledger, schema=LEDGER)))
    manifest = {
        "format": FORMAT_VERSION,
        "kind": "plain",
        "data_hash": hashlib.sha256("\n".join(f["sha256"] for f in files).encode()).hexdigest(),
        "config": settings,
        "written_by": versions(),
        "files": files,
    }
    storage.write_bytes(storage.join(out, "manifest.json"), json_bytes(manifest))
    _summary(videos, ledger, out)


def _settings(config: ImportConfig, videos: list[_Video]) -> dict[str, Any]:
    """What there is to say of how the faces were made; `margin` None where that is not known."""
    frames = max(len(video.crops) for video in videos)
    return {
        "imported": True,
        "sampling": "imported",
        "frames": frames,
        "real_multiplier": 1,
        "crop": "face",
        "margin": config.margin,
        "format_version": FORMAT_VERSION,
    }


def _open_output(out: str, settings: dict[str, Any]) -> None:
    """Take a new folder, or one that an import with the same settings has begun: it is written again."""
    storage.make_dirs(storage.join(out, "faces"))
    uri = storage.join(out, "config.json")
    if not storage.create_once(uri, json_bytes(settings)) and storage.read_bytes(uri) != json_bytes(settings):
        raise UserError(f"{out} holds something else already (its config.json says so). Give another --out.")


def _videos(crops: list[Crop], corpus: str) -> list[_Video]:
    """By video, in order of group and video. UserError where what is said of a video or a family does not agree."""
    by_name: dict[str, list[Crop]] = {}
    for crop in crops:
        by_name.setdefault(crop.video, []).append(crop)
    groups: dict[str, tuple[str, Crop]] = {}
    videos = []
    for name, some in by_name.items():
        first = some[0]
        for crop in some[1:]:
            if crop.given != first.given:
                raise UserError(
                    f"The video {name!r} is in {first.given} and in {crop.given}. Give other names, or each video in one source."
                )
            if crop.facts != first.facts:
                raise UserError(f"{first.where} and {crop.where} say different things of the video {name!r}: {first.facts}, {crop.facts}.")
        if first.original is not None and first.label != "FAKE":
            raise UserError(f"{first.where}: {name!r} names an original and is not a fake.")
        if first.original in by_name and by_name[first.original][0].label == "FAKE":
            raise UserError(f"{first.where}: {name!r} names {first.original!r} as its original, which is itself a fake.")
        family = first.original or name
        group, before = groups.setdefault(family, (_group(first, family), first))
        if group != _group(first, family):
            raise UserError(
                f"{before.where} and {first.where} are one family ({family!r} and its fakes) in two groups, {group} and "
                f"{_group(first, family)}: a split would cut it. Give them the same."
            )
        facts = {
            "corpus": corpus,
            "video_id": f"{corpus}/{name}",
            "uri": first.source,
            "label": first.label,
            "method": first.method,
            "original": first.original and f"{corpus}/{first.original}",
            "family_id": f"{corpus}/{family}",
            "group_id": f"{corpus}/{group}",
            "part": first.part,
            "size_bytes": None,
        }
        videos.append(_Video(facts, some))
    return sorted(videos, key=lambda video: (video.facts["group_id"], video.facts["family_id"], video.facts["video_id"]))


def _group(crop: Crop, family: str) -> str:
    if crop.group is not None:
        return f"group:{crop.group}"
    return f"family:{family}" if crop.part is None else f"part:{crop.part}"


def _write(out: str, videos: list[_Video], unit_ids: dict[str, str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Write faces/; return the manifest's files and the ledger's rows."""
    files: list[dict[str, Any]] = []
    ledger: list[dict[str, Any]] = []
    with Work("import", total=sum(len(video.crops) for video in videos), unit="pictures") as progress:

        def read(video: _Video) -> _Read:
            found = _read(video, unit_ids[video.facts["family_id"]])
            ledger.append(found.ledger)
            progress.advance(len(video.crops))
            return found

        for row_groups in _portions(_row_groups(videos, read), _FILE, lambda rows: sum(len(row["image"]["bytes"]) for row in rows)):
            files.append(_file(out, row_groups))
    return files, ledger


def _row_groups(videos: list[_Video], read: Callable[[_Video], _Read]) -> Iterator[list[dict[str, Any]]]:
    for _, some in groupby(videos, key=lambda video: video.facts["group_id"]):
        for portion in _portions((read(video) for video in some), _ROW_GROUP, lambda found: found.bytes):
            if rows := [row for found in portion for row in found.rows]:
                yield rows


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
    sha256 = hashlib.sha256(sink.getbuffer()).hexdigest()
    path = f"faces/imported.{sha256[:16]}.parquet"
    storage.write_bytes(storage.join(out, path), sink.getvalue())
    return {"path": path, "rows": sum(map(len, row_groups)), "sha256": sha256}


def _read(video: _Video, unit_id: str) -> _Read:
    """Its pictures, those that can be decoded; one that is damaged or absent is left out, counted, and named in the ledger."""
    ids = {name: video.facts[name] for name in ("corpus", "video_id", "family_id", "group_id", "part", "label", "method", "original")}
    rows, damaged, absent, size = [], [], [], 0
    for crop, frame in zip(video.crops, _frames(video), strict=True):
        try:
            picture = crop.read()
            height, width = decode(picture).shape[:2]
        except FileNotFoundError:
            absent.append(crop.where)
            continue
        except ValueError:
            damaged.append(crop.where)
            continue
        size += len(picture)
        rows.append(
            dict.fromkeys(FACES.names)
            | ids
            | {"frame": frame, "core": True, "track_id": 0, "crop": [0, 0, width, height], "image": {"bytes": picture, "path": None}}
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
    ledger |= {"frames_wanted": len(video.crops), "frames_decoded": len(rows)}
    ledger |= dict.fromkeys(("core_decoded", "frames_with_face", "faces"), len(rows))
    return _Read(rows, size, ledger)


def _frames(video: _Video) -> list[int]:
    """The number of each picture's frame: as given, or in order. UserError if one is given twice."""
    frames = [i if crop.frame is None else crop.frame for i, crop in enumerate(video.crops)]
    if len(set(frames)) < len(frames):
        twice = next(frame for frame in frames if frames.count(frame) > 1)
        crops = [crop.where for crop, frame in zip(video.crops, frames, strict=True) if frame == twice]
        raise UserError(f"{crops[0]} and {crops[1]} are both frame {twice} of the video {video.crops[0].video!r}.")
    return frames


def _summary(videos: list[_Video], ledger: list[dict[str, Any]], out: str) -> None:
    table = Table(title=f"Imported: {out}")
    for column in ("", "real", "fake", "no label"):
        table.add_column(column, justify="left" if not column else "right")
    labels = ("REAL", "FAKE", None)
    counts = {
        "videos": [sum(row["label"] == label for row in ledger) for label in labels],
        "pictures": [sum(row["faces"] for row in ledger if row["label"] == label) for label in labels],
        "videos without a picture that can be read": [sum(r["status"] != "ok" for r in ledger if r["label"] == label) for label in labels],
    }
    for name, cells in counts.items():
        table.add_row(name, *(f"{count:,}" for count in cells))
    console.print(table)
    groups = {video.facts["group_id"] for video in videos}
    line = f"{len({video.facts['family_id'] for video in videos}):,} families in {len(groups):,} groups."
    if any("/family:" in group for group in groups):
        line += " Some groups are single families: one person may be on both sides of a split. A column `part` or `group` prevents it."
    console.print(line, highlight=False, soft_wrap=True)
    for row in [row for row in ledger if row["error"]][:10]:
        console.print(f"  {row['video_id']}: {row['error']}", highlight=False, markup=False, soft_wrap=True)


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()
