"""The tables of the coverage report: the ledger counted by what its videos have in common. Every share has its denominator beside it."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dfdc_ray.pages import Cell, Section, Share, Table, percent
from dfdc_ray.preprocess.receipts import READ
from dfdc_ray.preprocess.settings import Settings

_GROUPS = 60  # rows of a table; the rest is one more
_KINDS = 30  # of errors
_COLOURS = {"REAL": "real", "FAKE": "fake"}
_LABELS: dict[str | None, str] = {"REAL": "real", "FAKE": "fake", None: "no label"}
_MEANINGS = {
    "ok": "faces were found",
    "no_face": "read to its end, without a face in any sampled frame",
    "error": "could not be read; --retry error does it again",
    "missing": "listed in the metadata, but there is no file",
    "poison": "its process crashed or took too long, twice",
}
_ORIGINS = (
    "taken from its original",
    "found on the video itself: it is no fake",
    "found on the fake itself: not aligned with its original",
    "found on the fake itself: no original, or one without a face",
    "looked for on the video itself: none",
    "not read",
)
_CROPS = (0, 48, 64, 96, 128, 192, 256, 320, 480, 640)  # pixels, lower ends
_GREYS = tuple(range(0, 256, 16))  # lower ends
_DARK = 48  # of 255


class Videos:
    """The ledger's columns, [N] each. Videos that were not read to their end have no frames here, and nan where something is unknown."""

    def __init__(self, ledger: pa.Table, settings: Settings) -> None:
        self.n = ledger.num_rows
        self.whole = settings.crop == "frame"  # nobody looked for faces
        names = ("corpus", "video_id", "family_id", "label", "method", "part", "status", "stage", "error", "box_source", "alignment")
        self.words: dict[str, list[Any]] = {name: ledger[name].to_pylist() for name in names}
        self.read = np.array([status in READ for status in self.words["status"]], bool)
        self.frames, self.found, self.faces = (
            np.where(self.read, _numbers(ledger, name), 0).astype(np.int64) for name in ("frames_decoded", "frames_with_face", "faces")
        )
        self.crop, self.brightness, self.face_brightness = (
            _numbers(ledger, name) for name in ("crop_side", "brightness", "face_brightness")
        )

    def by(self, key: Callable[[int], Any]) -> dict[Any, np.ndarray]:
        """Positions of the videos by `key` of their position, keys in order, None last."""
        groups: dict[Any, list[int]] = {}
        for i in range(self.n):
            groups.setdefault(key(i), []).append(i)
        return {k: np.array(groups[k]) for k in sorted(groups, key=lambda k: (k is None, k))}


def _numbers(ledger: pa.Table, name: str) -> np.ndarray:
    return ledger[name].cast(pa.float64()).to_numpy()


@dataclass(frozen=True)
class Group:
    """Some of the videos, counted. Frames are those that were looked at; quantiles are nan where no video says anything."""

    videos: int
    unread: int
    with_face: int
    frames: int
    found: int  # frames with a face
    faces: int
    crop: tuple[float, float, float]  # 10th, 50th and 90th percentile of the videos' median crop, pixels
    brightness: float  # median of the videos, 0..255
    face_brightness: float

    @staticmethod
    def of(videos: Videos, some: np.ndarray) -> "Group":
        """some: their positions."""
        low, middle, high = _quantiles(videos.crop[some], (10, 50, 90))
        return Group(
            videos=len(some),
            unread=int((~videos.read[some]).sum()),
            with_face=int((videos.found[some] > 0).sum()),
            frames=int(videos.frames[some].sum()),
            found=int(videos.found[some].sum()),
            faces=int(videos.faces[some].sum()),
            crop=(low, middle, high),
            brightness=_quantiles(videos.brightness[some], (50,))[0],
            face_brightness=_quantiles(videos.face_brightness[some], (50,))[0],
        )


def _quantiles(values: np.ndarray, percentiles: Sequence[float]) -> list[float]:
    known = values[~np.isnan(values)]
    return np.percentile(known, percentiles).tolist() if len(known) else [float("nan")] * len(percentiles)


