"""CutMix: what a mixed batch shows and what its labels say agree, in pictures and in clips."""

import pytest
import torch

from dfdc_ray.shards.dataset import Batch
from dfdc_ray.train.mix import cutmix


def _batch(*shape: int) -> Batch:
    """Pictures that are their label everywhere."""
    labels = torch.tensor([0.0, 1.0, 1.0, 0.0])
    images = labels.view(4, *[1] * len(shape)).expand(4, *shape).clone()
    return Batch(images, labels, torch.arange(4))


@pytest.mark.parametrize("shape", [(3, 20, 20), (6, 3, 20, 20)])
def test_a_label_is_the_share_of_the_picture_that_is_fake(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    batch, shares, whole_frames = _batch(*shape), set(), set()
    for _ in range(50):
        mixed = cutmix(batch, 1.0)
        assert mixed.images.shape == batch.images.shape
        assert mixed.labels.dtype == torch.float32
        assert torch.allclose(mixed.images.flatten(1).mean(1), mixed.labels, atol=1e-6)
        shares.update(mixed.labels.tolist())
        if len(shape) == 4:
            whole_frames.add(int((mixed.images == batch.images).flatten(2).all(2).all(0).sum()))
    assert len(shares) > 40
    assert len(whole_frames) > 3 or len(shape) == 3  # the cut lasts for a part of the clip
    assert torch.equal(batch.images, _batch(*shape).images)


def test_as_often_as_asked() -> None:
    torch.manual_seed(0)
    batch = _batch(3, 8, 8)
    changed = sum(cutmix(batch, 0.3) is not batch for _ in range(1000))
    assert 250 < changed < 350
    assert cutmix(batch, 0.0) is batch


def test_the_generator_decides() -> None:
    batch, found = _batch(6, 3, 20, 20), []
    for _ in range(2):
        torch.manual_seed(7)
        found.append(cutmix(batch, 1.0).images)
    assert torch.equal(*found)
