"""Face detectors behind one small protocol. The networks are DeepFace's, held loaded; frames are scaled down, boxes scaled back.

Which detector is the default, and why, is measured by `dfdc-ray bench detectors` (docs/benchmarks.md).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, get_args

import cv2
import numpy as np

from dfdc_ray.config import DetectorName
from dfdc_ray.errors import UserError
from dfdc_ray.faces.weights import stage_weights

Box = tuple[float, float, float, float]
"""x, y of the top left corner, width, height: pixels of the frame."""

# By detector: smallest score that counts, and long side in pixels that frames are scaled down to (0: left as they are).
DEFAULTS: dict[DetectorName, tuple[float, int]] = {
    "centerface": (0.5, 640),
    "ssd": (0.5, 480),
    "ssd-stock": (0.9, 0),
    "opencv": (0.0, 640),
}
_SSD_MEAN_BGR = (104.0, 177.0, 123.0)  # what res10_300x300_ssd was trained with (opencv/samples/dnn/face_detector)
_SMALLEST_SIDE = 33  # pixels after scaling: CenterFace finds faces in a blank 32x32, and the SSD's pooling layers refuse less than 8
_NETWORKS_HELD = 3  # 20 to 100 MB each: the three sizes of look (follow.py) at frames of one shape; another shape loads anew, 0.1 s


@dataclass(frozen=True)
class Face:
    """One face in one frame.

    score: 0..1 for the networks; the level weight (above 0, unbounded) of the Haar cascade.
    landmarks: x, y of right eye, left eye, nose, right and left corner of the mouth, in pixels of the frame. Right and left are the
    person's own: in a frontal face the right eye has the smaller x. None where the detector does not give all five.
    """

    box: Box
    score: float
    landmarks: tuple[float, ...] | None = None


class Detector(Protocol):
    """Finds faces in one frame at a time. The same frame gives the same faces, whatever came before."""

    name: DetectorName
    threshold: float
    long_side: int

    def detect(self, rgb: np.ndarray, *, long_side: int | None = None) -> list[Face]:
        """Faces of a frame (uint8 [height, width, 3], RGB), best score first, boxes clipped to the frame. ValueError for anything else.

        long_side: scale this frame down further than to the detector's own long side.
        """
        ...


def resolve(name: str, *, threshold: float | None = None, long_side: int | None = None) -> tuple[float, int]:
    """Threshold and long side that `load_detector` uses, defaults filled in. Raises UserError for what a detector cannot do."""
    if name not in get_args(DetectorName):
        raise UserError(f"There is no face detector {name!r}: choose one of {', '.join(get_args(DetectorName))}.")
    default = DEFAULTS[name]  # type: ignore[index]
    resolved = (default[0] if threshold is None else float(threshold), default[1] if long_side is None else int(long_side))
    if name == "ssd-stock":
        if resolved != default:
            raise UserError("ssd-stock is DeepFace's own way, untouched: it takes neither a threshold nor a long side. Use ssd.")
    elif name != "opencv" and not 0.05 <= resolved[0] <= 1:
        raise UserError(f"Detector threshold {threshold}: {name} takes 0.05 to 1.")
    elif not 64 <= resolved[1] <= 4096:
        raise UserError(f"Detector long side {long_side}: 64 to 4096 pixels.")
    return resolved


def load_detector(name: str, *, threshold: float | None = None, long_side: int | None = None) -> Detector:
    """A detector ready for use, its weights staged and checked. OpenCV is set to one thread: processes are what runs in parallel.

    threshold: smallest score that counts as a face.
    long_side: frames are scaled down to this long side in pixels (never up).
    Raises UserError for unknown names, values out of range, and weights that cannot be staged.
    """
    threshold, long_side = resolve(name, threshold=threshold, long_side=long_side)
    cv2.setNumThreads(1)
    stage_weights()  # or DeepFace would download them
    if name == "centerface":
        return _CenterFace(threshold, long_side)
    if name == "ssd":
        return _Ssd(threshold, long_side)
    if name == "opencv":
        return _Haar(threshold, long_side)
    return _SsdStock(threshold, long_side)


class _CenterFace:
    """CenterFace (Xu et al. 2019, arXiv:1911.03599) with DeepFace's weights, preprocessing and decoding.

    DeepFace loads the network anew for every frame, because a second frame came out wrong. That happens when the size of the input changes
    and OpenCV's layer fusion is on (its default; off, results stay right). So one network is held for each size of input, with fusion;
    tests compare it with DeepFace's fresh one.
    """

    name: DetectorName = "centerface"

    def __init__(self, threshold: float, long_side: int) -> None:
        self.threshold, self.long_side = threshold, long_side
        client = _client("centerface")
        self._network = lru_cache(_NETWORKS_HELD)(lambda rows, columns: client.build_model())

    def detect(self, rgb: np.ndarray, *, long_side: int | None = None) -> list[Face]:
        bgr, scale = _shrink(rgb, long_side or self.long_side)
        height, width = bgr.shape[:2]
        if min(height, width) < _SMALLEST_SIDE:
            return []
        network = self._network(-(-height // 32), -(-width // 32))  # its input is the frame stretched to multiples of 32
        with np.errstate(over="ignore"):  # exp of a size: infinite boxes are dropped below
            boxes, points = network.forward(bgr, height, width, threshold=self.threshold)
        both = zip(boxes.tolist(), points.tolist(), strict=True)
        return _faces(rgb, (((x0, y0, x1 - x0, y1 - y0), score, marks) for (x0, y0, x1, y1, score), marks in both), scale=scale)


class _Ssd:
    """OpenCV's ResNet-10 SSD from DeepFace's client, fed as it was trained: mean subtracted and aspect kept.

    DeepFace does neither, and finds fewer faces (see _SsdStock). Unlike _CenterFace's, this network takes inputs of changing size.
    """

    name: DetectorName = "ssd"

    def __init__(self, threshold: float, long_side: int) -> None:
        self.threshold, self.long_side = threshold, long_side
        self._network = _client("ssd").model

    def detect(self, rgb: np.ndarray, *, long_side: int | None = None) -> list[Face]:
        bgr, _ = _shrink(rgb, long_side or self.long_side)
        if min(bgr.shape[:2]) < _SMALLEST_SIDE:
            return []
        self._network.setInput(cv2.dnn.blobFromImage(bgr, mean=_SSD_MEAN_BGR))
        rows = self._network.forward()[0, 0].tolist()  # image, class, score, then corners as shares of the frame
        found = [((x0, y0, x1 - x0, y1 - y0), score, None) for _, label, score, x0, y0, x1, y1 in rows if label == 1]
        height, width = rgb.shape[:2]
        return _faces(rgb, (face for face in found if face[1] >= self.threshold), scale=(width, height))


class _SsdStock:
    """DeepFace untouched, as `DeepFace.extract_faces(frame, detector_backend="ssd", enforce_detection=False)` calls it: for comparison.

    It answers a frame without a face with the whole frame at confidence 0; here that is no face.
    """

    name: DetectorName = "ssd-stock"

    def __init__(self, threshold: float, long_side: int) -> None:
        # Not `from deepface import DeepFace`, the same function: that import silences the warnings of the whole process.
        from deepface.modules.detection import extract_faces

        self.threshold, self.long_side = threshold, long_side
        self._extract = extract_faces
        _client("ssd")

    def detect(self, rgb: np.ndarray, *, long_side: int | None = None) -> list[Face]:
        bgr, scale = _shrink(rgb, long_side or self.long_side)
        found = self._extract(img_path=bgr, detector_backend="ssd", align=True, enforce_detection=False)
        areas = [(face["facial_area"], face["confidence"]) for face in found if face["confidence"] > 0]
        return _faces(rgb, (((a["x"], a["y"], a["w"], a["h"]), score, None) for a, score in areas), scale=scale)


class _Haar:
    """OpenCV's frontal Haar cascade through DeepFace's client."""

    name: DetectorName = "opencv"

    def __init__(self, threshold: float, long_side: int) -> None:
        self.threshold, self.long_side = threshold, long_side
        self._client = _client("opencv")

    def detect(self, rgb: np.ndarray, *, long_side: int | None = None) -> list[Face]:
        bgr, scale = _shrink(rgb, long_side or self.long_side)
        # DeepFace makes of the cascade's weight w, larger for a surer face, the confidence (100 - w) / 100, which is smaller: turned back.
        found = [((f.x, f.y, f.w, f.h), 100 - 100 * float(f.confidence), None) for f in self._client.detect_faces(bgr)]
        return _faces(rgb, (face for face in found if face[1] >= self.threshold), scale=scale)


def _client(name: str) -> Any:
    """DeepFace's own object for a detector. Imported late: DeepFace takes 0.7 s."""
    from deepface.modules import modeling

    return modeling.build_model(task="face_detector", model_name=name)