def tables(settings: Settings, videos: Videos) -> Iterator[Section]:
    """How the videos ended, by what they have in common, and the distributions."""
    words = videos.words
    ended = list(zip(words["status"], words["label"], strict=True))
    rows: list[list[Cell]] = []
    for status, meaning in _MEANINGS.items():
        counts = [ended.count((status, label)) for label in _LABELS]
        rows.append([status, Share(sum(counts), videos.n), *(f"{count:,}" for count in counts), meaning])
    yield Section("How the videos ended", [Table(["status", "videos", *_LABELS.values(), "what it means"], rows, texts=[5])])
    several = len(set(words["corpus"])) > 1
    if several:
        yield _grouped("By corpus", videos, lambda i: words["corpus"][i], str)
    labels = list(_LABELS)
    yield _grouped("By label", videos, lambda i: labels.index(words["label"][i]), lambda key: _LABELS[labels[key]])
    if any(part is not None for part in words["part"]):
        names = words["corpus"] if several else [""] * videos.n
        keys = [None if part is None else (name, part) for name, part in zip(names, words["part"], strict=True)]
        yield _grouped("By part", videos, keys.__getitem__, lambda key: f"{key[0]} {key[1]}".strip() if key else "no part")
    if any(method is not None for method in words["method"]):
        methods = [m or ("not known" if label == "FAKE" else None) for m, label in zip(words["method"], words["label"], strict=True)]
        yield _grouped("By method", videos, methods.__getitem__, lambda key: key or "no fake")
    if videos.whole:
        return
    title = f"By detector: where the boxes of {settings.detector} came from"
    yield _grouped(title, videos, lambda i: _origin(videos, i), _ORIGINS.__getitem__)
    yield from _distributions(videos)


def _origin(videos: Videos, i: int) -> int:
    """Which of _ORIGINS is that of a video's boxes."""
    words = videos.words
    if not videos.read[i]:
        return 5
    if words["box_source"][i] is None:
        return 4
    if words["box_source"][i] == "original":
        return 0
    if words["label"][i] != "FAKE":
        return 1
    return 3 if words["alignment"][i] is None else 2


def _grouped(title: str, videos: Videos, key: Callable[[int], Any], shown: Callable[[Any], str]) -> Section:
    groups = videos.by(key)
    kept = sorted(groups, key=lambda k: -len(groups[k]))[:_GROUPS]
    rows = [_row(shown(k), Group.of(videos, some), videos.whole) for k, some in groups.items() if k in kept]
    if others := [some for k, some in groups.items() if k not in kept]:
        rows.append(_row(f"{len(others)} others, the smallest", Group.of(videos, np.concatenate(others)), videos.whole))
    header = ["", "videos", "with a face", "frames looked at", "with a face", "faces per frame"]
    header += ["crops, px: 10, 50, 90 %", "grey level", "of the faces", "videos not read"]
    if videos.whole:
        header = ["", "videos", "grey level", "videos not read"]
    return Section(title, [Table(header, rows, names=[0])])


def _row(name: str, g: Group, whole: bool) -> list[Cell]:
    brightness, unread = rounded(g.brightness), f"{g.unread:,} ({percent(g.unread, g.videos)})" if g.unread else "0"
    if whole:
        return [name, f"{g.videos:,}", brightness, unread]
    faces: list[Cell] = [Share(g.with_face, g.videos, cls="good"), f"{g.frames:,}", Share(g.found, g.frames, cls="good", count=False)]
    crops = ", ".join(map(rounded, g.crop)) if g.with_face else "-"
    faces += [ratio(g.faces, g.frames), crops, brightness, rounded(g.face_brightness)]
    return [name, f"{g.videos:,}", *faces, unread]


def rounded(value: float) -> str:
    """To a whole number; `-` for nan."""
    return "-" if np.isnan(value) else f"{value:.0f}"


def ratio(part: int, whole: int) -> str:
    """With two decimals; `-` without a whole."""
    return f"{part / whole:.2f}" if whole else "-"


def _distributions(videos: Videos) -> Iterator[Section]:
    looked = videos.frames > 0
    shares = np.where(looked, videos.found / np.maximum(videos.frames, 1), np.nan)
    bins = [("none", shares == 0), ("under half", (shares > 0) & (shares < 0.5)), ("half to nine tenths", (shares >= 0.5) & (shares < 0.9))]
    bins += [("nine tenths or more", (shares >= 0.9) & (shares < 1)), ("all", shares == 1)]
    note = "Of the videos that were read. Where real and fake differ, the loss itself tells them apart."
    yield Section("How many of a video's frames have a face", [note, _by_label("frames with a face", videos, bins, looked)])
    note = "Median of a video's crops, longer side in pixels of the frame, margin included."
    yield Section("Size of the crops", [note, _by_label("pixels", videos, _bins(videos.crop, _CROPS), ~np.isnan(videos.crop))])
    dark, light = (looked & (videos.brightness < _DARK)), (looked & (videos.brightness >= _DARK))
    sides = [
        f"{name}: {percent(int(videos.found[some].sum()), int(videos.frames[some].sum()))} of {videos.frames[some].sum():,} frames "
        f"have a face (videos: {some.sum():,})"
        for some, name in ((dark, f"Darker than {_DARK} of 255"), (light, "lighter"))
        if some.any()
    ]
    rows: list[list[Cell]] = []
    for name, inside in _bins(videos.brightness, _GREYS):
        some = inside & looked
        frames, found = int(videos.frames[some].sum()), int(videos.found[some].sum())
        lost = int((some & (videos.found == 0)).sum())
        videos_here = Share(int(some.sum()), int(looked.sum()))
        rows.append([name, videos_here, f"{frames:,}", Share(found, frames, cls="good", count=False), f"{lost:,}"])
    note = "; ".join(sides) + (". " if sides else "") + "By the mean grey level of a video's frames, 0 to 255."
    table = Table(["grey level", "videos", "frames looked at", "with a face", "videos without any"], rows)
    yield Section("Do dark videos lose faces?", [note, table])


