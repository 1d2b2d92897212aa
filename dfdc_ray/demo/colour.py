"""Colour that moves: a lamp whose colour drifts, and fakes whose face has patches of colour that come and go.

A swap paints each frame anew, and its colours wander by patches (the founding report saw such "splotches"). Nothing else is changed, and
every video is under a lamp whose colour drifts as well, so that moving colour alone tells nothing: colour that moves in places does.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from dfdc_ray.demo.identity import CENTRE, INNER, Image, smooth_noise
from dfdc_ray.demo.scene import FPS, HEIGHT, WIDTH, Scene

_LAMP = 0.06  # of red, and as much less of blue, by which the lamp's colour drifts
_PATCH = 0.07  # the same of the patches: standard deviation over the face
_PATCHES = 3  # patterns that come and go, each at its own pace
_GRAIN = 64  # pixels a side of a pattern before it is stretched over the head


def under_a_lamp(frames: Sequence[Image], rng: np.random.Generator) -> list[Image]:
    """The frames (uint8 RGB [HEIGHT, WIDTH, 3]) under a lamp whose colour drifts between warm and cold."""
    warmth = _LAMP * _wander(rng, len(frames), (0.3, 1.2))
    gains = np.column_stack((1 + warmth, np.ones(len(frames)), 1 - warmth))
    return [np.clip(frame * gain + 0.5, 0, 255).astype(np.uint8) for frame, gain in zip(frames, gains.astype(np.float32), strict=True)]


def splotched(frames: Sequence[Image], scene: Scene, rng: np.random.Generator) -> list[Image]:
    """The frames with patches of red and blue that come and go on the inner face, within half a second or so; same number and size."""
    patterns = [smooth_noise(rng, (_GRAIN, _GRAIN), 7, 7) for _ in range(_PATCHES)]
    pace = [_wander(rng, len(frames), (0.8, 2.5)) for _ in range(_PATCHES)]
    i = scene.identity
    half = np.array((INNER[0] * i.half_width, INNER[1] * i.half_height))
    grid = (np.mgrid[:_GRAIN, :_GRAIN].astype(np.float32) - _GRAIN / 2) / (_GRAIN / 2)
    inside = np.clip(3 * (1 - np.hypot(*grid)), 0, 1)  # soft at its edge
    onto_head = np.array(((2 * half[0] / _GRAIN, 0, CENTRE[0] - half[0]), (0, 2 * half[1] / _GRAIN, CENTRE[1] - half[1]), (0, 0, 1)))
    found = []
    for n, frame in enumerate(frames):
        patch = inside * sum(weight[n] * pattern for weight, pattern in zip(pace, patterns, strict=True)) / np.sqrt(_PATCHES)
        laid = cv2.warpAffine(_PATCH * patch.astype(np.float32), scene.matrices[n] @ onto_head, (WIDTH, HEIGHT))
        gain = np.dstack((1 + laid, np.ones_like(laid), 1 - laid))
        found.append(np.clip(frame * gain + 0.5, 0, 255).astype(np.uint8))
    return found


def _wander(rng: np.random.Generator, frames: int, rates_hz: tuple[float, float]) -> npt.NDArray[np.float64]:
    """Float64 [frames], of deviation 1 or so."""
    rates, phases = rng.uniform(*rates_hz, 3), rng.uniform(0, 2 * np.pi, 3)
    return np.sin(2 * np.pi * rates[:, None] * np.arange(frames) / FPS + phases[:, None]).sum(0) / np.sqrt(1.5)
