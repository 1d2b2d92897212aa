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
class Mistake:
    """A video that was misjudged, as a page shows it; its faces, the most wrong first."""

    video_id: str
    facts: str
    faces: tuple[tuple[Shown, str], ...]  # and what is said of each
    places: tuple[tuple[str, str], ...]  # shards, and in words which of their rows


def mistakes(
    worst: Sequence[JudgedVideo],
    found: Mapping[str, Aggregate],
    rows: RowTable,
    scores: np.ndarray,
    *,
    scorer: Scorer,
    manifest: Manifest,
    unit: str,
) -> list[Mistake]:
    """Read the pictures of the worst videos, and no others.

    scores: float64 [N] of the rows; found: what became of them by video; unit: what is scored, frames or clips.
    """
    ids, tracks = rows.table["video_id"].cast(pa.string()).to_numpy(), pc.fill_null(rows.table["track_id"], 0).to_numpy()
    made = []
    for video in worst:
        its = np.flatnonzero((ids == video.video_id) & np.isin(tracks, found[video.video_id].tracks))
        order = its[np.argsort(scores[its] if video.label == "FAKE" else -scores[its], kind="stable")]
        chosen = order[: 1 if scorer.clips else FACES].tolist()
        faces = []
        places: dict[str, list[str]] = {}
        for position, of_line in zip(chosen, shown(scorer, encoded(rows, chosen)), strict=True):
            (line,) = rows.table.slice(position, 1).to_pylist()
            group, row = (np.atleast_1d(rows.column(name)[position]) for name in ("group", "row"))
            for one in of_line:
                faces.append((one, _moment(one.at, line["frame"], line["time_s"], scores[position])))
                file, _, _, first = rows.groups[group[one.at]]
                places.setdefault(manifest.files[file].uri, []).append(str(first + row[one.at]))
        where = tuple((shard, f"row{'s' * (len(some) > 1)} {', '.join(some)}") for shard, some in places.items())
        made.append(Mistake(video.video_id, _facts(video, unit), tuple(faces), where))
    return made


def dump(found: Sequence[Mistake]) -> bytes:
    """As JSON, pictures in base64."""
    return json.dumps([asdict(mistake) for mistake in found], default=lambda picture: base64.b64encode(picture).decode()).encode()


def load(data: bytes) -> list[Mistake]:
    """What `dump` wrote."""
    return [
        Mistake(
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


def _moment(at: int, frame: int | None, time_s: float | None, score: float) -> str:
    """Where in the video a face is, and what it got. at: its place in the clip, whose first frame, time and score the others are."""
    said = [f"frame {frame}"] if frame is not None else []
    said += [f"{time_s:.1f} s"] if time_s is not None else []
    clip = f"{at + 1}. of the clip from " if at else ""
    return f"{clip}{', '.join(said)}: {score:.4f}"
