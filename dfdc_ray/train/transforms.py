"""From a stored face to the model's input: with augmentation for training, without for everything else.

The recipe is a plain dict that checkpoints carry, so that evaluation and scoring treat a face as validation did.
"""

from typing import Any

import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from dfdc_ray.models import channels
from dfdc_ray.train.stabilise import Stabilise


def recipe(image_size: int, model: str, *, stabilise: bool = False) -> dict[str, Any]:
    """What must be known to repeat the transform: `image_size` in pixels, mean and standard deviation of the model's channels in 0..1, and
    whether the frames of a clip are laid over each other first.
    """
    mean, std = channels(model)
    resize = "both sides to image_size, bilinear, antialiased"
    return {"image_size": image_size, "resize": resize, "mean": list(mean), "std": list(std), "stabilise": stabilise}


def evaluation(spec: dict[str, Any]) -> v2.Compose:
    """uint8 [3,H,W] RGB -> float32 [3,S,S], or [T,3,H,W] -> [T,3,S,S]: scale and normalise."""
    size = spec["image_size"]
    return v2.Compose([*_first(spec), v2.Resize((size, size), antialias=True), *_normalise(spec)])


def pixels(spec: dict[str, Any], images: torch.Tensor) -> torch.Tensor:
    """RGB in 0..1 of what a model is given (float32 [...,3,S,S]): without its normalisation."""
    mean, std = (torch.tensor(spec[name])[:, None, None] for name in ("mean", "std"))
    return images * std + mean


def training(spec: dict[str, Any]) -> v2.Compose:
    """The same with augmentation, drawn from torch's generator.

    JPEG and blur hide what swaps leave behind, and so do the re-encoded videos of the world: both are there, but for a minority of the
    samples. They act on the stored pixels, as a worse source would; colours are changed at the model's size, where it costs least.
    """
    return v2.Compose(
        [
            *_first(spec),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.JPEG((40, 95))], p=0.25),
            v2.RandomApply([v2.GaussianBlur(5, (0.2, 1.2))], p=0.1),
            RandomZoom(spec["image_size"], smallest=0.8),
            v2.RandomApply([v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.03)], p=0.4),
            *_normalise(spec),
        ]
    )


class RandomZoom(v2.Transform):
    """Cut out a random part, each side at least `smallest` of the whole, and scale it to size x size.

    Unlike RandomResizedCrop, whose aspect is absolute, it squeezes a crop that is not square as evaluation does.
    """

    def __init__(self, size: int, *, smallest: float) -> None:
        super().__init__()
        self.size, self.smallest = size, smallest

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        sides, offsets = torch.rand(2), torch.rand(2)
        height, width = image.shape[-2:]
        h, w = (max(1, round(whole * (1 - (1 - self.smallest) * float(u)))) for whole, u in zip((height, width), sides, strict=True))
        top, left = int(float(offsets[0]) * (height - h + 1)), int(float(offsets[1]) * (width - w + 1))
        return functional.resized_crop(image, top, left, h, w, [self.size, self.size], antialias=True)


def _first(spec: dict[str, Any]) -> list[v2.Transform]:
    return [Stabilise()] if spec.get("stabilise") else []  # absent from older checkpoints


def _normalise(spec: dict[str, Any]) -> list[v2.Transform]:
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(spec["mean"], spec["std"])]
