"""From the scores of a video's frames to a probability: the rule that makes one score of them, and Platt's scaling of it.

Both come from the validation videos and are kept beside the checkpoint's weights.

    p = sigmoid(a * logit(score) + b)

a and b by maximum likelihood with the targets (n_fake + 1) / (n_fake + 2) and 1 / (n_real + 2) instead of 1 and 0, so that a stays finite
where scores separate the classes (Platt, Probabilistic Outputs for Support Vector Machines, 1999, section 2.2). It changes no order.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch
from scipy.special import expit
from torch.nn import functional

from dfdc_ray import storage
from dfdc_ray.errors import UserError
from dfdc_ray.evaluate.aggregate import CLIP, RULES
from dfdc_ray.evaluate.metrics import log_losses, torchmetrics

FILE = "calibration.json"
_ALIKE = 1.25  # a score of that many times the frames is taken for one of the same kind
BINS = 15  # of the calibration error, of equal width: Guo et al. 2017, https://arxiv.org/abs/1706.04599


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was fitted, on how many videos of which data; `weights` is the SHA-256 of the model that it belongs to.

    rule: of aggregate.RULES, to whose scores the scaling belongs; frames: how many were sampled of a video, the median; unit: whether
    those are frames or clips.
    """

    rule: str
    a: float
    b: float
    reals: int
    fakes: int
    frames: int
    unit: str
    data_hash: str
    weights: str

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Probabilities of fake, float64 [N], for videos' scores in [0, 1]."""
        return scaled(scores, self.a, self.b)

    @property
    def threshold(self) -> float:
        """The score, in 0..1 as the model gives it, above which a video is called fake: that of which the probability is 0.5."""
        return float(expit(-self.b / self.a))

    def describe(self) -> str:
        """For people."""
        videos = f"{self.reals} real and {self.fakes} fake validation videos of {self.frames} {self.unit} each (median)"
        return f"Platt's scaling (a {self.a:.3f}, b {self.b:.3f}), fitted on {videos}"

    def caveat(self, frames: int) -> str | None:
        """Why the probability of a video of which so many frames (or clips) were sampled is rough, if it is: the more there are, the surer
        is their mean, and the higher their maximum.
        """
        if max(frames, self.frames) <= _ALIKE * min(frames, self.frames):
            return None
        return f"the calibration is of {self.frames} {self.unit} a video, and here are {frames}"


def fit(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """a and b for scores in [0, 1] and labels (0 real, 1 fake), both [N]. UserError with one class only, or where no scaling helps."""
    fakes = int((labels == 1).sum())
    reals = len(labels) - fakes
    if not (reals and fakes):
        raise UserError(f"Validation has {reals} real and {fakes} fake videos with a face: calibration needs both.")
    scores_logits = torch.from_numpy(logits(scores))
    targets = torch.where(torch.from_numpy(labels == 1), (fakes + 1) / (fakes + 2), 1 / (reals + 2)).double()
    both = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([both], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = functional.binary_cross_entropy_with_logits(both[0] * scores_logits + both[1], targets)
        loss.backward()
        return loss

    optimizer.step(closure)
    a, b = both.detach().tolist()
    if not (math.isfinite(a) and math.isfinite(b) and a > 0):
        raise UserError("On the validation videos a higher score does not go with fakes: there is nothing to calibrate. Train longer.")
    return a, b


def choose(scores: Mapping[str, np.ndarray], labels: np.ndarray) -> tuple[str, float, float, dict[str, float]]:
    """Of several rules' scores of the same videos, the rule whose calibrated scores have the lowest log loss, with its a and b; and these
    losses, of all rules that can be calibrated.

    Of equal ones the first. UserError as for `fit`, where that is so for every rule.
    """
    fitted: dict[str, tuple[float, float]] = {}
    losses: dict[str, float] = {}
    refused = UserError("no rule")
    for rule, of_rule in scores.items():
        try:
            fitted[rule] = fit(of_rule, labels)
        except UserError as error:
            refused = error
            continue
        loss = log_losses(scaled(of_rule, *fitted[rule]), labels).mean()
        losses[rule] = round(float(loss), 6)  # less is rounding, where all are the same
    if not losses:
        raise refused
    best = min(losses, key=lambda rule: losses[rule])
    return best, *fitted[best], losses


def scaled(scores: np.ndarray, a: float, b: float) -> np.ndarray:
    """sigmoid(a * logit(score) + b), float64 [N]."""
    return torch.sigmoid(torch.from_numpy(logits(scores)) * a + b).numpy()


def logits(scores: np.ndarray) -> np.ndarray:
    """Of scores in [0, 1], kept CLIP away from both ends: float64, the same shape."""
    return torch.logit(torch.from_numpy(np.asarray(scores, dtype=np.float64)), eps=CLIP).numpy()


def error(scores: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error in BINS bins: how far, on the average over videos, the mean score is from the share of fakes."""
    return float(torchmetrics().binary_calibration_error(torch.from_numpy(scores), torch.from_numpy(labels), n_bins=BINS, norm="l1"))


def save(checkpoint: str, calibration: Calibration) -> None:
    """Put it into a checkpoint folder, replacing an earlier one."""
    storage.write_bytes(storage.join(checkpoint, FILE), json.dumps(asdict(calibration), indent=1).encode())


def load(checkpoint: str, *, weights: str) -> Calibration | None:
    """What is in a checkpoint folder; None if it is not calibrated. UserError if it is damaged or of other weights."""
    uri = storage.join(checkpoint, FILE)
    try:
        found = Calibration(**json.loads(storage.read_bytes(uri)))
        if found.rule not in RULES:
            raise ValueError(f"no rule {found.rule!r}")
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise UserError(f"{uri} is damaged or of another version ({error!r}). Run `dfdc-ray calibrate` again, or delete it.") from error
    if found.weights != weights:
        raise UserError(f"{uri} belongs to other weights, from before training went on. Run `dfdc-ray calibrate` again, or delete it.")
    return found
