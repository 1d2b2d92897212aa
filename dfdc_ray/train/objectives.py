"""What training minimises. Targets: 1 fake, 0 real."""

from collections.abc import Callable

import torch
from torch.nn import functional

from dfdc_ray.config import Objective


def bce(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean binary cross-entropy of the logits, in nats. float32 [N], [N] -> scalar."""
    return functional.binary_cross_entropy_with_logits(logits, targets)


def l2(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean squared error of the sigmoid's output. float32 [N], [N] -> scalar."""
    return functional.mse_loss(torch.sigmoid(logits), targets)


OBJECTIVES: dict[Objective, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {"bce": bce, "l2": l2}
