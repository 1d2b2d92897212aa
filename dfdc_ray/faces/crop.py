"""From a face box to the picture that is stored: a square with margin, cut out, scaled down where it is large, encoded."""

import math
from typing import Literal

import cv2
import numpy as np

from dfdc_ray.faces.detect import Box

_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
_SMALL = [cv2.IMWRITE_JPEG_QUALITY, 80]
_FORMATS: dict[str, tuple[str, list[int]]] = {"jpeg": (".jpg", _JPEG), "png": (".png", []), "small": (".jpg", _SMALL)}

Rect = tuple[int, int, int, int]
"""x, y of the top left corner, width, height: whole pixels, inside the frame."""


def crop_rect(box: Box, width: int, height: int, *, margin: float) -> Rect:
    """The square around a box's centre, its side the longer side of the box plus `margin` (a share of that side) at both ends.

    width, height: of the frame, in pixels. Near an edge the square is shifted inwards; where it is larger than the frame it is clipped,
    and then no square. Raises ValueError for a box or frame without area and for a negative margin.
    """
    x, y, w, h = box
    if not all(map(math.isfinite, box)) or w <= 0 or h <= 0 or width <= 0 or height <= 0 or margin < 0:
        raise ValueError(f"no crop of box {box} with margin {margin} in a frame of {width}x{height}")
    side = max(1, round(max(w, h) * (1 + 2 * margin)))
    left, columns = _span(x + w / 2, side, width)
    top, rows = _span(y + h / 2, side, height)
    return left, top, columns, rows


def _span(centre: float, side: int, limit: int) -> tuple[int, int]:
    length = min(side, limit)
    return min(max(0, round(centre - length / 2)), limit - length), length


def cut(rgb: np.ndarray, rect: Rect, *, max_side: int) -> np.ndarray:
    """A copy of the rectangle (uint8 [rows, columns, 3]), averaged down to `max_side` pixels on its longer side, never up."""
    x, y, w, h = rect
    picture = rgb[y : y + h, x : x + w]
    if max(w, h) <= max_side:
        return picture.copy()
    scale = max_side / max(w, h)
    return cv2.resize(picture, (max(1, round(w * scale)), max(1, round(h * scale))), interpolation=cv2.INTER_AREA)


def encode(rgb: np.ndarray, fmt: Literal["jpeg", "png", "small"]) -> bytes:
    """The picture as a file's bytes: JPEG of quality 95 without chroma subsampling (4:4:4), PNG, or a small JPEG for a page to show."""
    suffix, options = _FORMATS[fmt]
    done, data = cv2.imencode(suffix, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise ValueError(f"OpenCV cannot encode a {rgb.dtype} array {rgb.shape} as {fmt}")
    return data.tobytes()


def decode(picture: bytes) -> np.ndarray:
    """The inverse of `encode`: uint8 [rows, columns, 3], RGB. Raises ValueError for what is no picture.

    OpenCV's decoder: torchvision's gives the same pixels as fast, and is deprecated.
    """
    try:
        rgb = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:
        raise ValueError("not a picture") from error
    if rgb is None:
        raise ValueError("not a picture")
    return rgb
