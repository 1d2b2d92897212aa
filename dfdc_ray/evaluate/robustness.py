"""The same faces made worse, as the world does it: what is left of the metrics then.

Each change takes and gives a stored face, uint8 [3,H,W] RGB, before it is scaled to the model's input. Frames are changed one by one.
"""

import functools
import io
from collections.abc import Callable

import av
import cv2
import numpy as np
import torch
from torchvision.transforms.v2 import functional as F

from dfdc_ray.faces.crop import decode

Change = Callable[[torch.Tensor], torch.Tensor]


def jpeg(image: torch.Tensor, *, quality: int) -> torch.Tensor:
    """Compressed and decoded again, with OpenCV, whose chroma has half the resolution."""
    bgr = np.ascontiguousarray(image.flip(0).permute(1, 2, 0).numpy())
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return torch.from_numpy(decode(data.tobytes())).permute(2, 0, 1)


def half(image: torch.Tensor) -> torch.Tensor:
    """Half the size and back."""
    height, width = image.shape[-2:]
    return F.resize(F.resize(image, [max(1, height // 2), max(1, width // 2)], antialias=True), [height, width], antialias=True)


def h264(image: torch.Tensor, *, crf: int) -> torch.Tensor:
    """Through libx264 as a film of one picture: an intra frame, so of the film's artefacts those of single frames."""
    height, width = image.shape[-2:]
    even = F.pad(image, [0, 0, width % 2, height % 2], padding_mode="edge")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="h264") as film:
        stream = film.add_stream("libx264", rate=30, options={"crf": str(crf), "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = even.shape[-1], even.shape[-2], "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(even.permute(1, 2, 0).numpy()), format="rgb24")
        film.mux([*stream.encode(frame), *stream.encode(None)])
    buffer.seek(0)
    with av.open(buffer, "r", format="h264") as film:
        decoded = next(film.decode(video=0)).to_ndarray(format="rgb24")
    return torch.from_numpy(decoded).permute(2, 0, 1)[:, :height, :width]


def blur(image: torch.Tensor, *, sigma: float) -> torch.Tensor:
    size = 2 * round(3 * sigma) + 1
    rgb = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    return torch.from_numpy(cv2.GaussianBlur(rgb, (size, size), sigma, borderType=cv2.BORDER_REPLICATE)).permute(2, 0, 1)


def gamma(image: torch.Tensor, *, gamma: float) -> torch.Tensor:
    return F.adjust_gamma(image, gamma)


def noise(image: torch.Tensor, *, sigma: float) -> torch.Tensor:
    """Gaussian, of standard deviation `sigma` in 0..255, independent in each pixel and channel; the same picture gets the same noise."""
    generator = torch.Generator().manual_seed(int(image.sum(dtype=torch.int64)))
    return (image + sigma * torch.randn(image.shape, generator=generator)).round().clamp(0, 255).to(torch.uint8)


CHANGES: dict[str, Change] = {
    "JPEG, quality 50": functools.partial(jpeg, quality=50),
    "JPEG, quality 30": functools.partial(jpeg, quality=30),
    "half the size and back": half,
    "H.264, crf 32": functools.partial(h264, crf=32),
    "H.264, crf 40": functools.partial(h264, crf=40),
    "blur, sigma 2 pixels": functools.partial(blur, sigma=2.0),
    "gamma 0.5 (lighter)": functools.partial(gamma, gamma=0.5),
    "gamma 2 (darker)": functools.partial(gamma, gamma=2.0),
    "noise, sigma 10 of 255": functools.partial(noise, sigma=10.0),
}
