"""Platt's scaling against scikit-learn and against scores whose probabilities are known."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from dfdc_ray.errors import UserError
from dfdc_ray.evaluate import calibration
from dfdc_ray.evaluate.calibration import Calibration, fit


def made(a: float, b: float) -> Calibration:
    return Calibration(rule="mean", a=a, b=b, reals=1, fakes=1, frames=10, unit="clips", data_hash="d", weights="w")


def drawn(n: int, *, a: float, b: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores, and labels that are fake with probability sigmoid(a * logit(score) + b)."""
    rng = np.random.default_rng(0)
    scores = rng.uniform(0.02, 0.98, n)
    return scores, (rng.random(n) < made(a, b)(scores)).astype(np.int64)


def test_it_finds_what_the_labels_were_drawn_by() -> None:
    scores, labels = drawn(50_000, a=0.4, b=1.2)
    assert fit(scores, labels) == pytest.approx((0.4, 1.2), abs=0.05)
    before, after = calibration.error(scores, labels), calibration.error(made(*fit(scores, labels))(scores), labels)
    assert before > 0.1
    assert after < 0.02


def test_against_scikit_learn() -> None:
    """Platt's targets are those of a logistic regression with an item of each class and a weight."""
    scores, labels = drawn(300, a=1.5, b=-0.5)
    fakes, reals = int(labels.sum()), int((labels == 0).sum())
    high, low = (fakes + 1) / (fakes + 2), 1 / (reals + 2)
    x = np.log(scores / (1 - scores))[:, None]
    twice = np.concatenate([x, x])
    weights = np.concatenate([np.where(labels == 1, high, low), np.where(labels == 1, 1 - high, 1 - low)])
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(twice, [1] * 300 + [0] * 300, sample_weight=weights)
    assert fit(scores, labels) == pytest.approx((model.coef_[0, 0], model.intercept_[0]), abs=1e-4)


def test_scores_that_separate_the_classes_stay_finite() -> None:
    a, b = fit(np.array([0.0, 0.1, 0.2, 0.8, 0.9, 1.0]), np.array([0, 0, 0, 1, 1, 1]))
    after = made(a, b)(np.array([0.0, 0.1, 0.9, 1.0]))
    assert 0 < after[0] < after[1] < 0.5 < after[2] < after[3] < 1


def test_a_video_of_another_number_of_frames_is_said_to_be_judged_roughly() -> None:
    assert made(1.0, 0.0).caveat(10) is made(1.0, 0.0).caveat(12) is None
    for other in (1, 32):
        assert made(1.0, 0.0).caveat(other) == f"the calibration is of 10 clips a video, and here are {other}"


@pytest.mark.parametrize(("labels", "says"), [([1, 1, 1, 1], "0 real and 4 fake"), ([1, 1, 0, 0], "nothing to calibrate")])
def test_what_cannot_be_calibrated(labels: list[int], says: str) -> None:
    with pytest.raises(UserError, match=says):
        fit(np.array([0.1, 0.2, 0.8, 0.9]), np.array(labels))


def test_the_calibration_error_by_hand() -> None:
    scores, labels = np.array([0.1, 0.1, 0.9, 0.9]), np.array([0, 1, 1, 1])
    assert calibration.error(scores, labels) == pytest.approx((0.4 + 0.1) / 2, abs=1e-6)


def test_it_is_kept_and_refused_for_other_weights(tmp_path: Path) -> None:
    assert calibration.load(str(tmp_path), weights="w") is None
    calibration.save(str(tmp_path), made(2.0, -1.0))
    assert calibration.load(str(tmp_path), weights="w") == made(2.0, -1.0)
    with pytest.raises(UserError, match="other weights"):
        calibration.load(str(tmp_path), weights="v")
    (tmp_path / calibration.FILE).write_text(json.dumps({"a": 1}))
    with pytest.raises(UserError, match="damaged"):
        calibration.load(str(tmp_path), weights="w")


def test_the_rule_with_the_lowest_log_loss_is_chosen() -> None:
    scores, labels = drawn(400, a=1.5, b=0.0)
    guesses = np.random.default_rng(1).uniform(0.02, 0.98, 400)
    upside_down = 1 - scores
    assert calibration.choose({"guess": guesses, "down": upside_down, "good": scores}, labels)[:3] == ("good", *fit(scores, labels))
    losses = calibration.choose({"guess": guesses, "down": upside_down, "good": scores}, labels)[3]
    assert set(losses) == {"guess", "good"}
    assert losses["good"] < losses["guess"]
    assert calibration.choose({"first": scores, "second": scores}, labels)[0] == "first"
    with pytest.raises(UserError, match="nothing to calibrate"):
        calibration.choose({"down": upside_down}, labels)


def test_a_scaling_that_hardly_heeds_the_score_has_a_threshold_all_the_same() -> None:
    always = made(0.001, 1.4)
    assert (always.threshold, replace(always, b=-1.4).threshold) == (0.0, 1.0)
