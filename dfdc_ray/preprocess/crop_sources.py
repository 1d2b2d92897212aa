"""Where imported crops come from: a Parquet table with pictures in it, a CSV of paths, or a folder with real/ and fake/.

Parquet and CSV have the columns video and label, and as far as they are known original, method, part, group and frame. Parquet has the
picture in jpeg, png or image (bytes, or Hugging Face's struct of bytes and path); CSV its path in `path`, relative to the CSV. Labels are
REAL and FAKE in any case, or numbers: those that a Parquet file written by Hugging Face's datasets names (ClassLabel), else 0 is real and 1
is fake. In a folder a subfolder of real/ or fake/ is a video, as is a picture directly in them.
"""

import csv
import io
import json
import posixpath
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.markup import escape

from dfdc_ray import storage
from dfdc_ray.console import console
from dfdc_ray.errors import UserError

PICTURES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
_IMAGE_COLUMNS = ("jpeg", "png", "image")
_FACTS = ("video", "label", "original", "method", "part", "group", "frame")
_LABELS = {"REAL": "REAL", "FAKE": "FAKE", "0": "REAL", "1": "FAKE"}
_CACHE = 1 << 30  # bytes of a table's row groups that are held
_WHOLE_FLOAT = re.compile(r"\A(-?[0-9]+)\.0\Z")  # how pandas writes a whole number that stood beside empty cells


@dataclass(frozen=True)
class Crop:
    """One picture. frame: None where it is not said. given: the source as it was given; source: the uri of the file that the picture is in.

    where: for messages. read: its bytes; FileNotFoundError where it is listed and not there.
    """

    video: str
    label: str | None
    original: str | None
    method: str | None
    part: int | None
    group: str | None
    frame: int | None
    given: str
    source: str
    where: str
    read: Callable[[], bytes]

    @property
    def facts(self) -> tuple[Any, ...]:
        """What all pictures of a video have to agree in."""
        return self.label, self.original, self.method, self.part, self.group


def read_source(uri: str) -> list[Crop]:
    """All pictures of a source, in its order; their bytes are read when asked for. UserError for one that is none."""
    uri = storage.absolute(uri)
    try:
        if storage.stat(uri).is_dir:
            crops = list(_folder(uri))
        elif uri.lower().endswith(".csv"):
            crops = list(_csv(uri))
        elif uri.lower().endswith(".parquet"):
            crops = list(_parquet(uri))
        else:
            raise UserError(f"{uri}: give a .parquet file, a .csv file, or a folder with real/ and fake/.")
    except FileNotFoundError as error:
        raise UserError(f"{uri}: not found. Give a .parquet file, a .csv file, or a folder with real/ and fake/.") from error
    if not crops:
        raise UserError(f"{uri}: no picture found.")
    return crops


def _parquet(uri: str) -> Iterator[Crop]:
    try:
        file = pq.ParquetFile(storage.open_input(uri))
    except pa.ArrowInvalid as error:
        raise UserError(f"{uri} is not a Parquet file, or damaged ({error}).") from error
    names = file.schema_arrow.names
    image = next((name for name in _IMAGE_COLUMNS if name in names), None)
    if image is None:
        raise UserError(f"{uri}: no column of pictures ({', '.join(_IMAGE_COLUMNS)}), only {', '.join(names)}.")
    _require(uri, names, ("video", "label"))
    kind = file.schema_arrow.field(image).type
    column = f"{image}.bytes" if pa.types.is_struct(kind) else image
    if pa.types.is_struct(kind):
        kind = next((field.type for field in kind if field.name == "bytes"), kind)
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_null(kind)):
        raise UserError(f"{uri}: the column {image!r} holds {kind}, not the bytes of pictures. For paths of pictures give a .csv file.")
    labels = _class_labels(uri, file.schema_arrow)
    pictures = _Pictures(file, column)
    row_number = 0
    for number in range(file.num_row_groups):
        table = file.read_row_group(number, columns=[name for name in _FACTS if name in names])
        for row, facts in enumerate(table.to_pylist()):
            facts["label"] = labels.get(_text(facts["label"]), facts["label"])
            yield _crop(facts, given=uri, source=uri, where=f"{uri}, row {row_number}", read=partial(pictures.read, number, row))
            row_number += 1


def _class_labels(uri: str, schema: pa.Schema) -> dict[str, str | None]:
    """What the numbers in `label` mean by Hugging Face's metadata, whose folders are sorted: fake is 0. Empty where they have no names.

    UserError for other names than real and fake.
    """
    try:
        names = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]["label"]["names"] or []
    except (KeyError, TypeError, ValueError):  # not of Hugging Face, or the column is no ClassLabel
        return {}
    if any(str(name).upper() not in _LABELS for name in names):
        raise UserError(
            f"{uri}: its labels are of the classes {', '.join(map(repr, names))} (ClassLabel), and only real and fake are known. Rename "
            "the classes, or write REAL and FAKE into the column label as text."
        )
    return {str(number): str(name) for number, name in enumerate(names)} | {"-1": None} if names else {}  # -1: Hugging Face's unlabelled


