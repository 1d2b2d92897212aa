"""Metrics against hand-computed values and scikit-learn."""

import math

import numpy as np
import pytest
from sklearn import metrics as sk

from dfdc_ray.evaluate.metrics import INTERVALS, _weighted_curves, baselines, binary_metrics, bootstrap, change_of_auc, judge, log_losses


def _random(n: int = 400, seed: int = 0, shift: float = 0.2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores with ties, labels (0.8 fake) and 40 groups."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.8).astype(np.int64)
    scores = np.round(np.clip(rng.normal(0.5 + shift * (labels - 0.5), 0.2), 0.01, 0.99), 2)
    return scores, labels, np.array([f"g{i}" for i in rng.integers(40, size=n)])


def test_by_hand() -> None:
    result = binary_metrics(np.array([0.1, 0.8, 0.4, 0.7, 0.85, 0.9]), np.array([0, 0, 1, 1, 1, 1]))
    assert (result.n, result.reals, result.fakes) == (6, 2, 4)
    assert (result.real_as_real, result.real_as_fake, result.fake_as_real, result.fake_as_fake) == (1, 1, 1, 3)
    assert result.accuracy == pytest.approx(4 / 6)
    assert result.recall_real == pytest.approx(1 / 2)
    assert result.recall_fake == pytest.approx(3 / 4)
    assert result.balanced_accuracy == pytest.approx((1 / 2 + 3 / 4) / 2)
    assert result.auc == pytest.approx(6 / 8)  # of 8 pairs the fake is above the real in 6
    expected = -sum(math.log(p) for p in (0.9, 0.2, 0.4, 0.7, 0.85, 0.9)) / 6
    assert result.log_loss == pytest.approx(expected, abs=1e-12)
    assert result.pr_auc == pytest.approx((1 + 1 + 3 / 4 + 4 / 5) / 4)
    assert (result.recall_at_1, result.recall_at_10) == (1 / 2, 1 / 2)  # above the highest real
    assert result.eer == pytest.approx(1 / 2)  # at 0.8 half of the reals and half of the fakes are wrong


def test_against_scikit_learn() -> None:
    scores, labels, _ = _random()
    result = binary_metrics(scores, labels)
    said = (scores > 0.5).astype(int)
    assert result.accuracy == pytest.approx(sk.accuracy_score(labels, said), abs=1e-6)
    assert result.balanced_accuracy == pytest.approx(sk.balanced_accuracy_score(labels, said), abs=1e-6)
    assert result.recall_real == pytest.approx(sk.recall_score(labels, said, pos_label=0), abs=1e-6)
    assert result.recall_fake == pytest.approx(sk.recall_score(labels, said), abs=1e-6)
    assert result.log_loss == pytest.approx(sk.log_loss(labels, np.clip(scores, 1e-15, 1 - 1e-15)), abs=1e-9)
    assert result.auc == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-6)
    assert result.pr_auc == pytest.approx(sk.average_precision_score(labels, scores), abs=1e-6)
    fpr, tpr, _ = sk.roc_curve(labels, scores, drop_intermediate=False)
    for found, most in ((result.recall_at_1, 0.01), (result.recall_at_5, 0.05), (result.recall_at_10, 0.1)):
        assert found == pytest.approx(tpr[fpr <= most].max(), abs=1e-6)
    nearest = np.argmin(np.abs(fpr - (1 - tpr)))
    assert result.eer == pytest.approx((fpr[nearest] + 1 - tpr[nearest]) / 2, abs=1e-6)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_leaves_what_needs_both_undefined(label: int) -> None:
    result = binary_metrics(np.array([0.2, 0.6]), np.array([label, label]))
    assert result.accuracy == pytest.approx(0.5)
    assert result.log_loss is not None
    assert (result.auc, result.eer, result.balanced_accuracy) == (None, None, None)
    assert (result.recall_real is None) == (label == 1)
    assert (result.recall_fake is None) == (label == 0)


def test_nothing_at_all_is_undefined() -> None:
    result = binary_metrics(np.array([]), np.array([]))
    assert result.n == 0
    assert (result.accuracy, result.log_loss, result.auc) == (None, None, None)


def test_certain_mistakes_cost_what_kaggle_charges() -> None:
    assert log_losses(np.array([1.0, 0.0, 1.0]), np.array([0, 1, 1])) == pytest.approx([34.54, 34.54, 0], abs=0.01)


@pytest.mark.parametrize("bad", [1.5, -0.1, float("nan")])
def test_scores_that_are_not_probabilities_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="probabilities"):
        binary_metrics(np.array([0.5, bad]), np.array([0, 1]))


def test_replicates_equal_metrics_of_the_resampled_rows() -> None:
    """What a replicate reads off its curves is what the rows give, each repeated as often as its group was drawn."""
    scores, labels, groups = _random(n=120)
    names, group_of = np.unique(groups, return_inverse=True)
    weights = np.random.default_rng(1).integers(0, 4, size=(20, len(names))).astype(float)
    found = _weighted_curves(scores, labels, group_of, weights)
    assert sorted(found) == ["auc", "eer", "pr_auc", "recall_at_1", "recall_at_10", "recall_at_5"]
    for replicate, drawn in enumerate(weights):
        rows = np.repeat(np.arange(len(scores)), drawn[group_of].astype(int))
        expected = binary_metrics(scores[rows], labels[rows])
        for name, values in found.items():
            assert values[replicate] == pytest.approx(getattr(expected, name), abs=1e-6)