def _shrink(rgb: np.ndarray, long_side: int) -> tuple[np.ndarray, tuple[float, float]]:
    """The frame as BGR, scaled down where its long side is larger; and the factors (x, y) that lead back to its pixels."""
    if not isinstance(rgb, np.ndarray) or rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0:
        what = f"{rgb.dtype} {rgb.shape}" if isinstance(rgb, np.ndarray) else type(rgb).__name__
        raise ValueError(f"a frame is a uint8 array [height, width, 3] with pixels in it, not {what}")
    height, width = rgb.shape[:2]
    longest = max(height, width)
    if long_side and longest > long_side:
        size = (max(1, round(width * long_side / longest)), max(1, round(height * long_side / longest)))
        rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), (width / rgb.shape[1], height / rgb.shape[0])


def _faces(rgb: np.ndarray, found: Iterable[tuple[Box, float, list[float] | None]], *, scale: tuple[float, float]) -> list[Face]:
    """Faces in pixels of the frame, clipped to it, best first; boxes with less than a pixel left in the frame are dropped."""
    height, width = rgb.shape[:2]
    sx, sy = scale
    faces = []
    for (x, y, w, h), score, points in found:
        if not np.isfinite((x, y, w, h)).all():
            continue
        x0, y0 = max(0.0, x * sx), max(0.0, y * sy)
        x1, y1 = min(float(width), (x + w) * sx), min(float(height), (y + h) * sy)
        if x1 - x0 >= 1 and y1 - y0 >= 1:
            landmarks = tuple(v * (sy if i % 2 else sx) for i, v in enumerate(points)) if points else None
            faces.append(Face((x0, y0, x1 - x0, y1 - y0), float(score), landmarks))
    return sorted(faces, key=lambda face: (-face.score, face.box))
