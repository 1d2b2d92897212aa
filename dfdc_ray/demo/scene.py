"""The recording of one person: background, body, movement, light, camera; gives the frames of a real video before encoding."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from dfdc_ray.demo.heads import SHIFT, HeadPainter
from dfdc_ray.demo.identity import CENTRE, Identity, Image, smooth_noise
from dfdc_ray.demo.voice import Voice, speak

WIDTH, HEIGHT, FPS = 640, 360, 25
Track = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Camera:
    """Exposure, white balance, sharpness and noise of a recording."""

    table: Image  # uint8 [1, 256, 3]: response of each channel
    blur: float  # standard deviation in pixels
    noise: npt.NDArray[np.int16]  # larger than a frame; each frame shows another piece of it

    def grain(self, rng: np.random.Generator) -> npt.NDArray[np.int16]:
        """Noise of one frame, int16 [HEIGHT, WIDTH, 3]."""
        y, x = rng.integers(0, 64, 2)
        return self.noise[y : y + HEIGHT, x : x + WIDTH]


@dataclass(frozen=True)
class Scene:
    """Everything about a recording that a fake made from it has to follow. Tracks hold one value per frame."""

    identity: Identity
    turn: float  # radians
    lights: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
    camera: Camera
    background: Image
    spoken: Voice  # longer than the recording where a fake is to have another piece of it
    voice: Voice  # of it, what goes with the frames
    matrices: Track  # [frames, 2, 3]: from the head's canvas to the frame
    mouth: Track
    blink: Track
    gaze: Track
    light: Track  # 0 first lamp, 1 second
    level: Track  # brightness about 1


def make_scene(rng: np.random.Generator, identity: Identity, *, seconds: float, spare: float = 0.0) -> Scene:
    """A random recording of this identity, who also speaks for `spare` seconds before it and after it."""
    frames = round(seconds * FPS)
    times = np.arange(frames) / FPS
    spoken = speak(rng, seconds=seconds + 2 * spare, pitch_hz=identity.pitch_hz, formant_scale=identity.formant_scale)
    voice = spoken.cut(spare, seconds)
    mouth = voice.opening(times)

    def sway(size: float) -> Track:
        rates, phases = rng.uniform(0.15, 0.9, 3), rng.uniform(0, 2 * np.pi, 3)
        return size * np.sin(2 * np.pi * rates[:, None] * times + phases[:, None]).sum(0) / 2

    scale = rng.uniform(0.5, 0.56) * (1 + sway(0.03))
    angle = np.radians(rng.uniform(-4, 4) + sway(3.5))
    x = rng.uniform(0.38, 0.62) * WIDTH + sway(9)
    y = 0.45 * HEIGHT + rng.uniform(-8, 12) + sway(5) + 2.5 * mouth
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    matrices = np.empty((frames, 2, 3))
    matrices[:, 0] = np.column_stack((cos, -sin, x - cos * CENTRE[0] + sin * CENTRE[1]))
    matrices[:, 1] = np.column_stack((sin, cos, y - sin * CENTRE[0] - cos * CENTRE[1]))

    blink = np.zeros(frames)
    next_blink = rng.uniform(0.2, 1.5)
    while next_blink < seconds:
        blink = np.maximum(blink, np.clip(1.4 - np.abs(times - next_blink) / 0.075, 0, 1))
        next_blink += rng.uniform(0.9, 2.5)
    side = rng.uniform(-0.7, 0.7)
    lamp = np.array((side, rng.uniform(-0.6, -0.1), 1.0), np.float32)
    moved = lamp + np.array((rng.uniform(-0.5, 0.5), rng.uniform(-0.2, 0.2), 0), np.float32)
    return Scene(
        identity=identity,
        turn=float(rng.uniform(-0.2, 0.2)),
        lights=(lamp, moved),
        camera=_make_camera(rng),
        background=_draw_background(rng),
        spoken=spoken,
        voice=voice,
        matrices=matrices,
        mouth=mouth,
        blink=blink,
        gaze=np.clip(rng.uniform(-0.3, 0.3) + sway(0.25), -1, 1),
        light=np.clip(0.5 + sway(0.5), 0, 1),
        level=1 + sway(rng.uniform(0, 0.08)),
    )


def record(scene: Scene, rng: np.random.Generator) -> list[Image]:
    """The frames of the real video before encoding: uint8 RGB [HEIGHT, WIDTH, 3] each."""
    painter = HeadPainter(scene.identity, turn=scene.turn, lights=scene.lights)
    body = _draw_body(scene, rng)
    frames = []
    start = scene.matrices[0] @ (*CENTRE, 1)
    for n, matrix in enumerate(scene.matrices):
        frame = scene.background.copy()
        move = 0.45 * (matrix @ (*CENTRE, 1) - start)  # shoulders move less than the head
        _overlay(frame, body, np.array(((1, 0, move[0]), (0, 1, move[1]))), (0, HEIGHT // 3, WIDTH, HEIGHT))
        head = painter.paint(mouth=scene.mouth[n], blink=scene.blink[n], gaze=scene.gaze[n], light=scene.light[n])
        _overlay(frame, head, matrix, _bounds(matrix, head.shape))
        frames.append(expose(frame, scene, n, scene.camera.grain(rng)))
    return frames


def expose(frame: npt.NDArray[Any], scene: Scene, n: int, grain: npt.NDArray[np.int16]) -> Image:
    """What the scene's camera makes of a picture at frame n: uint8 RGB, the picture's size."""
    table = np.clip(scene.camera.table * scene.level[n], 0, 255).astype(np.uint8)
    seen = cv2.LUT(frame, table)
    if scene.camera.blur > 0.3:
        seen = cv2.GaussianBlur(seen, (0, 0), scene.camera.blur)
    return cv2.add(seen, grain, dtype=cv2.CV_8U)  # type: ignore[return-value]


def _bounds(matrix: Track, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    height, width = shape[:2]
    corners = np.array(((0, 0, 1), (width, 0, 1), (0, height, 1), (width, height, 1))) @ matrix.T
    low, high = np.floor(corners.min(0)).astype(int), np.ceil(corners.max(0)).astype(int)
    return max(0, low[0]), max(0, low[1]), min(WIDTH, high[0]), min(HEIGHT, high[1])


def _overlay(frame: Image, layer: Image, matrix: Track, bounds: tuple[int, int, int, int]) -> None:
    """Put a premultiplied RGBA layer, moved by a 2x3 matrix, onto the frame within bounds (left, top, right, bottom)."""
    left, top, right, bottom = bounds
    moved = matrix - np.array(((0, 0, left), (0, 0, top)))
    warped = cv2.warpAffine(layer, moved, (right - left, bottom - top), flags=cv2.INTER_LINEAR)
    below = frame[top:bottom, left:right]
    keep = cv2.cvtColor(255 - warped[..., 3], cv2.COLOR_GRAY2RGB)
    below[:] = cv2.add(warped[..., :3], cv2.multiply(below, keep, scale=1 / 255))


def _make_camera(rng: np.random.Generator) -> Camera:
    gain = rng.uniform(0.72, 1.22) * rng.uniform(0.92, 1.08, 3)
    level = np.linspace(0, 1, 256)[:, None] ** rng.uniform(0.85, 1.15)
    table = np.clip(255 * level * gain, 0, 255).astype(np.uint8)[None]
    size = (HEIGHT + 64, WIDTH + 64)
    grey, chroma = rng.standard_normal(size, dtype=np.float32), rng.standard_normal((*size, 3), dtype=np.float32)
    grain = cv2.GaussianBlur(grey, (0, 0), 0.5)[..., None] + cv2.GaussianBlur(chroma, (0, 0), 1.0)
    noise = np.round(rng.uniform(0.6, 3.5) * grain)
    return Camera(table, float(rng.uniform(0.2, 1.0)), noise.astype(np.int16))


def _draw_background(rng: np.random.Generator) -> Image:
    wall = rng.uniform(70, 215) * rng.uniform(0.85, 1.1, 3)
    ramp = np.linspace(-1, 1, WIDTH, dtype=np.float32) * rng.uniform(-0.25, 0.25)
    plaster = (1 + ramp) * (1 + 0.02 * smooth_noise(rng, (HEIGHT, WIDTH), 1.5, 1.5))
    canvas = cv2.resize(np.clip(wall * plaster[..., None], 0, 255).astype(np.uint8), (2 * WIDTH, 2 * HEIGHT))
    for _ in range(int(rng.integers(8, 34))):
        colour = _any_colour(rng)
        x, y = rng.uniform(0, 2 * WIDTH), rng.uniform(0, 2 * HEIGHT)
        width, height = rng.uniform(20, 260), rng.uniform(20, 220)
        kind = rng.integers(4)
        if kind == 0:  # a picture or a window
            cv2.rectangle(canvas, (int(x), int(y)), (int(x + width), int(y + height)), colour, -1, cv2.LINE_AA)
            cv2.rectangle(canvas, (int(x), int(y)), (int(x + width), int(y + height)), _any_colour(rng), 5, cv2.LINE_AA)
        elif kind == 1:  # a lamp or a plate
            cv2.ellipse(canvas, ((x, y), (width, height), rng.uniform(0, 180)), colour, -1, cv2.LINE_AA)
        elif kind == 2:  # a shelf of books
            cv2.rectangle(canvas, (int(x), int(y)), (int(x + 330), int(y + 10)), colour, -1, cv2.LINE_AA)
            left = x
            while left < x + 320:
                thick = rng.uniform(9, 26)
                cv2.rectangle(canvas, (int(left), int(y - rng.uniform(50, 100))), (int(left + thick), int(y)), _any_colour(rng), -1)
                left += thick + 1
        else:  # leaves
            for _ in range(14):
                leaf = (x + rng.normal(0, 40), y + rng.normal(0, 50))
                green = (float(rng.uniform(20, 80)), float(rng.uniform(70, 140)), float(rng.uniform(20, 70)))
                cv2.ellipse(canvas, (leaf, (rng.uniform(10, 24), rng.uniform(30, 70)), rng.uniform(0, 180)), green, -1, cv2.LINE_AA)
    small = cv2.resize(canvas, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    return cv2.GaussianBlur(small, (0, 0), rng.uniform(0.4, 2.8))  # type: ignore[return-value]


def _any_colour(rng: np.random.Generator) -> tuple[float, float, float]:
    r, g, b = rng.uniform(30, 220) * rng.uniform(0.6, 1.2, 3)
    return float(r), float(g), float(b)


def _draw_body(scene: Scene, rng: np.random.Generator) -> Image:
    """Neck and shoulders at their place in the first frame; premultiplied RGBA [HEIGHT, WIDTH, 4]."""
    i = scene.identity
    scale = float(np.hypot(*scene.matrices[0, :, 0]))
    x, y = 2 * (scene.matrices[0] @ (*CENTRE, 1))
    face_w, face_h = 2 * scale * i.half_width, 2 * scale * i.half_height  # half-axes at twice the frame's size
    paint = np.zeros((2 * HEIGHT, 2 * WIDTH, 3), np.uint8)
    alpha = np.zeros(paint.shape[:2], np.uint8)
    chin, base = y + 0.75 * face_h, y + 1.32 * face_h
    t = np.linspace(-1, 1, 41)
    spread = rng.uniform(2.2, 2.7) * face_w
    slope = base + 0.1 * face_h + 0.55 * face_h * np.abs(t) ** 2.2
    arms = ((x + 1.1 * spread, 2.2 * HEIGHT), (x - 1.1 * spread, 2.2 * HEIGHT))
    shoulders = np.concatenate((np.column_stack((x + spread * t, slope)), arms))
    neck_w = 0.58 * face_w
    neck_u, neck_y = (
        np.array((-1, 1, 1.35, 0, -1.35)),
        np.array((chin, chin, base + 0.2 * face_h, base + 0.42 * face_h, base + 0.2 * face_h)),
    )
    neck_y[3] += (0.0, 0.12, 0.3)[i.collar] * face_h
    neck = np.column_stack((x + neck_w * neck_u, neck_y))
    for outline, colour in ((shoulders, i.clothes), (neck, tuple(0.8 * c for c in i.skin))):
        fixed = np.round(outline * 2**SHIFT).astype(np.int32)
        cv2.fillPoly(paint, [fixed], colour, cv2.LINE_AA, SHIFT)
        cv2.fillPoly(alpha, [fixed], 255, cv2.LINE_AA, SHIFT)
    half = (WIDTH, HEIGHT)
    colours, cover = cv2.resize(paint, half, interpolation=cv2.INTER_AREA), cv2.resize(alpha, half, interpolation=cv2.INTER_AREA)
    folds = cv2.resize(smooth_noise(rng, (HEIGHT // 8, WIDTH // 8), 1.5, 4), half, interpolation=cv2.INTER_CUBIC)
    cloth = 1 + 0.05 * folds + 0.02 * smooth_noise(rng, (HEIGHT, WIDTH), 0.7, 0.7)
    ys, xs = 2 * np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    side = np.sign(scene.lights[0][0]) * 0.12 * (xs - x) / spread
    shadow = 1 - 0.45 * np.exp(-(((ys - chin - 0.1 * face_h) / (0.3 * face_h)) ** 2) - ((xs - x) / (1.1 * neck_w)) ** 4)
    lit = np.clip(colours * (cloth * shadow * (0.95 + side))[..., None], 0, 255) * (cover[..., None] / 255.0)
    return cv2.GaussianBlur(np.dstack((lit, cover)).astype(np.uint8), (0, 0), 0.5)  # type: ignore[return-value]