def _bins(values: np.ndarray, lower: Sequence[int]) -> list[tuple[str, np.ndarray]]:
    """Name and members of each bin, from the first that has any to the last; the very last is open."""
    ends = [*lower[1:], None]
    bins = [
        (f"{low} to {high - 1}" if high else f"{low} and more", (values >= low) & (values < (high or np.inf)))
        for low, high in zip(lower, ends, strict=True)
    ]
    filled = [i for i, (_, inside) in enumerate(bins) if inside.any()] or [0]
    return bins[filled[0] : filled[-1] + 1]


def _by_label(what: str, videos: Videos, bins: list[tuple[str, np.ndarray]], among: np.ndarray) -> Table:
    """A histogram for each label that there is, as a share of its videos among these."""
    labels = np.array([label or "" for label in videos.words["label"]], object)
    members = {label: among & (labels == (label or "")) for label in _LABELS}
    members = {label: some for label, some in members.items() if some.any()}
    rows: list[list[Cell]] = []
    for name, inside in bins:
        counts = ((int((inside & some).sum()), int(some.sum()), _COLOURS.get(label or "", "")) for label, some in members.items())
        rows.append([name, *(Share(part, whole, cls=colour) for part, whole, colour in counts)])
    return Table([what, *(f"{_LABELS[label]}: videos of {some.sum():,}" for label, some in members.items())], rows)


def errors(videos: Videos, index: pa.Table) -> Section:
    """What could not be read, by kind of message; the index says where the videos are, which is no part of a kind."""
    title, words = "What could not be read, and why", videos.words
    bad = np.flatnonzero(~videos.read)
    if not len(bad):
        return Section(title, ["Nothing: every video was read."])
    unread = index.filter(pc.is_in(index["video_id"], value_set=pa.array([words["video_id"][i] for i in bad], pa.string())))
    uris = dict(zip(unread["video_id"].to_pylist(), unread["uri"].to_pylist(), strict=True))
    kinds: dict[tuple[str, str, str], list[int]] = {}
    for i in bad:
        kind = kind_of(words["error"][i] or "", uris.get(words["video_id"][i]))
        kinds.setdefault((words["status"][i], words["stage"][i] or "", kind), []).append(int(i))
    ordered = sorted(kinds.items(), key=lambda item: (-len(item[1]), item[0]))
    rows: list[list[Cell]] = []
    for (status, stage, kind), members in ordered[:_KINDS]:
        examples = [(words["video_id"][members[0]], short(words["error"][members[0]] or ""))]
        examples += [(words["video_id"][i], "") for i in members[1:3]]
        rows.append([short(kind), status, stage, Share(len(members), videos.n), examples])
    note = "Messages that differ in numbers and names only are one kind; the examples begin with a whole message."
    body: list[str | Table] = [note, Table(["kind of message", "status", "stage", "videos", "examples"], rows, names=[0], texts=[4])]
    if len(ordered) > _KINDS:
        rest = sum(len(members) for _, members in ordered[_KINDS:])
        body.append(f"And {len(ordered) - _KINDS} rarer kinds, {rest:,} videos: ledger.parquet names each.")
    return Section(title, body)


def kind_of(message: str, uri: str | None) -> str:
    """The message without what differs from video to video: places, what is quoted, numbers."""
    if uri:
        message = message.replace(uri, "…")
    message = re.sub(r"b?'[^']*'|b?\"[^\"]*\"", "…", message)
    message = re.sub(r"(s3:/)?(?<!\w)/[^\s:,;]+", "…", message)
    return re.sub(r"(?<![A-Za-z])\d+(\.\d+)?", "#", message)  # not that of mp4


def short(message: str) -> str:
    """Its beginning, where it is long."""
    return message if len(message) <= 300 else message[:300] + " ..."
