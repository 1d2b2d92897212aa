"""EfficientNetB4 (Tan and Le 2019, https://arxiv.org/abs/1905.11946) from torchvision with one output, and the same with the attention of
Bonettini et al. 2020 (https://arxiv.org/abs/2004.07676), whose ensemble is of these two.
"""

from types import MappingProxyType

import torch
from torch import nn
from torchvision.models.efficientnet import EfficientNet_B4_Weights, MBConv, efficientnet_b4

_ATTENDED = 4  # of torchvision's stages, the stem included: 56 channels at an eighth of the input's side, as in the paper's figure 2


class EfficientNetB4(nn.Module):
    """float32 [N,3,S,S] -> logits [N]. Parameters keep torchvision's names, so that its weights load as they are."""

    PRETRAINED = MappingProxyType({"imagenet": EfficientNet_B4_Weights.IMAGENET1K_V1})
    HEAD: tuple[str, ...] = ("classifier.",)
    MAPS = "features.8"
    CHANNELS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    SIDE = None
    CLIPS = False

    def __init__(self) -> None:
        super().__init__()
        network = efficientnet_b4(num_classes=1)
        self.features, self.avgpool, self.classifier = network.features, network.avgpool, network.classifier
        nn.init.normal_(self.get_parameter("classifier.1.weight"), std=0.01)  # torchvision's own for one output, +-1, are large
        for block in self.features.modules():
            if isinstance(block, MBConv) and block.use_res_connect:
                nn.init.zeros_(block.block[-1][1].weight)  # blocks begin as identities, as those of our ResNet34

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.avgpool(self.maps(x)).flatten(1))
        return logits[:, 0]

    def maps(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [N,3,S,S] -> [N,1792,S/32,S/32], what is averaged for the last layer."""
        maps: torch.Tensor = self.features(x)
        return maps


class EfficientNetB4Attention(EfficientNetB4):
    """With a map, 0..1, of where to look, by a 1x1 convolution of the features of the third group of blocks, which it multiplies."""

    HEAD = ("classifier.", "attention.")

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Conv2d(56, 1, 1)

    def maps(self, x: torch.Tensor) -> torch.Tensor:
        """As of EfficientNetB4, with the attention."""
        early, late = self.features[:_ATTENDED], self.features[_ATTENDED:]
        features = early(x)
        maps: torch.Tensor = late(features * torch.sigmoid(self.attention(features)))
        return maps
