"""Fakes: another identity's inner face put into a recording, with the traces that real swaps leave.

The face is drawn with the original's pose, light and mouth, then blended in through a soft ellipse that does not quite fit, with some
of the colour difference left, at another sharpness and noise than its surroundings, with a generator's checkerboard on it, trembling a
little, sometimes out of time. The traces are coarser than today's fakes show, so that a network learns them within minutes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from dfdc_ray.demo.heads import SHIFT, HeadPainter
from dfdc_ray.demo.identity import INNER, Identity, Image, locate
from dfdc_ray.demo.scene import HEIGHT, WIDTH, Scene, expose

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Traces:
    """What one swap leaves behind."""

    lag: int  # frames by which the lips follow the sound
    colour: float  # share of the difference in colour that is left
    tint: tuple[float, float, float]  # RGB added, as a share of the face's brightness
    resolution: float  # of the drawn face, as a share of the frame's
    sharpening: float  # overshoot of an unsharp mask
    noise: float  # share of the camera's noise on the face
    grid: float  # amplitude, as a share of brightness, of the periodic pattern that a generator's upsampling leaves
    grid_period: float  # pixels
    softness: float  # of the blend's edge: standard deviation in pixels
    size: float  # of the blended ellipse, as a share of the inner face
    offset: tuple[float, float]  # of the ellipse, pixels
    tremble: float  # of face and ellipse between frames, pixels
    flicker: float  # of brightness between frames, share

    @property
    def method(self) -> str:
        return "drawn_swap_lag" if self.lag else "drawn_swap"


def make_traces(rng: np.random.Generator) -> Traces:
    """Random traces: some swaps are softer than their surroundings, others sharper, so that sharpness alone tells nothing."""
    soft = rng.random() < 0.7
    tint = rng.normal(0, 1, 3)
    return Traces(
        lag=int(rng.choice((-6, -4, 4, 6))) if rng.random() < 0.25 else 0,
        colour=float(rng.uniform(0.3, 0.8)),
        tint=tuple((tint / np.linalg.norm(tint) * rng.uniform(0.05, 0.13)).tolist()),
        resolution=float(rng.uniform(0.3, 0.55)) if soft else 1.0,
        sharpening=0.0 if soft else float(rng.uniform(0.6, 1.4)),
        noise=float(rng.uniform(0.0, 0.4)) if soft else float(rng.uniform(0.8, 1.6)),
        grid=float(rng.uniform(0.13, 0.22)),
        grid_period=float(rng.uniform(8.5, 10.0)),
        softness=float(rng.uniform(0.7, 2.0)),
        size=float(rng.uniform(0.86, 1.06)),
        offset=(float(rng.uniform(-4, 4)), float(rng.uniform(-4, 4))),
        tremble=float(rng.uniform(0.2, 1.4)),
        flicker=float(rng.uniform(0.0, 0.035)),
    )


class DonorFace:
    """The donor's head, turned and lit as in the scene and moving as the face there. Each frame is painted once for all fakes."""

    def __init__(self, donor: Identity, scene: Scene) -> None:
        donor = replace(donor, hair_style="bald")  # only the inner face is taken: no fringe comes along
        self._painter = HeadPainter(donor, turn=scene.turn, lights=scene.lights)
        self._scene = scene
        self._painted: dict[tuple[int, int], Image] = {}
        self.align = _align(donor, scene.identity, scene.turn)

    def paint(self, n: int, *, lag: int) -> Image:
        """As HeadPainter.paint, for frame n, with the lips this many frames late."""
        if (n, lag) not in self._painted:
            s = self._scene
            mouth = s.mouth[(n - lag) % len(s.mouth)]
            self._painted[n, lag] = self._painter.paint(mouth=mouth, blink=s.blink[n], gaze=s.gaze[n], light=s.light[n])
        return self._painted[n, lag]


def swap(frames: Sequence[Image], scene: Scene, donor: DonorFace, traces: Traces, rng: np.random.Generator) -> list[Image]:
    """The original's frames (uint8 RGB [HEIGHT, WIDTH, 3]) with the donor's inner face; same number and size."""
    return [_blend(frame, n, scene, donor, traces=traces, rng=rng) for n, frame in enumerate(frames)]


