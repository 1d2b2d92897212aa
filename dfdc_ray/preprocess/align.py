"""Is a fake frame-aligned with its original, so that the original's boxes hold for it? Answered from small grey pictures.

Two questions, both about what lies outside the face (which the fake is free to change):
scene: do the pictures at the same frame index correlate; motion: does what moves around the head move at the same time.
The second catches a fake that starts some frames late: its background still fits, its head does not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from dfdc_ray.faces.detect import Box

THUMBNAIL_SIDE = 160
# Chosen between what pairs show: docs/benchmarks.md, "Alignment check".
MIN_SCENE = 0.95
MIN_MOTION = 0.90
_MOTION_FLOOR = 3.0  # grey levels (RMS); below this nothing moves and motion says nothing


@dataclass(frozen=True)
class Alignment:
    """Correlations in -1..1; `motion` is None where nothing moves."""

    scene: float
    motion: float | None

    @property
    def holds(self) -> bool:
        """Whether boxes may be taken over."""
        return self.scene >= MIN_SCENE and (self.motion is None or self.motion >= MIN_MOTION)


def thumbnail(rgb: np.ndarray) -> np.ndarray:
    """Grey uint8 picture whose longer side is THUMBNAIL_SIDE pixels."""
    height, width = rgb.shape[:2]
    scale = THUMBNAIL_SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.cvtColor(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)


def check(
    original: Mapping[int, np.ndarray], fake: Mapping[int, np.ndarray], boxes: Mapping[int, Sequence[Box]], *, width: int, height: int
) -> Alignment:
    """Compare thumbnails at the frames that both have.

    original, fake: frame -> grey uint8 [h,w] (the fake's are scaled to the original's size where they differ);
    boxes: frame -> the original's face boxes in pixels of its width x height frame.
    """
    frames = sorted(set(original) & set(fake))
    if not frames:
        return Alignment(scene=0.0, motion=None)
    h, w = original[frames[0]].shape
    a = np.stack([original[f] for f in frames]).astype(np.float32)
    b = np.stack([_fit(fake[f], w, h) for f in frames]).astype(np.float32)
    face = np.zeros(a.shape, dtype=bool)
    near = np.zeros(a.shape, dtype=bool)
    for i, frame in enumerate(frames):
        for box in boxes.get(frame, ()):
            scaled = (box[0] * w / width, box[1] * h / height, box[2] * w / width, box[3] * h / height)
            _fill(face[i], scaled, grow=0.1)
            _fill(near[i], scaled, grow=0.75)
    near &= ~face
    scene = float(np.median([_correlation(x[~m], y[~m]) for x, y, m in zip(a, b, face, strict=True)]))
    moving_a, moving_b = a - a.mean(axis=0), b - b.mean(axis=0)
    if near.sum() < 50 or np.sqrt((moving_a[near] ** 2).mean()) < _MOTION_FLOOR:
        return Alignment(scene=scene, motion=None)
    return Alignment(scene=scene, motion=_correlation(moving_a[near], moving_b[near]))


def _fit(grey: np.ndarray, width: int, height: int) -> np.ndarray:
    return grey if grey.shape == (height, width) else cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA)


def _fill(mask: np.ndarray, box: Box, *, grow: float) -> None:
    x, y, w, h = box
    left, top = max(0, int(x - grow * w)), max(0, int(y - grow * h))
    mask[top : max(0, int(np.ceil(y + h * (1 + grow)))), left : max(0, int(np.ceil(x + w * (1 + grow))))] = True


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's; 0 where either is constant or empty."""
    if x.size < 2:
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / scale if scale > 0 else 0.0
