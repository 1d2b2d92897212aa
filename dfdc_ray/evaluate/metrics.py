"""How good are scores (probability of fake) against labels (0 real, 1 fake): metrics, their confidence intervals, and the baselines.

A metric that one class alone leaves undefined is None, never a number that looks like one.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch

THRESHOLD = 0.5  # a score above it says fake
LOG_LOSS_EPS = 1e-15  # Kaggle's LogLoss clips probabilities to [1e-15, 1 - 1e-15], so one certain mistake costs 34.54
REPLICATES = 1000
FEW_GROUPS = 20  # below it the percentile bootstrap over groups is known to be too narrow
_CELLS = 2_000_000  # of replicates times items that are held at a time: some 100 MB
_AT = {"recall_at_1": 0.01, "recall_at_5": 0.05, "recall_at_10": 0.1}  # false positives
INTERVALS = ("accuracy", "balanced_accuracy", "recall_real", "recall_fake", "log_loss", "auc", "pr_auc", "eer", *_AT)
_IN_NOTE = {"log_loss": "log loss", "auc": "ROC AUC"}


@dataclass(frozen=True)
class Metrics:
    """Of n scored items; None: undefined, because `reals` or `fakes` is zero."""

    n: int
    reals: int
    fakes: int
    accuracy: float | None
    balanced_accuracy: float | None
    recall_real: float | None
    recall_fake: float | None
    log_loss: float | None
    auc: float | None
    pr_auc: float | None  # average precision, fakes being positive
    eer: float | None
    recall_at_1: float | None  # share of fakes above a threshold that at most 1 % of the reals pass
    recall_at_5: float | None
    recall_at_10: float | None
    real_as_real: int
    real_as_fake: int
    fake_as_real: int
    fake_as_fake: int


@dataclass(frozen=True)
class Interval:
    """A 95 % confidence interval, from `replicates` resamples in which the metric was defined."""

    low: float
    high: float
    replicates: int


@dataclass(frozen=True)
class Level:
    """Everything said about the scores of one level (frames or videos)."""

    metrics: Metrics
    intervals: Mapping[str, Interval | None]  # by name in INTERVALS
    by_family: Mapping[str, Interval | None] | None  # the same over families, where groups are larger than those; None: they are not
    groups: int
    interval_note: str
    baselines: Mapping[str, Metrics]


def _tensors(scores: np.ndarray, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    if len(scores) and not (scores.min() >= 0 and scores.max() <= 1):  # torchmetrics would take them for logits; also catches NaN
        raise ValueError("scores must be probabilities in [0, 1]")
    return torch.from_numpy(np.asarray(scores, dtype=np.float64)), torch.from_numpy(np.asarray(labels, dtype=np.int64))


def log_losses(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Binary cross-entropy in nats of every item, float64 [N], with Kaggle's clipping."""
    preds, target = _tensors(scores, labels)
    preds = preds.clamp(LOG_LOSS_EPS, 1 - LOG_LOSS_EPS)
    return torch.nn.functional.binary_cross_entropy(preds, target.double(), reduction="none").numpy()


@functools.cache
def torchmetrics() -> ModuleType:
    """torchmetrics' functions for two classes, imported when the first is wanted: 3 s of CPU time, for which `predict` has no use."""
    from torchmetrics.functional import classification

    return classification