def _align(donor: Identity, target: Identity, turn: float) -> Matrix:
    """3x3 matrix from the donor's canvas to the target's, which lays eyes on eyes and mouth on mouth."""
    (x_d, eye_d), (_, mouth_d) = locate(donor, turn, 0, donor.eye_v), locate(donor, turn, 0, donor.mouth_v)
    (x_t, eye_t), (_, mouth_t) = locate(target, turn, 0, target.eye_v), locate(target, turn, 0, target.mouth_v)
    tall = (mouth_t - eye_t) / (mouth_d - eye_d)
    wide = (target.half_width * target.eye_u) / (donor.half_width * donor.eye_u)
    return np.array(((wide, 0, x_t - wide * x_d), (0, tall, eye_t - tall * eye_d), (0, 0, 1)))


def _grid(size: tuple[int, int], middle: npt.NDArray[np.float64], traces: Traces) -> npt.NDArray[np.float32]:
    """Factor about 1, float32 [height, width]: a checkerboard (Odena et al. 2016, doi:10.23915/distill.00003) fixed to the face."""
    rows, columns = (np.cos(2 * np.pi * (np.arange(n) - at) / traces.grid_period) for n, at in zip(size[::-1], middle[::-1], strict=True))
    return (1 + traces.grid * np.outer(rows, columns)).astype(np.float32)


def _blend(frame: Image, n: int, scene: Scene, donor: DonorFace, *, traces: Traces, rng: np.random.Generator) -> Image:
    """Frame n with the donor's inner face blended in."""
    matrix, target = scene.matrices[n], scene.identity
    tremble = rng.normal(0, traces.tremble, 2)
    brightness = np.float32(1 + rng.normal(0, traces.flicker))
    scale = float(np.hypot(*matrix[:, 0]))
    centre = matrix @ (*locate(target, scene.turn, 0, 0.2), 1) + traces.offset + tremble
    axes = traces.size * scale * np.array((INNER[0] * target.half_width, INNER[1] * target.half_height))
    reach = axes + 3 * traces.softness + 4
    left, top = np.maximum(np.floor(centre - reach).astype(int), 0)
    right, bottom = np.minimum(np.ceil(centre + reach).astype(int), (WIDTH, HEIGHT))
    box = np.s_[top:bottom, left:right]
    size = (right - left, bottom - top)

    mask = np.zeros(size[::-1], np.uint8)
    middle = tuple(np.round((centre - (left, top)) * 2**SHIFT).astype(int).tolist())
    angle = float(np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0])))
    cv2.ellipse(mask, middle, tuple(np.round(axes * 2**SHIFT).astype(int).tolist()), angle, 0, 360, 255, -1, cv2.LINE_AA, SHIFT)

    to_box = matrix @ donor.align
    to_box[:, 2] += 0.7 * tremble - (left, top)
    shrunk = tuple(max(8, round(side * traces.resolution)) for side in size)
    to_small = np.diag((shrunk[0] / size[0], shrunk[1] / size[1])) @ to_box
    drawn = cv2.resize(cv2.warpAffine(donor.paint(n, lag=traces.lag), to_small, shrunk), size, interpolation=cv2.INTER_LINEAR)
    covered = cv2.erode(drawn[..., 3], np.ones((7, 7), np.uint8))  # nothing from beside the donor's face
    mask = cv2.GaussianBlur(cv2.multiply(mask, covered, scale=1 / 255), (0, 0), traces.softness)
    face = expose(drawn[..., :3], scene, n, np.round(traces.noise * scene.camera.grain(rng)[box]).astype(np.int16))
    if traces.sharpening:
        blurred = cv2.GaussianBlur(face, (0, 0), 1.2)
        cv2.addWeighted(face, 1 + traces.sharpening, blurred, -traces.sharpening, 0, dst=face)
    around, own = np.array(cv2.mean(frame[box], mask)[:3]), np.array(cv2.mean(face, mask)[:3])
    shift = (1 - traces.colour) * (around - own) + around.mean() * np.array(traces.tint)
    moved = face.astype(np.float32) * (brightness * _grid(size, centre - (left, top), traces))[..., None] + shift.astype(np.float32)

    weight = mask.astype(np.float32)[..., None] / 255
    fake = frame.copy()
    fake[box] = np.clip(frame[box] * (1 - weight) + moved * weight + 0.5, 0, 255).astype(np.uint8)
    return fake
