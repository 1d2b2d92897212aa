"""Objectives and schedule against values worked out by hand."""

import math

import pytest
import torch

from dfdc_ray.train.loop import schedule
from dfdc_ray.train.objectives import bce, l2

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
