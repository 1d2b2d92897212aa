"""Frames of a clip laid over its middle one, so that what changes from frame to frame is the face and not where the head is.

The movement is found in the picture itself, by the enhanced correlation coefficient (Evangelidis and Psarakis 2008,
doi:10.1109/TPAMI.2008.113; cv2.findTransformECC), as a rotation and a shift of what is within an ellipse in the middle of the crop: no
landmarks are wanted, and their jitter does not come in. What passes before a face is no movement of it: a frame that does not then lie over
the middle one as heads do, or would have gone far, is moved as its neighbour is, so that no jump comes in that was not there.
"""

import contextlib

import cv2
import numpy as np
import torch
from torchvision.transforms import v2

_SIDE = 96  # pixels of the longer side at which the movement is looked for
_BLUR = 5  # pixels of that: the Gaussian's
_ALIKE = 0.9  # correlation: of faces of real clips that are laid over themselves it is 0.95 and more
_FARTHEST = 0.15  # that the middle may have moved, of the longer side
_FLAGS = cv2.INTER_LANCZOS4 | cv2.WARP_INVERSE_MAP  # keeps most of what is fine; the middle frame is not resampled
_CRITERIA = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 40, 1e-4)


class Stabilise(v2.Transform):
    """uint8 [T,3,H,W] -> the same, all frames in the place of the middle one; one of which no movement is found goes with its neighbour."""

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        frames = clip.permute(0, 2, 3, 1).numpy()
        middle = len(frames) // 2
        height, width = frames.shape[1:3]
        smaller = _SIDE / max(height, width)  # of both sides alike: a rotation of squeezed pictures is none of these
        matrices = _movements(frames, middle, (max(1, round(width * smaller)), max(1, round(height * smaller))))
        scale = np.array([[1, 1, 1 / smaller]] * 2, np.float32)
        moved = [
            frame if n == middle else cv2.warpAffine(frame, m * scale, (width, height), flags=_FLAGS, borderMode=cv2.BORDER_REPLICATE)
            for n, (frame, m) in enumerate(zip(frames, matrices, strict=True))
        ]
        return torch.from_numpy(np.stack(moved)).permute(0, 3, 1, 2)


def _movements(frames: np.ndarray, middle: int, size: tuple[int, int]) -> list[np.ndarray]:
    """For each frame the matrix, float32 [2,3], that takes a place of the middle frame to where it is in this one.

    size: width and height in pixels at which it is looked for, and which its shift is of.
    """
    width, height = size
    small = [_blurred(frame, size) for frame in frames]
    mask = np.zeros((height, width), np.uint8)
    cv2.ellipse(mask, (width // 2, height // 2), (round(0.3 * width), round(0.36 * height)), 0, 0, 360, 255, -1)
    found = [np.eye(2, 3, dtype=np.float32)] * len(frames)
    for way in (range(middle + 1, len(frames)), range(middle - 1, -1, -1)):
        matrix = np.eye(2, 3, dtype=np.float32)  # each begins where its neighbour was found
        for n in way:
            matrix = found[n] = _movement(small[middle], small[n], matrix, mask)
    return found


def _blurred(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    grey = cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_AREA)
    return cv2.GaussianBlur(grey, (_BLUR, _BLUR), 0)


def _movement(middle: np.ndarray, frame: np.ndarray, start: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """From one to the other, float32 [2,3]: what is found from `start` on, `start` itself or none, after whichever the frame is most like
    the middle one; `start` where it is like it after none of them.
    """
    moves = [start, np.eye(2, 3, dtype=np.float32)]
    height, width = frame.shape
    centre = np.array([width / 2, height / 2, 1])
    with contextlib.suppress(cv2.error):  # it does not converge, as from far off
        found = cv2.findTransformECC(middle, frame, start.copy(), cv2.MOTION_EUCLIDEAN, _CRITERIA, mask, 1)[1]
        if np.hypot(*(found @ centre - centre[:2])) <= _FARTHEST * max(width, height):
            moves.append(np.asarray(found, np.float32))
    try:
        alike = [cv2.computeECC(middle, cv2.warpAffine(frame, move, (width, height), flags=_FLAGS), mask) for move in moves]
    except cv2.error:  # a plain picture is like nothing
        return start
    best = int(np.argmax(alike))
    return moves[best] if alike[best] > _ALIKE else start
