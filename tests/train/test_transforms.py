"""What the model sees of a stored face."""

import pytest
import torch

from dfdc_ray.train import transforms

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")  # torchvision's own v2.JPEG


def test_evaluation_scales_and_normalises() -> None:
    spec = transforms.recipe(32, "resnet34")
    image = torch.full((3, 50, 40), 255, dtype=torch.uint8)
    out = transforms.evaluation(spec)(image)
    assert out.shape == (3, 32, 32)
    expected = [(1 - mean) / std for mean, std in zip(spec["mean"], spec["std"], strict=True)]
    assert torch.allclose(out[:, 7, 9], torch.tensor(expected))


def test_training_repeats_with_the_generator_and_varies_without() -> None:
    torch.manual_seed(0)
    image = torch.randint(0, 255, (3, 40, 50), dtype=torch.uint8)
    transform = transforms.training(transforms.recipe(32, "resnet34"))
    torch.manual_seed(1)
    first = transform(image)
    torch.manual_seed(1)
    assert torch.equal(transform(image), first)
    others = [transform(image) for _ in range(4)]
    assert all(o.shape == (3, 32, 32) and o.dtype == torch.float32 for o in others)
    assert not any(torch.equal(o, first) for o in others)


def test_zoom_keeps_at_least_its_share_of_each_side() -> None:
    ramp = torch.arange(100, dtype=torch.uint8).repeat(3, 60, 1)  # the value is the column
    zoom = transforms.RandomZoom(100, smallest=0.8)
    torch.manual_seed(0)
    spans = [float(out[0, 50].max()) - float(out[0, 50].min()) for out in (zoom(ramp) for _ in range(50))]
    assert 77 <= min(spans) < 90
    assert max(spans) > 93
