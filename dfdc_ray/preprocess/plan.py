"""Units of work: one family (a real video and the fakes made from it) is one unit, for ever."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass

import pyarrow as pa


@dataclass(frozen=True)
class Video:
    """One row of the index. `uri` is None for a video that metadata lists but nothing holds."""

    corpus: str
    video_id: str
    uri: str | None
    label: str | None
    method: str | None
    original: str | None
    family_id: str
    group_id: str
    part: int | None


@dataclass(frozen=True)
class Unit:
    """A family: its original first where there is one, then the others by video_id."""

    unit_id: str
    family_id: str
    videos: tuple[Video, ...]

    def to_json(self) -> str:
        """One line of JSON, the form in which units travel to workers."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "Unit":
        """The inverse of `to_json`."""
        fields = json.loads(text)
        return Unit(fields["unit_id"], fields["family_id"], tuple(Video(**video) for video in fields["videos"]))


def units(index: pa.Table) -> list[Unit]:
    """The index as units, ordered by family_id. A unit's id depends on its family_id alone."""
    columns = list(Video.__dataclass_fields__)
    families: dict[str, list[Video]] = {}
    for row in index.select(columns).to_pylist():
        families.setdefault(row["family_id"], []).append(Video(**row))
    return [
        Unit(_unit_id(family_id), family_id, tuple(sorted(videos, key=lambda v: (v.video_id != family_id, v.video_id))))
        for family_id, videos in sorted(families.items())
    ]


def _unit_id(family_id: str) -> str:
    """A file name that a person recognises and that two families never share."""
    readable = re.sub(r"[^A-Za-z0-9]+", "-", family_id.rsplit("/", 1)[-1].rsplit(".", 1)[0]).strip("-")[:40]
    return f"{readable}-{hashlib.sha256(family_id.encode()).hexdigest()[:12]}"
