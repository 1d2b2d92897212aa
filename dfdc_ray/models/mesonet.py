"""MesoNet: Meso4 and MesoInception4 (Afchar et al. 2018, https://arxiv.org/abs/1809.00888), small networks that look at textures.

Batch normalisation and dropout are set as in their Keras code. Their loss is the squared error: --objective l2.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn


class _MesoNet(nn.Module):
    """float32 [N,3,256,256] -> logits [N]. The features of the last two layers are the same in both networks; the first two differ."""

    PRETRAINED: Mapping[str, Any] = MappingProxyType({})
    HEAD = ("classify.",)
    MAPS = "features.10"
    CHANNELS = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # 0..1, as it is
    CLIPS = False
    SIDE = 256  # the classifier is connected to every place of an 8x8 map

    def __init__(self, first: nn.Module, second: nn.Module, channels: tuple[int, int]) -> None:
        super().__init__()
        self.features = nn.Sequential(
            first,
            _norm(channels[0]),
            nn.MaxPool2d(2),
            second,
            _norm(channels[1]),
            nn.MaxPool2d(2),
            _conv(channels[1], 16, 5),
            _norm(16),
            nn.MaxPool2d(2),
            _conv(16, 16, 5),
            _norm(16),
            nn.MaxPool2d(4),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(16 * 8 * 8, 16),
            nn.LeakyReLU(0.1),
            nn.Dropout(0.5),
        )
        self.classify = nn.Linear(16, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classify(self.features(x))
        return logits[:, 0]


class Meso4(_MesoNet):
    """Four convolutions; 27,977 parameters, as published."""

    def __init__(self) -> None:
        super().__init__(_conv(3, 8, 3), _conv(8, 8, 5), (8, 8))


class MesoInception4(_MesoNet):
    """The first two are inception modules; 28,615 parameters, as published."""

    def __init__(self) -> None:
        super().__init__(_Inception(3, 1, 4, 4, 2), _Inception(11, 2, 4, 4, 2), (11, 12))


class _Inception(nn.Module):
    """Four paths side by side (figure 5 of the paper): 1x1; 3x3; 3x3 dilated by 2; 3x3 dilated by 3, the last three behind a 1x1."""

    def __init__(self, channels: int, a: int, b: int, c: int, d: int) -> None:
        super().__init__()
        self.paths = nn.ModuleList(
            [
                _conv(channels, a, 1),
                *(nn.Sequential(_conv(channels, n, 1), _conv(n, n, 3, dilation=dilation)) for dilation, n in ((1, b), (2, c), (3, d))),
            ]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([path(x) for path in self.paths], dim=1)


def _conv(channels: int, out: int, size: int, *, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, size, padding="same", dilation=dilation), nn.ReLU())


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)  # Keras' defaults: its momentum of 0.99 is torch's 0.01
