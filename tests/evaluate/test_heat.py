"""Heat maps: of every model that has them, exact on one that can be worked out by hand, and hot where the cause is."""

from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from dfdc_ray.evaluate.heat import explains, heat_maps, overlay
from dfdc_ray.evaluate.members import Member, Members
from dfdc_ray.evaluate.scorer import Scorer
from dfdc_ray.models import NAMES, create_model, only_side
from dfdc_ray.train import transforms

WITHOUT = {"mfcc_lstm", "av_sync"}


def png(picture: np.ndarray) -> bytes:
    return cv2.imencode(".png", picture[..., ::-1])[1].tobytes()


def scorer_of(*members: Member) -> Scorer:
    return Scorer(Members(members, 0.0, {"model": "test"}))


@pytest.mark.parametrize("name", NAMES)
def test_each_model_says_where_or_has_no_place_to_say(name: str) -> None:
    torch.manual_seed(0)
    side = only_side(name) or 64
    member = Member(name, create_model(name), transforms.recipe(side, name))
    assert explains(member) == (name not in WITHOUT)
    if name in WITHOUT:
        return
    pictures = np.random.default_rng(0).integers(0, 255, (4, 80, 80, 3), dtype=np.uint8)
    faces = [tuple(png(p) for p in pictures)] if member.clips else [(png(p),) for p in pictures]
    found = heat_maps(scorer_of(member), faces)
    assert found is not None
    seen, heat = found
    assert seen.shape == ((1, 4, side, side, 3) if member.clips else (4, side, side, 3))
    assert (seen.dtype, heat.dtype, heat.shape) == (np.uint8, np.float32, seen.shape[:-1])
    assert heat.min() >= 0
    assert heat.max() == pytest.approx(1) or heat.max() == 0


class _Red(torch.nn.Module):
    """The logit is the mean of red; its maps are the picture at a quarter of its size."""

    MAPS = "pool"
    CLIPS = False

    def __init__(self) -> None:
        super().__init__()
        self.pool = torch.nn.AvgPool2d(4)
        self.weight = torch.nn.Parameter(torch.tensor([1.0, 0.0, 0.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.pool(x).mean((2, 3)) * self.weight).sum(1)


def test_heat_is_where_the_logit_comes_from() -> None:
    """Grad-CAM of this model is the red of the picture, at a quarter of its size and stretched again."""
    recipe: dict[str, Any] = transforms.recipe(64, "resnet34") | {"mean": [0.0] * 3, "std": [1.0] * 3}
    member = Member("resnet34", _Red(), recipe)
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[16:32, 32:48, 0] = 255
    picture[40:60, 8:24, 1] = 255  # green says nothing
    found = heat_maps(scorer_of(member), [(png(picture),)])
    assert found is not None
    _, heat = found
    small = torch.from_numpy(picture[..., 0] / 255.0)[None, None].float()
    exact = torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(small, 4), (64, 64), mode="bilinear")[0, 0]
    assert heat[0] == pytest.approx((exact / exact.max()).numpy(), abs=1e-4)


@pytest.mark.parametrize(("sign", "weight", "hot"), [(-5.0, 0.5, False), (5.0, 0.5, True), (-5.0, -0.5, True), (5.0, -0.5, False)])
def test_what_speaks_against_a_fake_in_one_model_takes_from_the_others(sign: float, weight: float, hot: bool) -> None:
    recipe: dict[str, Any] = transforms.recipe(64, "resnet34") | {"mean": [0.0] * 3, "std": [1.0] * 3}
    one, other = _Red(), _Red()
    with torch.no_grad():
        other.weight *= sign
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[16:32, 32:48, 0] = 255
    scorer = scorer_of(Member("resnet34", one, recipe, 0.5), Member("resnet34", other, recipe, weight))
    found = heat_maps(scorer, [(png(picture),)])
    assert found is not None
    assert (found[1][0, 24, 40] == pytest.approx(1, abs=1e-6)) == hot
    assert (found[1].max() == 0) != hot
    plain = scorer.score([(png(np.zeros_like(picture)),)])[0]
    assert (scorer.score([(png(picture),)])[0] > plain) == hot


def test_cold_places_stay_as_they_are() -> None:
    picture = np.full((4, 4, 3), 77, np.uint8)
    heat = np.zeros((4, 4))
    heat[1, 2] = 1
    mixed = overlay(picture, heat)
    changed = (mixed != picture).any(-1)
    assert changed[1, 2]
    assert changed.sum() == 1


def test_none_without_maps_or_pictures() -> None:
    member = SimpleNamespace(
        name="av_sync", model=create_model("av_sync"), weight=1.0, clips=True, transform=transforms.recipe(32, "av_sync")
    )
    assert heat_maps(SimpleNamespace(members=(member,), clips=True, device=torch.device("cpu")), [(b"",)]) is None
