"""What the founding report wished for: ResNet34 on the differences between near frames of a clip, alone or beside the frames.

    framediff_frames   the frames alone, to hold the others against
    framediff_only     the differences
    framediff_early    a frame and its difference from the one before, as one picture of six channels
    framediff_late     two networks, one for each, whose features are joined

Differences have the scale of what moves, so they are normalised by the batch before they go in. Weights of ResNet34 serve both: the first
layer's kernels for differences are the mean over its channels, as in temporal segment networks (Wang et al. 2016, section 3.2,
https://arxiv.org/abs/1608.00859). Features are the mean over the pairs of neighbouring frames.
"""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import nn
from torchvision.models import resnet34

from dfdc_ray.models.resnet34 import ResNet34


class _FrameDiff(nn.Module):
    """float32 [N,T,3,S,S], T at least 2 -> logits [N]."""

    PRETRAINED = ResNet34.PRETRAINED
    HEAD = ("fc.",)
    CHANNELS = ResNet34.CHANNELS
    SIDE = None
    CLIPS = True
    STREAMS: Mapping[str, int] = MappingProxyType({})  # by name: channels of its input
    MAPS: str

    def __init__(self) -> None:
        super().__init__()
        self.normalise = nn.BatchNorm2d(3) if set(self.STREAMS) != {"frame"} else nn.Identity()
        self.streams = nn.ModuleDict({name: _stream(channels) for name, channels in self.STREAMS.items()})
        self.fc = nn.Linear(512 * len(self.streams), 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        differences = self.normalise((x[:, 1:] - x[:, :-1]).flatten(0, 1))
        frames = x[:, 1:].flatten(0, 1)
        inputs = {"frame": frames, "difference": differences, "both": torch.cat([frames, differences], dim=1)}
        features = torch.cat([stream(inputs[name]) for name, stream in self.streams.items()], dim=1)
        logits: torch.Tensor = self.fc(features.view(len(x), -1, self.fc.in_features).mean(1))
        return logits[:, 0]

    def adapt(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Weights of ResNet34 for every stream; others as they are."""
        if "conv1.weight" not in state:
            return dict(state)
        adapted = {f"normalise.{name}": value for name, value in self.normalise.state_dict().items()}
        for stream in self.STREAMS:
            adapted |= {f"streams.{stream}.{name}": value for name, value in state.items() if not name.startswith("fc.")}
            adapted[f"streams.{stream}.conv1.weight"] = _first_layer(state["conv1.weight"], stream)
        return adapted


class FrameDiffFrames(_FrameDiff):
    """The frames alone, all but the first, as the others get them: what differences add is measured against this."""

    STREAMS = MappingProxyType({"frame": 3})
    MAPS = "streams.frame.layer4"


class FrameDiffOnly(_FrameDiff):
    """The differences alone."""

    STREAMS = MappingProxyType({"difference": 3})
    MAPS = "streams.difference.layer4"


class FrameDiffEarly(_FrameDiff):
    """Frames and differences joined at the input."""

    STREAMS = MappingProxyType({"both": 6})
    MAPS = "streams.both.layer4"


class FrameDiffLate(_FrameDiff):
    """Frames and differences joined at the last layer."""

    STREAMS = MappingProxyType({"frame": 3, "difference": 3})
    MAPS = "streams.difference.layer4"  # of the frames' own stream framediff_frames shows them


def _stream(channels: int) -> nn.Module:
    """ResNet34 without its last layer: float32 [N,C,S,S] -> [N,512]."""
    network = resnet34(zero_init_residual=True)
    network.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.fc = nn.Identity()
    return network


def _first_layer(weight: torch.Tensor, stream: str) -> torch.Tensor:
    of_differences = weight.mean(dim=1, keepdim=True).expand_as(weight)
    return {"frame": weight, "difference": of_differences.clone(), "both": torch.cat([weight, of_differences], dim=1)}[stream]
