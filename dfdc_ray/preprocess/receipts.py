"""What is done, once and exactly once: receipts are the only commit, and everything else (publish.py) is made from them.

OUT/config.json                            the hashed configuration; another one is refused
OUT/faces/<unit>.<sha256>.parquet          written before the receipt; a file that no receipt names does not exist
OUT/boxes/<unit>.<sha256>.parquet
OUT/receipts/<unit>.<generation>.json      the commit; the highest generation wins
OUT/stats/<unit>.<generation>.json         times and attempts, outside of what is compared
OUT/receipts.json.gz                       a copy of the receipts, so that 17,000 small files need not be read again; nobody misses it
"""

import functools
import gzip
import hashlib
import json
import platform
import re
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import pyarrow as pa

from dfdc_ray import __version__, storage
from dfdc_ray.preprocess.plan import Unit
from dfdc_ray.preprocess.settings import Settings
from dfdc_ray.preprocess.unit import UnitResult
from dfdc_ray.shards.output import claim, json_bytes, write_data
from dfdc_ray.shards.schema import BOXES, FACES
from dfdc_ray.shards.write import parquet_bytes
from dfdc_ray.storage import Version

LEDGER = pa.schema(
    [
        ("corpus", pa.string()),
        ("video_id", pa.string()),
        ("family_id", pa.string()),
        ("group_id", pa.string()),
        ("part", pa.int32()),
        ("label", pa.string()),
        ("method", pa.string()),
        ("original", pa.string()),
        ("unit_id", pa.string()),
        ("generation", pa.int32()),
        ("status", pa.string()),  # ok, no_face, error, missing, poison
        ("stage", pa.string()),  # where it went wrong (errors.Stage)
        ("error", pa.string()),
        ("frames_wanted", pa.int32()),
        ("frames_decoded", pa.int32()),
        ("core_decoded", pa.int32()),  # of these, the ones that evaluation uses
        ("frames_with_face", pa.int32()),
        ("faces", pa.int32()),
        ("box_source", pa.string()),  # original, self; null without a face
        ("alignment", pa.string()),  # a fake's check against its original, where it was made
        ("brightness", pa.float32()),  # mean grey level of the core frames, 0..255
        ("face_brightness", pa.float32()),  # and of the crops
        ("crop_side", pa.float32()),  # median of the crops' longer sides, pixels of the frame
        ("sound", pa.string()),  # ok, none (no sound track), silent, damaged: ...; null unless --sound was asked for
    ]
)

READ = ("ok", "no_face")  # statuses of videos that were read to their end
_NAME = re.compile(r"(.+)\.(\d+)\.json")  # of a receipt; anything else in the folder is not ours
# What a receipt's ledger rows say of a video and the index may come to say otherwise (labels or groups.csv that arrive later).
_FACTS = ("video_id", "label", "method", "original", "family_id", "group_id", "part")
_THREADS = 32  # for reading many small objects
_SNAPSHOT, _SNAPSHOT_FORMAT = "receipts.json.gz", 1


@dataclass(frozen=True)
class Receipt:
    """One unit's commit: the files with its rows and a ledger row for each video."""

    unit_id: str
    family_id: str
    generation: int
    config_hash: str
    faces: dict[str, Any] | None  # path, rows, sha256; None when there is no face
    boxes: dict[str, Any] | None
    videos: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """File name under receipts/."""
        return f"{self.unit_id}.{self.generation}.json"


