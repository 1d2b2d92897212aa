"""Objectives and schedule against values worked out by hand."""

import math

import pytest
import torch
from torch import nn

from dfdc_ray.models import NAMES, create_model, only_side, takes_clips, takes_sound
from dfdc_ray.train.loop import schedule
from dfdc_ray.train.objectives import Siamese, bce, for_training, l2, sync, triplet
from dfdc_ray.video.sound import WINDOW

LOGITS = torch.tensor([0.0, math.log(3)])  # probabilities 1/2 and 3/4
TARGETS = torch.tensor([1.0, 0.0])


def test_bce() -> None:
    assert bce(LOGITS, TARGETS).item() == pytest.approx((math.log(2) + math.log(4)) / 2, rel=1e-6)


def test_l2() -> None:
    assert l2(LOGITS, TARGETS).item() == pytest.approx((1 / 4 + 9 / 16) / 2, rel=1e-6)


def test_schedule_rises_then_falls_to_nothing() -> None:
    factors = [schedule(step, 100) for step in range(100)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors == [*sorted(factors[:5]), *sorted(factors[5:], reverse=True)]
    assert schedule(5 + 95 // 2, 100) == pytest.approx(0.5, abs=0.01)
    assert schedule(100, 100) == pytest.approx(0, abs=1e-9)


class Plane(nn.Module):
    """Features of two numbers, and a last layer."""

    HEAD = ("last.", "none.")

    def __init__(self) -> None:
        super().__init__()
        self.features, self.last = nn.Linear(2, 2, bias=False), nn.Linear(2, 1)
        with torch.no_grad():
            self.features.weight.copy_(torch.eye(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.last(self.features(x))
        return logits[:, 0]


def test_sync_is_of_real_clips_alone() -> None:
    """Every picture likest to its own sound, or to that of the next frame; the loss of both choices is known."""
    own, next_one, logits = torch.eye(4)[None], torch.eye(4).roll(1, 1)[None], torch.zeros(1)
    real, fake = torch.zeros(1), torch.ones(1)
    right = math.log(1 + 3 * math.exp(-10))  # of likenesses 1 and 0, at a temperature of 0.1
    assert sync((logits, own), real).item() == pytest.approx(math.log(2) + 2 * right, abs=1e-5)
    assert sync((logits, next_one), real).item() == pytest.approx(math.log(2) + 2 * (10 + right), abs=1e-4)
    assert sync((logits, next_one), fake).item() == pytest.approx(math.log(2), abs=1e-6)


def test_the_verdict_on_synchrony_does_not_teach_the_streams() -> None:
    model = create_model("av_sync")
    logits, likeness = for_training(model, "sync")(torch.rand(2, 4, 3, 32, 32), torch.rand(2, 4, WINDOW))
    logits.sum().backward()
    taught = {name.partition(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert taught == {"decide"}
    assert likeness.shape == (2, 4, 4)


def test_triplets() -> None:
    """Two reals a distance of 1 apart, one fake 3 and 4 from them: each anchor's loss is known, whatever is drawn."""
    points, targets = torch.tensor([[0.0, 0.0], [1.0, 0.0], [4.0, 0.0]]), torch.tensor([0.0, 0.0, 1.0])
    siamese = Siamese(Plane())
    logits, features = siamese(points)
    assert torch.equal(features, points)
    assert triplet((logits, features), targets).item() == pytest.approx(
        bce(logits, targets).item(), abs=1e-5
    )  # 1 - 4 + 1 and 1 - 3 + 1 < 0
    near = (logits, features * 0.25)  # distances 0.25, and 1 and 0.75: losses 0.25 and 0.5
    assert triplet(near, targets).item() == pytest.approx(bce(logits, targets).item() + 0.375, abs=1e-5)


def test_each_loss_of_triplets_trains_its_own_part() -> None:
    points, targets = torch.tensor([[0.0, 0.0], [0.1, 0.0], [0.2, 0.0]]), torch.tensor([0.0, 0.0, 1.0])
    siamese = Siamese(Plane())
    bce(siamese(points)[0], targets).backward()
    assert siamese.model.features.weight.grad is None
    assert siamese.model.last.weight.grad.abs().sum() > 0
    siamese.zero_grad(set_to_none=True)
    (triplet(siamese(points), targets) - bce(siamese(points)[0], targets)).backward()
    assert siamese.model.features.weight.grad.abs().sum() > 0
    assert siamese.model.last.weight.grad.abs().sum() == 0


def test_a_batch_of_one_class_has_no_triplets() -> None:
    siamese = Siamese(Plane())
    outputs = siamese(torch.rand(3, 2))
    assert triplet(outputs, torch.ones(3)).item() == pytest.approx(bce(outputs[0], torch.ones(3)).item())


@pytest.mark.parametrize("name", NAMES)
def test_every_model_has_features_for_triplets(name: str) -> None:
    model = create_model(name)
    side = only_side(name) or 64
    inputs = [torch.rand(2, 8, 3, side, side) if takes_clips(name) else torch.rand(2, 3, side, side)]
    inputs += [torch.rand(2, 8, WINDOW)] if takes_sound(name) else []
    logits, features = for_training(model, "triplet")(*inputs)
    assert logits.shape == (2,)
    assert features.shape == (2, model.get_submodule(_last_layer(model)).in_features)


def _last_layer(model: nn.Module) -> str:
    return [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)][-1]