def test_a_change_is_told_from_none_by_the_same_draws() -> None:
    """A change of all scores alike is none, whatever the draw; one that drowns the scores is more than the interval of either."""
    scores, labels, groups = _random()
    same = change_of_auc(scores, scores**2, labels, groups)
    assert same is not None
    assert (same.low, same.high) == pytest.approx((0, 0), abs=1e-12)
    noise = np.random.default_rng(1).random(len(scores))
    worse = change_of_auc(scores, noise, labels, groups)
    assert worse is not None
    assert worse.low < binary_metrics(noise, labels).auc - binary_metrics(scores, labels).auc < worse.high < 0  # type: ignore[operator]
    assert change_of_auc(scores, noise, labels, np.zeros(len(scores))) is None


def test_bootstrap_is_reproducible_and_brackets_the_estimate() -> None:
    scores, labels, groups = _random()
    first, again, other = (bootstrap(scores, labels, groups, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    estimate = binary_metrics(scores, labels)
    for name in INTERVALS:
        interval = first[name]
        assert interval is not None
        assert interval.low <= getattr(estimate, name) <= interval.high
        assert 0 < interval.high - interval.low < 0.3
        assert interval.replicates == 1000


def test_bootstrap_has_the_width_that_theory_gives() -> None:
    """Accuracy over groups of one: the binomial standard error, within a tenth."""
    scores, labels, _ = _random(n=1000)
    accuracy = bootstrap(scores, labels, np.arange(1000))["accuracy"]
    share = binary_metrics(scores, labels).accuracy
    assert accuracy is not None
    assert share is not None
    assert accuracy.high - accuracy.low == pytest.approx(2 * 1.96 * math.sqrt(share * (1 - share) / 1000), rel=0.1)


def test_copies_within_a_group_do_not_narrow_the_interval() -> None:
    """Eight copies of every row in its own group say no more than one: this is why groups and not rows are drawn."""
    scores, labels, groups = _random()
    copies = bootstrap(np.tile(scores, 8), np.tile(labels, 8), np.tile(groups, 8))
    for name, interval in bootstrap(scores, labels, groups).items():
        copied = copies[name]
        assert interval is not None
        assert copied is not None
        assert (copied.low, copied.high) == pytest.approx((interval.low, interval.high), abs=1e-9)


def test_replicates_without_reals_leave_auc_out() -> None:
    scores, labels = np.array([0.1, 0.7, 0.8, 0.9]), np.array([0, 1, 1, 1])
    intervals = bootstrap(scores, labels, np.array(list("abcd")))
    assert intervals["auc"] is not None
    assert intervals["accuracy"] is not None
    assert 0 < intervals["auc"].replicates < intervals["accuracy"].replicates == 1000


def test_one_group_gives_no_interval_and_says_so() -> None:
    scores, labels, _ = _random(n=20)
    level = judge(scores, labels, np.zeros(20), train_prior=0.8)
    assert set(level.intervals.values()) == {None}
    assert "no intervals: 1 group" in level.interval_note


def test_few_groups_are_flagged() -> None:
    scores, labels, groups = _random()
    assert "rough" in judge(scores, labels, np.arange(400) % 5, train_prior=0.8).interval_note
    assert "rough" not in judge(scores, labels, groups, train_prior=0.8).interval_note


def test_intervals_over_families_stand_beside_those_over_larger_groups() -> None:
    scores, labels, groups = _random()
    families = np.arange(400) // 2
    level = judge(scores, labels, groups, train_prior=0.8, families=families)
    assert level.by_family == bootstrap(scores, labels, families)
    auc = level.by_family["auc"]
    assert auc is not None
    assert (
        f"over the 200 families, as if no person were in two of them: log loss {level.by_family['log_loss'].low:.4f}" in level.interval_note
    )  # type: ignore[union-attr]
    assert level.interval_note.endswith(f"ROC AUC {auc.low:.4f} to {auc.high:.4f}")
    same = judge(scores, labels, groups, train_prior=0.8, families=groups)
    assert same.by_family is None
    assert "families" not in same.interval_note


def test_baselines() -> None:
    labels = np.array([0, 1, 1, 1, 1])
    found = baselines(labels, train_prior=0.8)
    assert found["always_fake"].accuracy == pytest.approx(0.8)
    assert found["always_fake"].log_loss == pytest.approx(0.2 * 34.54, abs=0.01)
    assert found["training_majority"].accuracy == pytest.approx(0.8)
    assert found["constant_prior"].log_loss == pytest.approx(-(0.2 * math.log(0.2) + 0.8 * math.log(0.8)))  # 0.500
    assert found["constant_prior"].auc == pytest.approx(0.5)
    assert baselines(labels, train_prior=0.3)["training_majority"].accuracy == pytest.approx(0.2)  # always real
