"""The videos of an output that a person should look at: which they are, and three frames of each with the boxes that were found.

Frames are decoded again, by the process of supervise.py, so that a video that is bad now harms nobody. What cannot be had is said instead.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import pyarrow as pa
import pyarrow.parquet as pq

from dfdc_ray import storage
from dfdc_ray.faces.crop import decode, encode
from dfdc_ray.preprocess import receipts as rc
from dfdc_ray.preprocess.plan import Unit, Video
from dfdc_ray.preprocess.settings import Settings
from dfdc_ray.preprocess.supervise import Worker

FRAMES = 3  # shown of each video
_MAX_SIDE = 384  # pixels of the longer side, about 15 kB each
_TIMEOUT_S = 30.0  # for a video
_ALL_S = 120.0  # for all of them; those that are left have no pictures
_MEMORY = 4 << 30  # bytes
_MOST_FRAMES = 128  # that are decoded again to choose from
_BOX = (255, 208, 0)  # RGB


@dataclass(frozen=True)
class Case:
    """A video to look at: its ledger row, and how many more of its family would have been chosen."""

    row: dict[str, Any]
    relatives: int


@dataclass(frozen=True)
class Frame:
    """A picture for the page. faces: boxes drawn, those that the run found; None where it did not look at this frame."""

    time_s: float
    faces: int | None
    jpeg: bytes


def choose(rows: Sequence[dict[str, Any]], most: int) -> list[Case]:
    """The first of each family among rows that are in order, worst first: fakes look like their original."""
    families: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        families.setdefault(row["family_id"], []).append(row)
    return [Case(family[0], len(family) - 1) for family in list(families.values())[:most]]


class Pictures:
    """Takes the pictures, from the videos of `index` and the shards of OUT. Use as a context manager."""

    def __init__(self, out: str, settings: Settings, index: pa.Table) -> None:
        self.output = rc.Receipts(out, settings)
        # Where the run's own frames can be decoded again, they are; else a few others.
        self.same = settings.sampling in ("spread", "centre") and settings.frames <= _MOST_FRAMES
        options: dict[str, Any] = {} if self.same else {"sampling": "spread", "frames": FRAMES, "clips": None, "stride": None}
        whole = replace(settings, crop="frame", real_multiplier=1, detector=None, max_side=_MAX_SIDE, image_format="jpeg", **options)
        self.worker = Worker(whole, timeout_s=_TIMEOUT_S, memory_bytes=_MEMORY)
        self.videos = {row["video_id"]: Video(**row) for row in index.select(list(Video.__dataclass_fields__)).to_pylist()}
        self.deadline = time.monotonic() + _ALL_S

    def __enter__(self) -> "Pictures":
        return self

    def __exit__(self, *_: object) -> None:
        self.worker.stop()

    def of(self, row: dict[str, Any], *, wanted: str) -> list[Frame] | str:
        """Three frames of the video of a ledger row, or why there are none.

        wanted: "none" for frames in which no face was found, "most" for those with the most faces, "some" for any with a face.
        """
        if time.monotonic() > self.deadline:
            return f"pictures may take {_ALL_S:g} s in all, and those were over"
        try:
            return self._frames(row, wanted)
        except Exception as error:  # a report is no reason to fail: whatever it is, it is shown
            return f"{type(error).__name__}: {error}"

    def _frames(self, row: dict[str, Any], wanted: str) -> list[Frame] | str:
        video = self.videos.get(row["video_id"])
        if video is None or video.uri is None:
            return "its file is not known here"
        boxes = self._boxes(row)
        guide = None
        original = self.videos.get(video.family_id)
        if self.same and original is not None and original is not video and original.uri is not None:
            guide = self.worker.process(original, None).guide  # whose frames the fake's are
        result = self.worker.process(video, guide)
        if not result.faces:
            return f"{result.ledger['status']} in stage {result.ledger['stage']}: {result.ledger['error']}"
        frames = {r["frame"]: r for r in result.faces}
        same = self.same and boxes.keys() <= frames.keys()
        numbers = pick({frame: len(boxes.get(frame, ())) for frame in frames}, wanted)
        return [
            Frame(
                frames[n]["time_s"],
                len(boxes.get(n, ())) if same else None,
                _drawn(frames[n]["image"]["bytes"], boxes.get(n, []), frames[n]["frame_width"]),
            )
            for n in numbers
        ]

    def _boxes(self, row: dict[str, Any]) -> dict[int, list[list[float]]]:
        """By frame: x y w h of each face that the shards have of the video's core frames."""
        receipt = self.output.find(Unit(row["unit_id"], row["family_id"], ()), row["generation"])
        if receipt is None or receipt.faces is None:
            return {}
        with storage.open_input(storage.join(self.output.out, receipt.faces["path"])) as file:
            ours = [("video_id", "==", row["video_id"]), ("core", "==", True)]
            found = pq.read_table(file, columns=["frame", "box"], filters=ours)
        boxes: dict[int, list[list[float]]] = {}
        for face in found.to_pylist():
            boxes.setdefault(face["frame"], []).append(face["box"])
        return boxes


def pick(faces: dict[int, int], wanted: str) -> list[int]:
    """At most FRAMES frames of those with this many faces each: the wanted ones, evenly spread, and others only where they are too few."""
    largest = max(faces.values())
    good = {
        "none": lambda count: count == 0,
        "most": lambda count: count == largest,
        "some": lambda count: count > 0,
    }[wanted]
    first = [frame for frame, count in sorted(faces.items()) if good(count)]
    others = [frame for frame in sorted(faces) if frame not in first]
    return sorted([*_spread(first, FRAMES), *_spread(others, FRAMES - min(len(first), FRAMES))])


def _spread(items: list[int], most: int) -> Iterator[int]:
    count = min(most, len(items))
    return (items[int((i + 0.5) * len(items) / count)] for i in range(count))


def _drawn(jpeg: bytes, boxes: list[list[float]], frame_width: int) -> bytes:
    """The picture of a frame with the boxes, x y w h in pixels of the frame, as JPEG."""
    rgb = decode(jpeg)
    scale = rgb.shape[1] / frame_width
    for x, y, w, h in boxes:
        rectangle = tuple(round(value * scale) for value in (x, y, w, h))
        cv2.rectangle(rgb, rectangle, (0, 0, 0), 4)
        cv2.rectangle(rgb, rectangle, _BOX, 2)
    return encode(rgb, "small")
