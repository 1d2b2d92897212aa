"""Units of work: one family (a real video and the fakes made from it) is one unit, for ever."""

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the child process needs Video, and has no use for 30 MB of pyarrow
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Unit:
    """A family: its original first where there is one, then the others by video_id."""

    unit_id: str
    family_id: str
    videos: tuple[Video, ...]

    def to_json(self) -> str:
        """One line of JSON, the form in which units travel to workers."""
        videos = [{name: getattr(video, name) for name in _FIELDS} for video in self.videos]  # asdict takes five times as long
        return json.dumps({"unit_id": self.unit_id, "family_id": self.family_id, "videos": videos})

    @staticmethod
    def from_json(text: str) -> "Unit":
        """The inverse of `to_json`."""
        fields = json.loads(text)
        return Unit(fields["unit_id"], fields["family_id"], tuple(Video(**video) for video in fields["videos"]))


def units(index: "pa.Table") -> list[Unit]:
    """The index as units, ordered by part and family_id. A unit's id depends on its family_id alone.

    By part, because an actor keeps the directories of few zips: units of one zip follow each other.
    """
    families: dict[str, list[Video]] = {}
    for row in zip(*(_objects(index[name]) for name in _FIELDS), strict=True):
        video = Video(*row)
        families.setdefault(video.family_id, []).append(video)
    return [
        Unit(_unit_id(family_id), family_id, tuple(sorted(videos, key=lambda v: (v.video_id != family_id, v.video_id))))
        for family_id, videos in sorted(families.items(), key=lambda item: (item[1][0].part is None, item[1][0].part or 0, item[0]))
    ]


_FIELDS = tuple(Video.__dataclass_fields__)


def _objects(column: "pa.ChunkedArray") -> list[Any]:
    """As Python objects, one for all equal values: 95,634 videos are in 17,387 families, 50 groups and one corpus."""
    encoded = column.combine_chunks().dictionary_encode()
    values = encoded.dictionary.to_pylist()
    return [None if i is None else values[i] for i in encoded.indices.to_pylist()]


def _unit_id(family_id: str) -> str:
    """A file name that a person recognises and that two families never share."""
    readable = re.sub(r"[^A-Za-z0-9]+", "-", family_id.rsplit("/", 1)[-1].rsplit(".", 1)[0]).strip("-")[:40]
    return f"{readable}-{hashlib.sha256(family_id.encode()).hexdigest()[:12]}"
