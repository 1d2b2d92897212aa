"""Each change makes a picture worse as it says, and no more; the same each time."""

import pickle

import pytest
import torch

from dfdc_ray.evaluate.robustness import CHANGES


@pytest.fixture(scope="module")
def picture() -> torch.Tensor:
    """A smooth picture with some texture, odd sides, uint8 [3,61,47]."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(0, 1, 61), torch.linspace(0, 1, 47), indexing="ij")
    smooth = torch.stack([x, y, 1 - x]) * 160 + 40
    return (smooth + 12 * torch.randn(3, 61, 47, generator=generator)).clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("name", CHANGES)
def test_same_shape_another_picture_and_the_same_each_time(picture: torch.Tensor, name: str) -> None:
    before = picture.clone()
    changed = CHANGES[name](picture)
    assert (changed.shape, changed.dtype) == (picture.shape, torch.uint8)
    assert torch.equal(picture, before)
    assert torch.equal(pickle.loads(pickle.dumps(CHANGES[name]))(picture), changed)  # loader processes get it pickled
    distance = (changed.float() - picture.float()).abs().mean()
    assert 2 < distance < 70  # still the same picture


def _error(name: str, picture: torch.Tensor) -> float:
    return float((CHANGES[name](picture).float() - picture.float()).square().mean())


def test_the_stronger_of_two_does_more(picture: torch.Tensor) -> None:
    assert _error("JPEG, quality 30", picture) > _error("JPEG, quality 50", picture)
    assert _error("H.264, crf 40", picture) > _error("H.264, crf 32", picture)


def test_gamma_goes_the_way_it_says(picture: torch.Tensor) -> None:
    mean = picture.float().mean()
    assert CHANGES["gamma 0.5 (lighter)"](picture).float().mean() > mean + 20
    assert CHANGES["gamma 2 (darker)"](picture).float().mean() < mean - 20


def test_noise_has_the_deviation_it_says() -> None:
    grey = torch.full((3, 100, 100), 128, dtype=torch.uint8)
    assert (CHANGES["noise, sigma 10 of 255"](grey).float() - 128).std() == pytest.approx(10, abs=0.3)


@pytest.mark.parametrize("name", CHANGES)
def test_a_picture_of_a_few_pixels(name: str) -> None:
    tiny = torch.full((3, 4, 5), 90, dtype=torch.uint8)
    assert CHANGES[name](tiny).shape == tiny.shape
