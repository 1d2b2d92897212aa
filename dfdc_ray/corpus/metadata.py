"""The two tables that describe videos: DFDC's metadata.json and our groups.csv, read strictly.

metadata.json, one for each folder of videos: `{"aaa.mp4": {"label": "FAKE", "split": "train", "original": "bbb.mp4"}}`. Labels are REAL and
FAKE; a real video's original is null or left out. The key `method` (how the fake was made) is ours; other keys are not read.
groups.csv: the header `video,group`, then a line for each video. A split never cuts a group.
"""

import csv
import io
import json
import re
from dataclasses import dataclass
from typing import Any

from dfdc_ray.errors import UserError

LABELS = ("REAL", "FAKE")
_NO_NAME = re.compile(r"[/\\\0-\x1f\ud800-\udfff]")  # separators, control characters, and halves of characters, which have no UTF-8


@dataclass(frozen=True)
class Listing:
    """What metadata.json says of one video. `original` is a file name, None for real videos and where none is given."""

    label: str
    original: str | None
    method: str | None


def parse_metadata(data: bytes, where: str) -> dict[str, Listing]:
    """The videos that a metadata.json lists, by file name. Raises UserError naming `where` and the entry."""
    try:
        document = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not the JSON that was expected ({error}). Take this file from the download again.") from error
    if not isinstance(document, dict):
        raise UserError(f"{where}: expected an object with an entry for each video, found {_kind(document)}")
    listings = {name: _listing(name, entry, where) for name, entry in document.items()}
    for name, listing in listings.items():
        original = listings.get(listing.original) if listing.original is not None else None
        if original is not None and original.label != "REAL":
            raise UserError(f"{where}: {name!r} names {listing.original!r} as its original, which is itself {original.label}")
    return listings


def parse_groups(data: bytes, where: str) -> dict[str, str]:
    """The group of each video, by file name (with the folder, where the index has one). Raises UserError naming `where` and the line."""
    try:
        rows = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{where}: not a CSV file in UTF-8 ({error})") from error
    if not rows or rows[0] != ["video", "group"]:
        raise UserError(f"{where}: the first line must be `video,group`, found {','.join(rows[0]) if rows else 'nothing'!r}")
    groups: dict[str, str] = {}
    for number, row in enumerate(rows[1:], 2):
        if not row:
            continue  # a blank line
        if len(row) != 2 or not all(row):
            raise UserError(f"{where}: row {number} must be a video and its group, found {','.join(row)!r}")
        video, group = row
        if groups.setdefault(video, group) != group:
            raise UserError(f"{where}: row {number} puts {video!r} in group {group!r}; an earlier row says {groups[video]!r}")
    return groups


def _listing(name: str, entry: Any, where: str) -> Listing:
    what = f"{where}: entry {name!r}"
    if not _is_file_name(name):
        raise UserError(f"{what} is not the name of a file in that folder")
    if not isinstance(entry, dict):
        raise UserError(f"{what} must be an object, found {_kind(entry)}")
    label, original, method = entry.get("label"), entry.get("original"), entry.get("method")
    if label not in LABELS:
        raise UserError(f"{what} has the label {label!r}; known are REAL and FAKE")
    if original is not None and not (isinstance(original, str) and _is_file_name(original)):
        raise UserError(f"{what} has the original {original!r}; it must be the name of a file, or null")
    if label == "REAL" and original is not None:
        raise UserError(f"{what} is REAL and names an original, {original!r}; only fakes have one")
    if method is not None and not isinstance(method, str):
        raise UserError(f"{what} has the method {method!r}; it must be a string or null")
    return Listing(label, original, method)


def _is_file_name(name: str) -> bool:
    return name not in ("", ".", "..") and _NO_NAME.search(name) is None


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"{twice!r} is there twice")
    return result


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "a string", type(None): "null"}.get(type(value), f"the value {value!r}")
