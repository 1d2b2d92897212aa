"""The faces behind the worst mistakes: what the model saw, where it saw a fake, and where they lie in the shards."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dfdc_ray.evaluate.aggregate import Aggregate
from dfdc_ray.evaluate.heat import Shown, shown
from dfdc_ray.evaluate.report import JudgedVideo
from dfdc_ray.evaluate.scorer import Scorer
from dfdc_ray.shards.dataset import encoded
from dfdc_ray.shards.manifest import Manifest
from dfdc_ray.shards.rows import RowTable

FACES = 3  # of each video; of clips the worst one


@dataclass(frozen=True)
class Face:
    """One face of a video that was misjudged. shard, row: where it is (uri, row of the file)."""

    shown: Shown
    frame: int | None  # of a clip its first, as time_s
    time_s: float | None
    score: float  # of a clip the whole
    shard: str
    row: int


@dataclass(frozen=True)
class Mistake:
    """A video that was misjudged and its faces, the most wrong first."""

    video: JudgedVideo
    faces: tuple[Face, ...]


@dataclass(frozen=True)
class Case:
    """A mistake as a page shows it."""

    video_id: str
    facts: str
    faces: tuple[tuple[Shown, str], ...]  # and what is said of each
    places: tuple[tuple[str, str], ...]  # shards, and in words which of their rows


def mistakes(
    worst: Sequence[JudgedVideo], found: Mapping[str, Aggregate], rows: RowTable, scores: np.ndarray, *, scorer: Scorer, manifest: Manifest
) -> list[Mistake]:
    """Read the pictures of the worst videos, and no others. scores: float64 [N] of the rows; found: what became of them by video."""
    return [Mistake(video, _faces(video, found[video.video_id], rows, scores, scorer=scorer, manifest=manifest)) for video in worst]


def _faces(
    video: JudgedVideo, aggregate: Aggregate, rows: RowTable, scores: np.ndarray, *, scorer: Scorer, manifest: Manifest
) -> tuple[Face, ...]:
    ids, tracks = rows.table["video_id"].cast(pa.string()).to_numpy(), pc.fill_null(rows.table["track_id"], 0).to_numpy()
    its = np.flatnonzero((ids == video.video_id) & np.isin(tracks, aggregate.tracks))
    order = its[np.argsort(scores[its] if video.label == "FAKE" else -scores[its], kind="stable")]
    chosen = order[: 1 if scorer.clips else FACES].tolist()
    faces = []
    for position, of_line in zip(chosen, shown(scorer, encoded(rows, chosen)), strict=True):
        (line,) = rows.table.slice(position, 1).to_pylist()
        group, row = (np.atleast_1d(rows.column(name)[position]) for name in ("group", "row"))
        for one in of_line:
            file, _, _, first = rows.groups[group[one.at]]
            where = manifest.files[file].uri, int(first + row[one.at])
            faces.append(Face(one, line["frame"], line["time_s"], float(scores[position]), *where))
    return tuple(faces)


def cases(found: Sequence[Mistake], unit: str) -> list[Case]:
    """unit: what is scored, frames or clips."""
    made = []
    for mistake in found:
        rows: dict[str, list[int]] = {}
        for face in mistake.faces:
            rows.setdefault(face.shard, []).append(face.row)
        places = tuple((shard, f"row{'s' * (len(some) > 1)} {', '.join(map(str, some))}") for shard, some in rows.items())
        said = tuple((face.shown, _moment(face)) for face in mistake.faces)
        made.append(Case(mistake.video.video_id, _facts(mistake.video, unit), said, places))
    return made


def dump(found: Sequence[Case]) -> bytes:
    """As JSON, pictures in base64."""
    return json.dumps([asdict(case) for case in found], default=lambda picture: base64.b64encode(picture).decode()).encode()


def load(data: bytes) -> list[Case]:
    """What `dump` wrote."""
    return [
        Case(
            one["video_id"],
            one["facts"],
            tuple(
                (Shown(base64.b64decode(s["face"]), s["heat"] and base64.b64decode(s["heat"]), s["at"]), what) for s, what in one["faces"]
            ),
            tuple((shard, rows) for shard, rows in one["places"]),
        )
        for one in json.loads(data)
    ]


def _facts(video: JudgedVideo, unit: str) -> str:
    said = [
        f"{video.label}, called {'real' if video.label == 'FAKE' else 'fake'} at {video.counted_as:.4f}",
        *filter(None, [video.method]),
        f"{video.frames_scored} of {video.frames_sampled} {unit} scored",
    ]
    return " · ".join(said)


def _moment(face: Face) -> str:
    """Where in the video a face is, and what it got."""
    at = [f"frame {face.frame}"] if face.frame is not None else []
    at += [f"{face.time_s:.1f} s"] if face.time_s is not None else []
    clip = f"{face.shown.at + 1}. of the clip from " if face.shown.at else ""
    return f"{clip}{', '.join(at)}: {face.score:.4f}"