class Receipts:
    """The output folder of preprocess, seen through its receipts."""

    def __init__(self, out: str, settings: Settings) -> None:
        self.out = out
        self.config_hash = settings_hash(settings)
        self._known: _Known | None = None  # what was read last
        self._saved: dict[str, Version] = {}  # what the snapshot holds

    def commit(self, result: UnitResult, *, generation: int) -> Receipt:
        """Write the data files, then the receipt. If another worker was first, its receipt is returned and counts."""
        faces = self._data_file("faces", result.unit, [v.faces for v in result.videos], FACES)
        found = [v.faces if v.ledger["box_source"] == "self" else [] for v in result.videos]
        boxes = self._data_file("boxes", result.unit, found, BOXES)
        rows = [v.ledger | {"unit_id": result.unit.unit_id, "generation": generation} for v in result.videos]
        receipt = Receipt(result.unit.unit_id, result.unit.family_id, generation, self.config_hash, faces, boxes, rows)
        uri = storage.join(self.out, "receipts", receipt.name)
        if not storage.create_once(uri, json_bytes(asdict(receipt))):
            return _read(uri)
        seconds = {v.ledger["video_id"]: v.seconds for v in result.videos}
        s3 = {v.ledger["video_id"]: asdict(v.traffic) for v in result.videos if v.traffic.requests}
        stats = {"cpu_seconds": seconds, "s3": s3, "versions": versions()}
        storage.write_bytes(storage.join(self.out, "stats", receipt.name), json_bytes(stats))
        return receipt

    def _data_file(self, folder: str, unit: Unit, row_groups: list[list[dict[str, Any]]], schema: pa.Schema) -> dict[str, Any] | None:
        rows = sum(map(len, row_groups))
        if rows == 0:
            return None
        return write_data(self.out, f"{folder}/{unit.unit_id}", parquet_bytes(row_groups, schema), rows=rows)

    def find(self, unit: Unit, generation: int) -> Receipt | None:
        """The unit's receipt of this generation, if somebody wrote it."""
        try:
            return _read(storage.join(self.out, "receipts", f"{unit.unit_id}.{generation}.json"))
        except FileNotFoundError:
            return None

    def read(self) -> dict[str, Receipt]:
        """The receipt in force of each unit, by unit_id.

        The folder is listed every time, and decides what exists; a receipt's content is read once, or taken from the snapshot, as long as
        the listing shows the version that was read.
        """
        folder = storage.join(self.out, "receipts")
        newest: dict[str, tuple[int, str, Version]] = {}
        for entry in storage.list_dir(folder):
            match = _NAME.fullmatch(entry.name)
            if match and entry.version and int(match[2]) > newest.get(match[1], (-1,))[0]:
                newest[match[1]] = int(match[2]), entry.name, entry.version
        there = {name: version for _, name, version in sorted(newest.values())}
        known = self._read_snapshot() if self._known is None else self._known
        unread = [name for name, version in there.items() if name not in known or known[name][0] != version]
        with ThreadPoolExecutor(_THREADS) as pool:
            read = dict(zip(unread, pool.map(_read, [storage.join(folder, name) for name in unread]), strict=True))
        self._known = {name: (version, read[name] if name in read else known[name][1]) for name, version in there.items()}
        return {receipt.unit_id: receipt for _, receipt in self._known.values()}

    def write_snapshot(self) -> None:
        """Leave what was read last for the next run, unless it is there already."""
        known = self._known or {}
        versions = {name: version for name, (version, _) in known.items()}
        if versions == self._saved:
            return
        head = {"format": _SNAPSHOT_FORMAT, "config_hash": self.config_hash}
        lines = [head, *([name, version.size, version.tag, vars(receipt)] for name, (version, receipt) in known.items())]
        data = "\n".join(json.dumps(line) for line in lines).encode()
        storage.write_bytes(storage.join(self.out, _SNAPSHOT), gzip.compress(data, 1, mtime=0))
        self._saved = versions

    def _read_snapshot(self) -> "_Known":
        """What an earlier run left; empty if that is absent, damaged (gzip has a checksum) or of another kind, for then nothing is lost."""
        try:
            data = gzip.decompress(storage.read_bytes(storage.join(self.out, _SNAPSHOT)))
            head, *lines = [json.loads(line) for line in data.splitlines()]
            if head != {"format": _SNAPSHOT_FORMAT, "config_hash": self.config_hash}:
                return {}
            known = {name: (Version(size, tag), Receipt(**receipt)) for name, size, tag, receipt in lines}
        except (FileNotFoundError, EOFError, gzip.BadGzipFile, zlib.error, ValueError, TypeError):
            return {}
        self._saved = {name: version for name, (version, _) in known.items()}
        return known


_Known = dict[str, tuple[Version, Receipt]]
"""Receipts and the version of the file that each was read from, by name."""


def open_output(out: str, settings: Settings) -> Receipts:
    """Take a new folder, or one that was begun with the same configuration. UserError names what differs otherwise."""
    claim(out, asdict(settings), folders=("faces", "boxes", "receipts", "stats"))
    return Receipts(out, settings)


def todo(units: Iterable[Unit], done: dict[str, Receipt], retry: Iterable[str]) -> list[tuple[Unit, int]]:
    """Units still to do, with the generation to write: without a receipt, with one that the index has overtaken, with a video whose file
    came since, or with an outcome to retry.
    """
    again = set(retry)
    work = []
    for unit in units:
        receipt = done.get(unit.unit_id)
        if receipt is None:
            work.append((unit, 0))
            continue
        ended = {row["video_id"]: row["status"] for row in receipt.videos}
        arrived = any(ended.get(v.video_id) == "missing" and v.uri is not None for v in unit.videos)
        if overtaken(receipt, unit) or arrived or again & set(ended.values()):
            work.append((unit, receipt.generation + 1))
    return work


def overtaken(receipt: Receipt, unit: Unit) -> bool:
    """Whether the index has come to say something else of the unit's videos (one more or less, a label, a group) than the receipt does."""
    known = {tuple(row[name] for name in _FACTS) for row in receipt.videos}
    return known != {tuple(getattr(video, name) for name in _FACTS) for video in unit.videos}


def lost(earlier: Receipt, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ledger rows of videos that the earlier receipt read to the end and these rows did not."""
    read = {row["video_id"] for row in earlier.videos if row["status"] in READ}
    return [row for row in rows if row["video_id"] in read and row["status"] not in READ]


@functools.cache  # reading the metadata of packages takes longer than writing a receipt
def versions() -> dict[str, str]:
    """Versions of what decides the bytes: recorded, not hashed."""
    packages = ("ray", "av", "deepface", "opencv-contrib-python-headless", "numpy", "pyarrow")
    return {"python": platform.python_version(), "dfdc-ray": __version__} | {name: version(name) for name in packages}


def settings_hash(settings: Settings) -> str:
    """SHA-256 of the hashed configuration."""
    return hashlib.sha256(json_bytes(asdict(settings))).hexdigest()


def _read(uri: str) -> Receipt:
    return Receipt(**json.loads(storage.read_bytes(uri)))
