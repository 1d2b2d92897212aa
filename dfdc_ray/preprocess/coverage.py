"""What preprocessing found and what it lost, for a person to look at: OUT/coverage.html, one file with tables and pictures.

    dfdc-ray coverage --faces OUT        (preprocess makes it at the end of each run)

It is made from what is in OUT: the ledger, the index and the configuration; only the pictures of the worst cases need the videos again.
Videos that could not be read stay in the denominators of videos; frames count where their video was read to its end.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dfdc_ray import __version__, pages, storage
from dfdc_ray.config import CoverageConfig
from dfdc_ray.console import console
from dfdc_ray.errors import UserError
from dfdc_ray.pages import percent
from dfdc_ray.preprocess.receipts import READ
from dfdc_ray.preprocess.settings import Settings
from dfdc_ray.preprocess.tables import Group, Videos, errors, ratio, rounded, short, tables
from dfdc_ray.preprocess.worst import Case, Frame, Pictures, choose

NAME = "coverage.html"
WORST = 12  # videos with the fewest frames with a face
ODD = 4  # and of each other kind


def coverage(config: CoverageConfig) -> None:
    """The `coverage` command."""
    out = storage.absolute(config.faces)
    _make(out, _made_from(out))
    _say(out)


def write(out: str) -> None:
    """At the end of a run: make OUT/coverage.html unless there is one of this very ledger. Never raises: what goes wrong is printed."""
    try:
        made_from = _made_from(out)
        if not _is_there(storage.join(out, NAME), made_from):
            _make(out, made_from)
        _say(out)
    except Exception as error:  # the run itself went well
        reason = f"{type(error).__name__}: {error}"
        console.print(f"Coverage report: not made ({reason}). `dfdc-ray coverage --faces {out}` makes it.", markup=False, soft_wrap=True)


def _say(out: str) -> None:
    console.print(f"Coverage report: {storage.join(out, NAME)}", highlight=False, markup=False, soft_wrap=True)


def _made_from(out: str) -> str:
    """Identifies what the report says: the ledger, and who wrote the report."""
    return f"dfdc-ray {__version__}, ledger {hashlib.sha256(_read(out, 'ledger.parquet')).hexdigest()}"


def _is_there(uri: str, made_from: str) -> bool:
    try:
        with storage.open_input(uri) as file:
            return made_from.encode() in file.read(1024)
    except FileNotFoundError:
        return False


def _make(out: str, made_from: str) -> None:
    try:
        there = json.loads(_read(out, "config.json"))
        options: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in there.items()}
        settings = Settings(**options)
        ledger = pq.read_table(pa.BufferReader(_read(out, "ledger.parquet")))
        index = pq.read_table(pa.BufferReader(_read(out, "index.parquet")))
        videos = Videos(ledger, settings)
    except (ValueError, TypeError, KeyError, pa.ArrowInvalid) as error:
        raise UserError(f"{out}: its configuration, index or ledger is damaged, or of another version ({error!r}).") from error
    page = pages.render(
        NAME,
        title=f"Coverage: {out.rsplit('/', 1)[-1]}",
        made_from=made_from,
        out=out,
        how=_how(settings, videos),
        tiles=_tiles(videos),
        sections=[*tables(settings, videos), errors(videos, index)],
        chapters=list(_worst(out, settings, ledger, index)),
    )
    storage.write_bytes(storage.join(out, NAME), page)


def _read(out: str, name: str) -> bytes:
    try:
        return storage.read_bytes(storage.join(out, name))
    except FileNotFoundError as error:
        raise UserError(f"{out} has no {name}: it is not an output of `dfdc-ray preprocess`, or its first run did not end.") from error


def _how(settings: Settings, videos: Videos) -> str:
    """The frames were sampled so, and faces looked for so."""
    s = settings
    what = f"{s.frames} frames" + {"per_second": " for each second", "clips": f" in each of {s.clips} clips"}.get(s.sampling, " a video")
    what += f" ({s.sampling})" + (f", {s.real_multiplier} times as many of real ones" if s.real_multiplier > 1 else "")
    if videos.whole:
        return f"Whole frames, {what}. Nobody looked for faces (--crop frame), so there is no coverage to report."
    looked = f"{s.detector} from a score of {s.detector_threshold:g}, frames scaled to a long side of {s.detector_long_side} pixels"
    return f"{what}; detector {looked}; crops with a margin of {s.margin:.0%} on each side."


def _tiles(videos: Videos) -> list[tuple[str, list[str]]]:
    every = Group.of(videos, np.arange(videos.n))
    tiles = [(f"{every.videos:,}", ["videos in the ledger"])]
    if not videos.whole:
        tiles += [
            (percent(every.with_face, every.videos), ["of the videos have a face", f"{every.with_face:,} of {every.videos:,}"]),
            (percent(every.found, every.frames), ["of the frames have a face", f"{every.found:,} of {every.frames:,} looked at"]),
            (ratio(every.faces, every.frames), ["faces per frame", f"{every.faces:,} faces"]),
        ]
    return [*tiles, (f"{every.unread:,}", ["videos not read", f"{percent(every.unread, every.videos)} of all"])]


@dataclass(frozen=True)
class _Shown:
    """A case as the page has it. frames: why there are none, else the pictures."""

    video_id: str
    facts: list[str]
    frames: list[Frame] | str


def _worst(out: str, settings: Settings, ledger: pa.Table, index: pa.Table) -> Iterator[tuple[str, list[_Shown], str]]:
    """Chapters: title, cases, and why there are none. No chapter where nobody looked for faces."""
    if settings.crop == "frame":
        return
    read = ledger.filter(pc.and_(pc.is_in(ledger["status"], value_set=pa.array(READ)), pc.greater(ledger["frames_decoded"], 0)))
    found = read.filter(pc.greater(read["frames_with_face"], 0))
    few = read.filter(pc.less(read["frames_with_face"], read["frames_decoded"]))
    many = found.filter(pc.greater(found["faces"], found["frames_with_face"]))
    chapters = (
        ("Fewest frames with a face", "none", WORST, _first(few, "frames_with_face", "frames_decoded"), "every frame has a face"),
        ("Most faces in a frame", "most", ODD, _first(many, "faces", "frames_with_face", largest=True), "no frame has two faces"),
        ("Smallest crops", "some", ODD, _first(found, "crop_side", None), "there is no crop"),
    )
    chosen: list[tuple[str, str, list[Case], str]] = []
    shown: set[str] = set()
    for title, wanted, most, rows, otherwise in chapters:
        cases = choose([row for row in rows if row["family_id"] not in shown], most)
        shown |= {case.row["family_id"] for case in cases}
        chosen.append((title, wanted, cases, "they are shown above" if rows else otherwise))
    known = index.filter(pc.is_in(index["family_id"], value_set=pa.array(sorted(shown), pa.string())))
    with Pictures(out, settings, known) as pictures:
        for title, wanted, cases, otherwise in chosen:
            yield title, [_shown(case, pictures, wanted) for case in cases], otherwise


def _first(rows: pa.Table, part: str, whole: str | None, *, largest: bool = False) -> list[dict[str, Any]]:
    """The thousand rows with the smallest (largest) part of the whole, in this order."""
    values = pc.cast(rows[part], pa.float64())
    values = pc.divide(values, pc.cast(rows[whole], pa.float64())) if whole else values
    order = [("value", "descending" if largest else "ascending"), ("video_id", "ascending")]
    return rows.append_column("value", values).sort_by(order).slice(0, 1000).to_pylist()


def _shown(case: Case, pictures: Pictures, wanted: str) -> _Shown:
    row = case.row
    facts = [f"{row['label'] or 'no label'}", f"{row['frames_with_face']} of {row['frames_decoded']} frames with a face"]
    facts[1] += f" ({percent(row['frames_with_face'], row['frames_decoded'])})"
    if row["faces"]:
        facts.append(f"{ratio(row['faces'], row['frames_with_face'])} faces in such a frame")
        facts.append(f"crops of {rounded(row['crop_side'])} px")
    facts.append(f"brightness {rounded(row['brightness'] if row['brightness'] is not None else np.nan)}")
    facts += [f"part {row['part']}"] * (row["part"] is not None) + [f"boxes of its {row['box_source']}"] * (row["box_source"] == "original")
    facts += [f"{case.relatives} more of its family like this"] * (case.relatives > 0)
    frames = pictures.of(row, wanted=wanted)
    return _Shown(row["video_id"], facts, short(frames) if isinstance(frames, str) else frames)
