"""Networks that look at space and time at once, from torchvision: R3D-18 and R(2+1)D-18 (Tran et al. 2018, https://arxiv.org/abs/1711.11248),
and ResNet34 with its kernels inflated in time (Carreira and Zisserman 2017, https://arxiv.org/abs/1705.07750).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torchvision.models.resnet import ResNet34_Weights
from torchvision.models.video import R2Plus1D_18_Weights, R3D_18_Weights
from torchvision.models.video.resnet import BasicBlock, BasicStem, Conv2Plus1D, Conv3DSimple, R2Plus1dStem, VideoResNet

_KINETICS = ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989))


class _Clips(VideoResNet):
    """float32 [N,T,3,S,S] -> logits [N]. Parameters keep torchvision's names, so that its weights load as they are."""

    HEAD = ("fc.",)
    MAPS = "layer4"
    CHANNELS = _KINETICS
    SIDE = None
    CLIPS = True

    def __init__(self, convolution: Any, layers: Sequence[int], stem: Callable[..., nn.Module]) -> None:
        super().__init__(BasicBlock, [convolution] * 4, list(layers), stem, num_classes=1)
        for block in self.modules():
            if isinstance(block, BasicBlock):
                nn.init.zeros_(block.conv2[1].weight)  # blocks begin as identities, as those of our ResNet34

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.transpose(1, 2))[:, 0]


class R3D18(_Clips):
    """3x3x3 convolutions."""

    PRETRAINED = MappingProxyType({"kinetics": R3D_18_Weights.KINETICS400_V1})

    def __init__(self) -> None:
        super().__init__(Conv3DSimple, (2, 2, 2, 2), BasicStem)


class R2Plus1D18(_Clips):
    """Each of them as one in space and one in time."""

    PRETRAINED = MappingProxyType({"kinetics": R2Plus1D_18_Weights.KINETICS400_V1})

    def __init__(self) -> None:
        super().__init__(Conv2Plus1D, (2, 2, 2, 2), R2Plus1dStem)


class _Stem(nn.Sequential):
    """ResNet's own, with its pooling, and three frames deep."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv3d(3, 64, (3, 7, 7), stride=(1, 2, 2), padding=(1, 3, 3), bias=False),
            nn.BatchNorm3d(64),
            nn.ReLU(inplace=True),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        )


class ResNet34In3D(_Clips):
    """ResNet34 with 3x3x3 in place of 3x3 convolutions. It takes weights of ResNet34, such as a checkpoint's: each kernel three times, a
    third of it each time, so that a clip of equal frames gives what the frame gave (but for the clip's ends, which are padded).
    """

    PRETRAINED = MappingProxyType({"imagenet": ResNet34_Weights.IMAGENET1K_V1})  # `adapt` inflates them
    CHANNELS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    def __init__(self) -> None:
        super().__init__(Conv3DSimple, (3, 4, 6, 3), _Stem)

    def adapt(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Weights of ResNet34 under the names and in the shapes of these; others as they are."""
        if state.get("conv1.weight") is None:
            return dict(state)
        return {_in_3d(name): _inflated(name, weight) for name, weight in state.items()}


def _in_3d(name: str) -> str:
    for before, after in (
        (r"^conv1\.", "stem.0."),
        (r"^bn1\.", "stem.1."),
        (r"(layer\d\.\d+)\.conv(\d)\.", r"\1.conv\2.0."),
        (r"(layer\d\.\d+)\.bn(\d)\.", r"\1.conv\2.1."),
    ):
        name = re.sub(before, after, name)
    return name


def _inflated(name: str, weight: torch.Tensor) -> torch.Tensor:
    if weight.ndim != 4:
        return weight
    depth = 1 if ".downsample." in name else 3
    return weight[:, :, None].repeat(1, 1, depth, 1, 1) / depth
