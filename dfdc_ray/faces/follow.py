"""Faces through one video at less than the full price: a look at a smaller size where all known faces are large enough for it.

A frame is looked at in full (the detector's own long side) when no face is known, every 2.5 seconds of video, and whenever a smaller look
finds another number of faces than there were: so a smaller look loses no face and adds no false one, and someone who comes in is seen
within 2.5 s.
What this saves and what it does to the boxes: docs/benchmarks.md, "Box quality".
"""

from collections.abc import Sequence

import numpy as np

from dfdc_ray.config import DetectorName
from dfdc_ray.faces.detect import Detector, Face

# Long sides in pixels, ascending, that are tried below a detector's own.
SMALLER_SIDES: dict[DetectorName, tuple[int, ...]] = {"centerface": (320, 480)}
_SMALLEST_FACE = 16.0  # pixels of width in the scaled frame; CenterFace's limit is about 13 for dark frames and profiles
_FULL_LOOK_S = 2.5


class Follower:
    """One detector on the frames of one video, which must come in the order of time."""

    def __init__(self, detector: Detector, smaller_sides: Sequence[int]) -> None:
        """smaller_sides: long sides in pixels, ascending; empty: every look is a full one."""
        self.detector, self.smaller_sides = detector, smaller_sides
        self._known: list[Face] = []
        self._last_full = float("-inf")

    def detect(self, rgb: np.ndarray, time_s: float) -> list[Face]:
        """Like Detector.detect. time_s: when the frame is shown, in seconds, ascending from call to call."""
        side = self._side(max(rgb.shape[:2]))
        faces = self.detector.detect(rgb, long_side=side) if side and time_s - self._last_full < _FULL_LOOK_S else None
        if faces is None or len(faces) != len(self._known):
            faces = self.detector.detect(rgb)
            self._last_full = time_s
        self._known = faces
        return faces

    def _side(self, long_side: int) -> int | None:
        """The smallest long side at which every known face is large enough; None: there is no such, or no face is known."""
        width = min((face.box[2] for face in self._known), default=0.0)
        return next((side for side in self.smaller_sides if side < long_side and width * side / long_side >= _SMALLEST_FACE), None)