class _Pictures:
    """A table's pictures, by row group; those that were read last are held."""

    def __init__(self, file: pq.ParquetFile, column: str) -> None:
        self.file, self.column = file, column
        self.held: OrderedDict[int, pa.Array] = OrderedDict()

    def read(self, number: int, row: int) -> bytes:
        if number not in self.held:
            table = self.file.read_row_group(number, columns=[self.column])
            column = table.column(0).combine_chunks()
            self.held[number] = column.field("bytes") if pa.types.is_struct(column.type) else column
            while len(self.held) > 1 and sum(array.nbytes for array in self.held.values()) > _CACHE:
                self.held.popitem(last=False)
        return self.held[number][row].as_py() or b""


def _csv(uri: str) -> Iterator[Crop]:
    try:
        reader = csv.DictReader(io.StringIO(storage.read_bytes(uri).decode("utf-8-sig")))
        rows = list(reader)
    except (UnicodeError, csv.Error) as error:
        raise UserError(f"{uri} is not a CSV file in UTF-8 ({error}).") from error
    _require(uri, reader.fieldnames or [], ("path", "video", "label"))
    folder = uri.rpartition("/")[0]
    for line, row in enumerate(rows, start=2):
        if not row["path"]:
            raise UserError(f"{uri}, line {line}: no path.")
        path = row["path"] if storage.is_s3(row["path"]) or row["path"].startswith("/") else storage.join(folder, row["path"])
        facts = {name: _WHOLE_FLOAT.sub(r"\1", row.get(name) or "") for name in _FACTS}
        yield _crop(facts, given=uri, source=path, where=f"{uri}, line {line}", read=partial(storage.read_bytes, path))


def _folder(uri: str) -> Iterator[Crop]:
    entries = [entry for entry in storage.list_dir(uri, recursive=True) if not entry.is_dir and entry.name.lower().endswith(PICTURES)]
    alone = 0
    for entry in entries:
        label, _, below = entry.name.partition("/")
        if label.lower() not in ("real", "fake"):
            raise UserError(f"{entry.uri}: a picture outside of {uri}/real and {uri}/fake. Give the folder that holds these two.")
        folder, name = posixpath.split(below)
        video = f"{label.lower()}/{folder or posixpath.splitext(name)[0]}"
        alone += not folder
        read = partial(storage.read_bytes, entry.uri)
        yield _crop({"video": video, "label": label}, given=uri, source=entry.uri, where=entry.uri, read=read)
    if alone:
        console.print(
            f"[yellow]{alone} pictures lie directly in real/ and fake/ of {escape(uri)}: each counts as a video by itself. If some are "
            "frames of one video, they can fall into training and test: put those of each video into a folder, or give a CSV with the "
            "column video.[/]",
            soft_wrap=True,
        )


def _require(uri: str, names: Any, needed: tuple[str, ...]) -> None:
    if missing := [name for name in needed if name not in names]:
        raise UserError(f"{uri}: the column {missing[0]!r} is not there, only {', '.join(names)}.")


def _crop(facts: dict[str, Any], *, given: str, source: str, where: str, read: Callable[[], bytes]) -> Crop:
    video, label, original = _text(facts.get("video")).strip("/"), _text(facts.get("label")), _text(facts.get("original"))
    if not video:
        raise UserError(f"{where}: no name of a video.")
    if label and label.upper() not in _LABELS:
        raise UserError(f"{where}: the label {label!r} is not known; REAL and FAKE are, and 0 and 1 (fake).")
    text = {name: _text(facts.get(name)) or None for name in ("method", "group")}
    return Crop(
        video=video,
        label=_LABELS[label.upper()] if label else None,
        original=original.strip("/") or None,  # as the video that it names
        method=text["method"],
        part=_whole(facts, "part", where, least=-1),
        group=text["group"],
        frame=_whole(facts, "frame", where, least=0),
        given=given,
        source=source,
        where=where,
        read=read,
    )


def _text(value: Any) -> str:
    """Nothing for None and NaN. A whole float is a number that stood beside empty cells: pandas makes floats of such a column."""
    if value is None or value != value:  # noqa: PLR0124
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _whole(facts: dict[str, Any], name: str, where: str, *, least: int) -> int | None:
    """A whole number; None where there is none, also for a part of -1 (unknown)."""
    text = _text(facts.get(name))
    if not text:
        return None
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if not least <= number < 1 << 31:
        raise UserError(f"{where}: {name} {text!r} is not a whole number from {least} to {(1 << 31) - 1}.")
    return None if number < 0 else number
