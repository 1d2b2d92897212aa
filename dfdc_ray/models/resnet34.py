"""ResNet34 (He et al. 2015, https://arxiv.org/abs/1512.03385) from torchvision, with one output."""

from types import MappingProxyType

import torch
from torchvision.models.resnet import BasicBlock, ResNet, ResNet34_Weights


class ResNet34(ResNet):
    """float32 [N,3,S,S] -> logits [N]. Parameters keep torchvision's names, so that its weights load as they are."""

    PRETRAINED = MappingProxyType({"imagenet": ResNet34_Weights.IMAGENET1K_V1})
    HEAD = ("fc.",)
    MAPS = "layer4"
    CHANNELS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    SIDE = None
    CLIPS = False

    def __init__(self) -> None:
        # Blocks begin as identities, which speeds up training from scratch (Goyal et al. 2017, https://arxiv.org/abs/1706.02677, 5.1).
        super().__init__(BasicBlock, [3, 4, 6, 3], num_classes=1, zero_init_residual=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)[:, 0]
