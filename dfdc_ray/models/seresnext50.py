"""SE-ResNeXt50 32x4d (Hu et al. 2017, https://arxiv.org/abs/1709.01507; Xie et al. 2016, https://arxiv.org/abs/1611.05431) from timm, with
one output: the 2D half of the 5th place of the Deepfake Detection Challenge.
"""

from types import MappingProxyType

import timm
import torch
from timm.models import get_pretrained_cfg_value
from torch import nn


class SEResNeXt50(nn.Module):
    """float32 [N,3,S,S] -> logits [N]."""

    PRETRAINED = MappingProxyType({"imagenet": str(get_pretrained_cfg_value("seresnext50_32x4d.racm_in1k", "url"))})
    HEAD = ("body.fc.",)
    MAPS = "body.layer4"
    CHANNELS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    SIDE = None
    CLIPS = False

    def __init__(self) -> None:
        super().__init__()
        self.body = timm.create_model("seresnext50_32x4d", num_classes=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.body(x)
        return logits[:, 0]

    def adapt(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """timm's names for ours."""
        return {name if name.startswith("body.") else f"body.{name}": weight for name, weight in state.items()}
