"""Lightness and skin tone of pictures whose colours are known."""

import numpy as np
import pytest
import torch
from skimage.color import rgb2lab

from dfdc_ray.evaluate.appearance import appearance, skin_tone_class


def plain(*rgb: float) -> torch.Tensor:
    return torch.tensor(rgb).view(1, 3, 1, 1).expand(1, 3, 30, 30)


@pytest.mark.parametrize("rgb", [(0.9, 0.75, 0.65), (0.55, 0.38, 0.28), (0.2, 0.12, 0.08)])
def test_against_scikit_image(rgb: tuple[float, float, float]) -> None:
    lightness, _, b = rgb2lab(np.array(rgb).reshape(1, 1, 3))[0, 0]
    assert appearance(plain(*rgb))[0] == pytest.approx(
        [lightness, np.degrees(np.arctan((lightness - 50) / b))], abs=0.5
    )  # OpenCV takes roots by a table


def test_only_the_middle_third_counts() -> None:
    picture = plain(0.0, 0.0, 0.0).clone()
    picture[..., 10:20, 10:20] = 1.0
    assert appearance(picture)[0, 0] == pytest.approx(100, abs=0.1)


def test_grey_has_no_tone_but_an_angle() -> None:
    assert appearance(plain(0.9, 0.9, 0.9))[0, 1] == pytest.approx(90, abs=1)
    assert appearance(plain(0.1, 0.1, 0.1))[0, 1] == pytest.approx(-90, abs=1)


def test_classes() -> None:
    angles = (60, 55, 42, 30, 15, 0, -29, -31, -90)
    assert [skin_tone_class(a) for a in angles] == [
        *("very light", "light", "light", "intermediate", "tan", "brown", "brown", "dark", "dark"),
    ]
