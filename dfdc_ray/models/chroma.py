"""How the colour of a face moves: the founding report's second wish, a small network on maps of it.

The logarithm of a channel's ratio to green does not change with how bright a place is, and a lamp that changes shifts it by the same amount
everywhere (Finlayson and Hordley 2001, doi:10.1364/JOSAA.18.000253). So in a clip each region's change in colour falls into what it
shares with the rim of the crop, the light of the scene, and its own. The light's is the median over the rim, so that
hair that passes there or a person behind is not taken for it. The maps hold its own, and how that differs from the regions
around: skin under one light changes alike, splotches that a swap leaves do not. What stands still in a clip is in no map.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn import functional

REGIONS = 16  # a side: so large that pores and noise average out
_DARK = 0.02  # added to the channels, so that the ratios of nearly black pixels are not noise
_RIM = 3  # regions: what lies outside of the face, whose own change of colour must not be taken for the light's
_SCALE = 20.0  # own changes are some 0.05


class Chroma(nn.Module):
    """float32 [N,T,3,S,S], T at least 2 -> logits [N]."""

    PRETRAINED: Mapping[str, Any] = MappingProxyType({})
    HEAD = ("fc.",)
    CHANNELS = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # 0..1, as it is
    SIDE = None
    CLIPS = True
    MAPS = "body.5"

    def __init__(self) -> None:
        super().__init__()
        smaller = nn.MaxPool3d((1, 2, 2))
        self.body = nn.Sequential(_block(4, 16), _block(16, 32), smaller, _block(32, 64), smaller, _block(64, 64))
        self.fc = nn.Linear(64, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = chroma_maps(x).transpose(1, 2)
        logits: torch.Tensor = self.fc(self.body(_SCALE * maps).mean((2, 3, 4)))
        return logits[:, 0]


def chroma_maps(clips: torch.Tensor) -> torch.Tensor:
    """float32 [N,T,3,S,S] in 0..1 -> [N,T,4,REGIONS,REGIONS]: changes in log red/green and log blue/green of each region, without the
    light's; and of both the difference from the mean of the 3x3 regions around.
    """
    n, t = clips.shape[:2]
    means = functional.adaptive_avg_pool2d(clips.flatten(0, 1).float(), REGIONS).clamp(min=0) + _DARK
    logs = means.log()
    ratios = (logs[:, (0, 2)] - logs[:, 1:2]).view(n, t, 2, REGIONS, REGIONS)
    changes = ratios - ratios.mean(1, keepdim=True)
    sides = (changes[..., :_RIM, :], changes[..., -_RIM:, :], changes[..., _RIM:-_RIM, :_RIM], changes[..., _RIM:-_RIM, -_RIM:])
    light = torch.cat([side.flatten(3) for side in sides], dim=3).quantile(0.5, dim=3)
    own = changes - light[..., None, None]
    around = functional.avg_pool2d(own.flatten(0, 1), 3, stride=1, padding=1, count_include_pad=False).view_as(own)
    return torch.cat([own, own - around], dim=2)


def _block(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(channels, out, 3, padding=1, bias=False), nn.BatchNorm3d(out), nn.ReLU(inplace=True))
