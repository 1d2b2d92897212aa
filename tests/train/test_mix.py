"""What a mixed batch shows, or sounds like, and what its labels say agree."""

import pytest
import torch

from dfdc_ray.shards.dataset import Batch
from dfdc_ray.train.mix import cutmix, misplace


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


@pytest.mark.parametrize("frames", [8, 2])
def test_sound_that_is_not_its_own_makes_a_fake_of_a_real_clip(frames: int) -> None:
    """The sound of frame t of clip i is 100 i + t: whose it is, and when, can be read off."""
    torch.manual_seed(0)
    labels = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0])
    own = 100.0 * torch.arange(5)[:, None] + torch.arange(frames)
    batch = Batch(torch.zeros(5, frames, 3, 4, 4), labels, torch.arange(5), own[..., None].expand(5, frames, 3).clone())
    changed, lags, others = 0, set(), 0
    for _ in range(400):
        mixed = misplace(batch, 0.3)
        for i, (sound, label) in enumerate(zip(mixed.sound[..., 0], mixed.labels, strict=True)):
            whose, when = (sound / 100).long(), sound % 100
            same = torch.equal(sound, own[i])
            assert label == (labels[i] if same else 1)
            assert same or labels[i] == 0  # fakes keep theirs
            assert len(whose.unique()) == 1
            if not same and whose[0] == i:
                lags.update(((when - torch.arange(frames)) % frames).tolist())
            others += int(whose[0] != i)
            changed += not same
    assert 0.25 < changed / (400 * 4) < 0.35
    assert lags == ({2.0, 3.0, 4.0, 5.0, 6.0} if frames == 8 else set())
    assert others == pytest.approx(changed / 2, rel=0.15) if frames == 8 else others == changed
    assert torch.equal(batch.sound[..., 0], own)
    assert torch.equal(misplace(batch, 0.0).labels, labels)
