"""CutMix (Yun et al. 2019, https://arxiv.org/abs/1905.04899): a rectangle of each picture comes from another one of its batch, and its
share of the label with it. In clips it lasts for a stretch of frames, and the label is mixed by volume.
"""

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from dfdc_ray.shards.dataset import Batch

_CUT = v2.CutMix(alpha=1.0, num_classes=2)  # the paper's: all areas are equally likely


def cutmix(batch: Batch, share: float) -> Batch:
    """The batch, or with this probability the batch mixed with itself; labels become 0..1. Draws from torch's generator."""
    if float(torch.rand(())) >= share:
        return batch
    clips = batch.images.ndim == 5
    images, both = _CUT(tv_tensors.Video(batch.images) if clips else batch.images, batch.labels.long())
    images, labels = images.as_subclass(torch.Tensor), both[:, 1]
    if clips:
        frames = images.shape[1]
        length = int(torch.randint(1, frames + 1, ()))
        start = int(torch.randint(frames - length + 1, ()))
        outside = torch.ones(frames, dtype=torch.bool)
        outside[start : start + length] = False
        images[:, outside] = batch.images[:, outside]
        labels = torch.lerp(batch.labels, labels, length / frames)
    return batch._replace(images=images, labels=labels)
