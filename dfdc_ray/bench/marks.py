"""Faces marked by eye, and how the faces that a detector found are judged by them.

In each frame the faces, best score first, each take the mark with which they overlap most among those still free, if IoU (intersection
over union) is at least 0.5. Of the rest, a face is a `repeat` when it overlaps a taken mark as much, `ignored` when its centre lies where
nothing is judged, and else false: a box beside or around a face as well as one on a toy. Those of IoU < 0.1 to all marks are `on no face`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from dfdc_ray import storage
from dfdc_ray.errors import UserError
from dfdc_ray.faces.detect import Box, Face

MATCH = 0.5  # IoU from which a box is a marked face's
NO_FACE = 0.1  # IoU below which it has nothing to do with one


@dataclass(frozen=True)
class Marked:
    """A frame with its faces marked by eye, and regions that are not judged."""

    video: str
    frame: int
    width: int
    height: int
    boxes: tuple[Box, ...]
    ignore: tuple[Box, ...]


@dataclass(frozen=True)
class Verdict:
    """The faces found in one frame, judged."""

    overlaps: tuple[float, ...]  # IoU of each matched pair
    missed: tuple[Box, ...]  # marks that nothing matched
    false: tuple[tuple[Face, float], ...]  # with the largest IoU to any mark
    repeats: int
    ignored: int


def read_marks(uri: str) -> list[Marked]:
    """The marks file, sorted by video and frame. UserError if it is not what tests/data/boxes.json shows."""
    try:
        frames = json.loads(storage.read_bytes(uri))["frames"]
        marked = [Marked(**f | {key: tuple((*map(float, b),) for b in f[key]) for key in ("boxes", "ignore")}) for f in frames]
    except FileNotFoundError:
        raise UserError(f"There is no file of marked boxes {uri}.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{uri} is no file of marked boxes ({type(error).__name__}: {error}); tests/data/boxes.json is one.") from None
    for m in marked:
        for box in (*m.boxes, *m.ignore):
            if len(box) != 4 or min(box) < 0 or not 0 < box[2] <= m.width - box[0] or not 0 < box[3] <= m.height - box[1]:
                raise UserError(f"{uri}: {m.video} frame {m.frame}: {list(box)} is no box [x, y, w, h] inside {m.width}x{m.height}.")
    keys = {(m.video, m.frame) for m in marked}
    if not keys or len(keys) < len(marked) or min(frame for _, frame in keys) < 0:
        raise UserError(f"{uri}: {'a frame is listed twice, or below 0' if keys else 'there are no frames in it'}.")
    return sorted(marked, key=lambda m: (m.video, m.frame))


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, 0..1."""
    (ax, ay, aw, ah), (bx, by, bw, bh) = a, b
    overlap = max(0.0, min(ax + aw, bx + bw) - max(ax, bx)) * max(0.0, min(ay + ah, by + bh) - max(ay, by))
    return float(overlap / (aw * ah + bw * bh - overlap))


def judge(faces: Sequence[Face], marks: Sequence[Box], ignore: Sequence[Box]) -> Verdict:
    """The faces of one frame, best score first, against its marks."""
    free = list(range(len(marks)))
    overlaps: list[float] = []
    false: list[tuple[Face, float]] = []
    repeats = ignored = 0
    for face in faces:
        with_marks = [iou(face.box, mark) for mark in marks]
        best = max(free, key=lambda i: with_marks[i], default=None)
        nearest = max(with_marks, default=0.0)
        if best is not None and with_marks[best] >= MATCH:
            free.remove(best)
            overlaps.append(with_marks[best])
        elif nearest >= MATCH:
            repeats += 1
        elif any(_holds_centre(region, face.box) for region in ignore):
            ignored += 1
        else:
            false.append((face, nearest))
    return Verdict(tuple(overlaps), tuple(marks[i] for i in free), tuple(false), repeats, ignored)


def _holds_centre(region: Box, box: Box) -> bool:
    x, y = box[0] + box[2] / 2, box[1] + box[3] / 2
    return region[0] <= x <= region[0] + region[2] and region[1] <= y <= region[1] + region[3]
