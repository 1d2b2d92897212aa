"""What training minimises. Targets: 1 fake, 0 real."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from dfdc_ray.config import Objective
from dfdc_ray.models.audiovisual import TEMPERATURE

MARGIN = 1.0  # of the triplets: torch's, which Bonettini et al. use


def bce(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean binary cross-entropy of the logits, in nats. float32 [N], [N] -> scalar."""
    return functional.binary_cross_entropy_with_logits(logits.float(), targets)


def l2(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean squared error of the sigmoid's output. float32 [N], [N] -> scalar."""
    return functional.mse_loss(torch.sigmoid(logits.float()), targets)


def triplet(outputs: tuple[torch.Tensor, torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
    """Of `Siamese`: the triplet margin loss of the features, and the cross-entropy of the logits, which trains the last layer alone.

    Each sample is an anchor, beside one of its class and one of the other, drawn from the batch by torch's generator.
    """
    logits, features = outputs
    same = targets[:, None] == targets[None]
    others = ~same
    same = same.fill_diagonal_(False)
    anchors = torch.nonzero(same.any(1) & others.any(1))[:, 0]
    if not len(anchors):  # one class alone
        return bce(logits, targets) + 0 * features.sum()
    near, far = (torch.multinomial(choice[anchors].float(), 1)[:, 0] for choice in (same, others))
    features = features.float()
    return bce(logits, targets) + functional.triplet_margin_loss(features[anchors], features[near], features[far], margin=MARGIN)


def sync(outputs: tuple[torch.Tensor, torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
    """Of `Synchrony`: in clips that are real, which sound of all their frames goes with a picture, and which picture with a sound; and the
    cross-entropy of the logits, which trains the last layers alone.

    The contrast of Chung and Zisserman 2016 ("Out of time"), as a choice among all frames of the clip (van den Oord et al. 2018, InfoNCE,
    https://arxiv.org/abs/1807.03748). So real clips alone teach the streams, each by as many pairs as it has frames.
    """
    logits, likeness = outputs
    real = likeness[targets == 0].float() / TEMPERATURE
    if not len(real):
        return bce(logits, targets) + 0 * likeness.sum()
    own = torch.arange(real.shape[1], device=real.device).expand(len(real), -1)
    choices = functional.cross_entropy(real.transpose(1, 2), own) + functional.cross_entropy(real, own)
    return bce(logits, targets) + choices


OBJECTIVES: dict[Objective, Callable[[Any, torch.Tensor], torch.Tensor]] = {"bce": bce, "l2": l2, "triplet": triplet, "sync": sync}


def for_training(model: nn.Module, objective: Objective) -> nn.Module:
    """The model as the objective wants it called."""
    if objective == "triplet":
        return Siamese(model)
    return Synchrony(model) if objective == "sync" else model


class Synchrony(nn.Module):
    """Gives logits [N] and the likeness [N,T,T] of pictures and sounds that they are decided by; the logits' gradient ends there."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        likeness: torch.Tensor = self.model.likeness(*inputs)  # type: ignore[operator]
        return self.model.verdict(likeness.detach()), likeness  # type: ignore[operator]


class Siamese(nn.Module):
    """Gives logits [N] and the features [N,D] that the model's last layer takes; the logits' gradient ends at that layer.

    Bonettini et al. 2020 (https://arxiv.org/abs/2004.07676, III-C) train the features by triplets first and the layer afterwards; here both
    are trained at once, each by its own loss.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        last: str = model.HEAD[0]  # type: ignore[index, assignment]
        model.get_submodule(last.rstrip(".")).register_forward_pre_hook(self._part)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits: torch.Tensor = self.model(*inputs)
        return logits, self.features

    def _part(self, _: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        self.features = inputs[0]
        return (inputs[0].detach(),)
