"""What is done to a whole batch of training samples.

CutMix (Yun et al. 2019, https://arxiv.org/abs/1905.04899): a rectangle of each picture comes from another one of its batch, and its
share of the label with it. In clips it lasts for a stretch of frames, and the label is mixed by volume.

Sound out of place: real clips get the sound of another moment or of another clip, and are fakes then. So the synchrony of lips and sound is
learnt without fakes (Chung and Zisserman 2016, "Out of time: automated lip sync in the wild").
"""

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from dfdc_ray.shards.dataset import Batch

_CUT = v2.CutMix(alpha=1.0, num_classes=2)  # the paper's: all areas are equally likely


def misplace(batch: Batch, share: float) -> Batch:
    """The batch, in which so large a share of the real clips (each by itself by chance) has a sound that is not its own, and the label 1.

    Half of them get that of a quarter of the clip's frames or more before or after, the others (in clips of less than four frames, all)
    that of the next clip. Two clips at least. Draws from torch's generator.
    """
    n, frames = batch.sound.shape[:2]
    chosen = (batch.labels == 0) & (torch.rand(n) < share)
    shifts = torch.randint(frames // 4, frames - frames // 4 + 1, (n,))
    places = (torch.arange(frames) + shifts[:, None]) % frames
    elsewhen = batch.sound.gather(1, places[..., None].expand_as(batch.sound))
    other = torch.where((torch.rand(n) < (0.5 if frames >= 4 else 0.0))[:, None, None], elsewhen, batch.sound.roll(1, 0))
    sound = torch.where(chosen[:, None, None], other, batch.sound)
    return batch._replace(sound=sound, labels=torch.where(chosen, torch.ones_like(batch.labels), batch.labels))


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
