"""Frames and sound to an mp4 file as cameras and sites make them: H.264 with a long GOP and B-frames, AAC."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
import cv2
import numpy as np
import numpy.typing as npt

from dfdc_ray.demo.identity import Image
from dfdc_ray.demo.scene import FPS, HEIGHT, WIDTH
from dfdc_ray.demo.voice import SAMPLE_RATE


@dataclass(frozen=True)
class Delivery:
    """What happens to a video, real or fake, on its way: grading, blur and compression."""

    crf: int
    blur: float  # standard deviation in pixels
    gain: float  # of brightness


def make_delivery(rng: np.random.Generator) -> Delivery:
    """A random delivery, drawn alike for real and fake."""
    blur = rng.uniform(0.4, 0.8) if rng.random() < 0.4 else 0.0
    return Delivery(crf=int(rng.integers(18, 28)), blur=blur, gain=rng.uniform(0.93, 1.07))


def deliver(frames: Sequence[Image], delivery: Delivery) -> list[Image]:
    """Uint8 RGB frames as they are given to the encoder: planes Y, U, V, uint8 [HEIGHT * 3 / 2, WIDTH] (I420, BT.601)."""
    table = np.clip(np.arange(256) * delivery.gain, 0, 255).astype(np.uint8)
    delivered = []
    for frame in frames:
        planes = cv2.cvtColor(frame, cv2.COLOR_RGB2YUV_I420)
        luma = cv2.LUT(planes[:HEIGHT], table)
        planes[:HEIGHT] = cv2.GaussianBlur(luma, (0, 0), delivery.blur) if delivery.blur else luma
        delivered.append(planes)
    return delivered  # type: ignore[return-value]


def encode_mp4(frames: Sequence[Image], sound: npt.NDArray[np.float32], *, crf: int) -> bytes:
    """An mp4 of frames (I420, as `deliver` gives them) and mono sound (float32 [samples] at SAMPLE_RATE). One thread: the bytes repeat."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        options = {"preset": "veryfast", "crf": str(crf), "g": "250", "bf": "3", "subme": "1", "threads": "1"}
        video = container.add_stream("libx264", rate=FPS, options=options)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        audio.bit_rate = 48_000
        for n, planes in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts, frame.time_base = n, Fraction(1, FPS)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        chunk = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
        chunk.sample_rate, chunk.pts, chunk.time_base = SAMPLE_RATE, 0, Fraction(1, SAMPLE_RATE)
        container.mux(audio.encode(chunk))
        container.mux(audio.encode(None))
    return buffer.getvalue()