def roc_curve(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates (fake is positive) at every distinct score; both classes must be there."""
    fpr, tpr, _ = torchmetrics().binary_roc(*_tensors(scores, labels))
    return fpr.numpy(), tpr.numpy()


def pr_curve(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision (fake is positive) at every distinct score, recall ascending; both classes must be there."""
    precision, recall, _ = torchmetrics().binary_precision_recall_curve(*_tensors(scores, labels))
    return recall.flip(0).numpy(), precision.flip(0).numpy()


def binary_metrics(scores: np.ndarray, labels: np.ndarray) -> Metrics:
    """All metrics of scores in [0, 1] against labels (0 real, 1 fake), both [N].

    torchmetrics computes them; its EER is the mean of both error rates at the threshold where they differ least. Raises ValueError for
    scores outside [0, 1].
    """
    preds, target = _tensors(scores, labels)
    fakes = int(target.sum())
    reals = len(target) - fakes
    both = reals > 0 and fakes > 0
    confusion = torchmetrics().binary_confusion_matrix(preds, target, threshold=THRESHOLD).tolist() if len(target) else [[0, 0], [0, 0]]
    recall_real = torchmetrics().binary_specificity(preds, target, threshold=THRESHOLD).item() if reals else None
    recall_fake = torchmetrics().binary_recall(preds, target, threshold=THRESHOLD).item() if fakes else None
    return Metrics(
        n=len(target),
        reals=reals,
        fakes=fakes,
        accuracy=torchmetrics().binary_accuracy(preds, target, threshold=THRESHOLD).item() if len(target) else None,
        balanced_accuracy=None if recall_real is None or recall_fake is None else (recall_real + recall_fake) / 2,
        recall_real=recall_real,
        recall_fake=recall_fake,
        log_loss=float(log_losses(scores, labels).mean()) if len(target) else None,
        auc=torchmetrics().binary_auroc(preds, target).item() if both else None,
        pr_auc=torchmetrics().binary_average_precision(preds, target).item() if both else None,
        eer=torchmetrics().binary_eer(preds, target).item() if both else None,
        recall_at_1=_recall_at(preds, target, 1) if both else None,
        recall_at_5=_recall_at(preds, target, 5) if both else None,
        recall_at_10=_recall_at(preds, target, 10) if both else None,
        real_as_real=confusion[0][0],
        real_as_fake=confusion[0][1],
        fake_as_real=confusion[1][0],
        fake_as_fake=confusion[1][1],
    )


def _recall_at(preds: torch.Tensor, target: torch.Tensor, percent: int) -> float:
    """Recall of fakes where at most so many per cent of the reals are called fake."""
    return float(torchmetrics().binary_sensitivity_at_specificity(preds, target, min_specificity=1 - percent / 100)[0])


def _draw(groups: np.ndarray, replicates: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """int [N]: the group of each item; float64 [B, G]: how often each replicate draws each group."""
    names, group_of = np.unique(groups, return_inverse=True)
    count, rng = len(names), np.random.default_rng(seed)
    return group_of, np.stack([np.bincount(rng.integers(count, size=count), minlength=count) for _ in range(replicates)]).astype(np.float64)


def _weighted_curves(scores: np.ndarray, labels: np.ndarray, group_of: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """What is read off the ROC and PR curves, float64 [B] each, as `binary_metrics` does of items repeated as often as weights [B, G] says.

    NaN: undefined.
    """
    order = np.argsort(-scores, kind="stable")  # once; each replicate is then linear in N
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # of each run of equal scores
    fake, group_of = labels[order] == 1, group_of[order]
    found = {name: np.full(len(weights), np.nan) for name in ("auc", "pr_auc", "eer", *_AT)}
    at_a_time = max(1, _CELLS // len(scores))
    for first in range(0, len(weights), at_a_time):
        each = weights[first : first + at_a_time, group_of]
        true, false = (np.pad(np.cumsum(each * of, axis=1)[:, ends], ((0, 0), (1, 0))) for of in (fake, ~fake))
        both = (true[:, -1] > 0) & (false[:, -1] > 0)
        true, false = true[both], false[both]
        rows = first + np.flatnonzero(both)
        tpr, fpr = true / true[:, -1:], false / false[:, -1:]
        precision = np.divide(true, true + false, out=np.zeros_like(true), where=true + false > 0)
        nearest = np.argmin(np.abs(fpr - (1 - tpr)), axis=1)[:, None]
        found["auc"][rows] = np.trapezoid(tpr, fpr, axis=1)
        found["pr_auc"][rows] = (np.diff(tpr, axis=1) * precision[:, 1:]).sum(1)
        found["eer"][rows] = (np.take_along_axis(fpr, nearest, 1) + 1 - np.take_along_axis(tpr, nearest, 1))[:, 0] / 2
        for name, share in _AT.items():
            last = (fpr <= share + 1e-9).sum(1)[:, None] - 1
            found[name][rows] = np.take_along_axis(tpr, last, 1)[:, 0]
    return found


def _interval(values: np.ndarray) -> Interval | None:
    """Of the replicates in which the metric is defined; None if it is in none."""
    defined = values[~np.isnan(values)]
    if not len(defined):
        return None
    low, high = np.quantile(defined, (0.025, 0.975))
    return Interval(low=float(low), high=float(high), replicates=len(defined))


def bootstrap(
    scores: np.ndarray, labels: np.ndarray, groups: np.ndarray, *, replicates: int = REPLICATES, seed: int = 0
) -> dict[str, Interval | None]:
    """95 % percentile intervals of the metrics in INTERVALS; None where fewer than two groups or no replicate define one.

    Whole groups are drawn with replacement, since videos of one group share people and originals: the cluster bootstrap (Davison and
    Hinkley, Bootstrap Methods and their Application, 1997, section 3.8). A replicate without reals or without fakes leaves out the
    metrics that need both.
    """
    group_of, weights = _draw(groups, replicates, seed)
    count = weights.shape[1]
    if count < 2:
        return dict.fromkeys(INTERVALS)

    def drawn(values: np.ndarray) -> np.ndarray:  # the sum of an item's values over each replicate
        return weights @ np.bincount(group_of, weights=values, minlength=count)

    right = (scores > THRESHOLD) == (labels == 1)
    real, fake, n = labels == 0, labels == 1, drawn(np.ones(len(scores)))
    with np.errstate(invalid="ignore"):  # 0/0 in a replicate without one class: NaN
        recall_real, recall_fake = drawn(right & real) / drawn(real), drawn(right & fake) / drawn(fake)
    values = {
        "accuracy": drawn(right) / n,
        "balanced_accuracy": (recall_real + recall_fake) / 2,
        "recall_real": recall_real,
        "recall_fake": recall_fake,
        "log_loss": drawn(log_losses(scores, labels)) / n,
    } | _weighted_curves(scores, labels, group_of, weights)
    return {name: _interval(values[name]) for name in INTERVALS}


def change_of_auc(
    before: np.ndarray, after: np.ndarray, labels: np.ndarray, groups: np.ndarray, *, replicates: int = REPLICATES, seed: int = 0
) -> Interval | None:
    """The same of how much the ROC AUC changes when the same items get other scores: both from the same groups drawn."""
    group_of, weights = _draw(groups, replicates, seed)
    if weights.shape[1] < 2:
        return None
    one, other = (_weighted_curves(scores, labels, group_of, weights)["auc"] for scores in (before, after))
    return _interval(other - one)


def baselines(labels: np.ndarray, *, train_prior: float) -> dict[str, Metrics]:
    """What knowing nothing about the video gives. `train_prior`: the share of fakes in the training set.

    always_fake: score 1, so under the clipping every real costs 34.54 nats; training_majority: always fake or always real, whichever
    training had more of; constant_prior: the training set's share of fakes as the score of every video.
    """
    constants = {"always_fake": 1.0, "training_majority": float(train_prior > THRESHOLD), "constant_prior": train_prior}
    return {name: binary_metrics(np.full(len(labels), score), labels) for name, score in constants.items()}


def judge(
    scores: np.ndarray, labels: np.ndarray, groups: np.ndarray, *, train_prior: float, families: np.ndarray | None = None, seed: int = 0
) -> Level:
    """Metrics, intervals and baselines of one level; arrays [N]. families: of which groups are made, for intervals over those besides."""
    count = len(np.unique(groups))
    if count < 2:
        note = f"no intervals: {count} group, and it takes two to resample them"
    else:
        note = f"95 %, {REPLICATES} bootstrap replicates over {count} groups, seed {seed}"
        if count < FEW_GROUPS:
            note += f"; fewer than {FEW_GROUPS} groups: too narrow, a rough guide only"
    by_family = None
    if families is not None and len(np.unique(families)) > count:
        by_family = bootstrap(scores, labels, families, seed=seed)
        found = ", ".join(f"{title} {i.low:.4f} to {i.high:.4f}" for name, title in _IN_NOTE.items() if (i := by_family[name]))
        note += f"; over the {len(np.unique(families))} families, as if no person were in two of them: {found}"
    return Level(
        metrics=binary_metrics(scores, labels),
        intervals=bootstrap(scores, labels, groups, seed=seed),
        by_family=by_family,
        groups=count,
        interval_note=note,
        baselines=baselines(labels, train_prior=train_prior),
    )
