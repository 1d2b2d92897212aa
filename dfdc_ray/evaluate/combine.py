"""Several checkpoints as one checkpoint folder.

    dfdc-ray combine --checkpoint out/a/best --checkpoint out/b/best --out out/both [--by logistic --faces out/faces]

mean: the mean of their logits. logistic: weights and a bias fitted on the validation videos, each of which counts once, with the mean of
each checkpoint's logits of one track (aggregate.py's rule mean_logit, by which the combination is then judged too): of several that which
decides by the mean of the checkpoints. They minimise the videos' log losses, added up, plus half of PENALTY times the squared distance of
the weights from those of the mean (a normal prior around it), so that few videos, or checkpoints that are much alike, leave them near it.
"""

import json
from collections.abc import Sequence

import numpy as np
import torch
from scipy.special import expit
from torch.nn import functional

from dfdc_ray import storage
from dfdc_ray.config import CombineConfig
from dfdc_ray.console import console
from dfdc_ray.errors import UserError
from dfdc_ray.evaluate import calibration
from dfdc_ray.evaluate.members import Members, combined, load_members, mean, save
from dfdc_ray.evaluate.metrics import log_losses
from dfdc_ray.evaluate.run import faces_of
from dfdc_ray.evaluate.scorer import Scorer, score_rows
from dfdc_ray.evaluate.videos import fitting_videos
from dfdc_ray.shards.manifest import read_manifest
from dfdc_ray.train.memory import keep_freed_memory

PENALTY = 1.0
RULE = "mean_logit"
_BATCH = 64


def combine(config: CombineConfig) -> None:
    """The command. UserError when fewer than two checkpoints are given, or they do not go together, or there is nothing to fit by."""
    if len(config.checkpoint) < 2:
        raise UserError("Give at least two checkpoints: --checkpoint A --checkpoint B.")
    if config.by == "logistic" and config.faces is None:
        raise UserError("--by logistic is fitted on validation videos: give the --faces of their training.")
    if config.by == "mean" and config.faces is not None:
        raise UserError("--faces is for --by logistic: a mean is not fitted to anything.")
    _check_out(config)
    keep_freed_memory()
    checkpoints = [load_members(uri) for uri in config.checkpoint]
    together, weights = mean(checkpoints), [1 / len(checkpoints)] * len(checkpoints)
    if config.by == "logistic":
        logits, labels = _validation(checkpoints, together, str(config.faces))
        weights, bias = fit(logits, labels)
        together = combined(checkpoints, weights, bias, how="logistic combination")
        together.config["rule"] = RULE
        before, after = (_log_loss(values, labels) for values in (logits.mean(0), np.asarray(weights) @ logits + bias))
        console.print(
            f"On the {len(labels)} validation videos: log loss {before:.4f} of the mean, {after:.4f} of the combination fitted to them.",
            highlight=False,
            soft_wrap=True,
        )
    earlier = storage.join(config.out, calibration.FILE)
    if storage.exists(earlier):
        storage.delete(earlier)
    save(config.out, together)
    for uri, weight in zip(config.checkpoint, weights, strict=True):
        console.print(f"{weight:+.3f} x {uri}", markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"{together.bias:+.3f} the bias\nCheckpoint: {storage.absolute(config.out)}", markup=False, highlight=False, soft_wrap=True
    )


def _check_out(config: CombineConfig) -> None:
    """UserError unless --out is new or an earlier combination, which is replaced."""
    if storage.absolute(config.out) in map(storage.absolute, config.checkpoint):
        raise UserError(f"--out {config.out} is one of the checkpoints: give another folder.")
    if not storage.exists(config.out):
        return
    try:
        there = {entry.name for entry in storage.list_dir(config.out)}
        ours = there <= {"config.json", "model.safetensors", calibration.FILE}
        if ours and there:
            ours = {"members", "bias"} <= set(json.loads(storage.read_bytes(storage.join(config.out, "config.json"))))
    except (OSError, ValueError, TypeError):
        ours = False
    if not ours:
        raise UserError(f"--out {config.out} is there already, and is no combination or holds more than one: give a new folder.")


def fit(logits: np.ndarray, labels: np.ndarray) -> tuple[list[float], float]:
    """Weights and bias by the rule above, for float64 logits [M,V] and labels (0 real, 1 fake) [V]. UserError with one class only."""
    if len(np.unique(labels)) < 2:
        raise UserError("Validation has videos of one class only: a combination cannot be fitted by it.")
    x, y = torch.from_numpy(logits), torch.from_numpy(labels).double()
    middle = 1 / len(x)
    weights = torch.full((len(x),), middle, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        penalty = PENALTY / 2 * ((weights - middle) ** 2).sum()
        loss = functional.binary_cross_entropy_with_logits(weights @ x + bias, y) + penalty / len(y)
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights.tolist(), bias.item()


def _validation(checkpoints: Sequence[Members], together: Members, uri: str) -> tuple[np.ndarray, np.ndarray]:
    """Logits of the validation videos that have a face, float64 [M,V], and their labels, int64 [V]."""
    manifest = read_manifest(uri)
    videos = fitting_videos(uri, together.config, uri="one of the checkpoints")
    faces = faces_of(manifest, videos, clips=together.clips, sound=together.sound, cache=None)
    logits = calibration.logits(np.stack([score_rows(Scorer(each), faces.rows, batch_size=_BATCH) for each in checkpoints]))
    found = faces.aggregate(expit(logits.mean(0)), RULE)
    deciding: dict[str, np.ndarray] = {}
    for (video, track), rows in faces.tracks().items():
        of_track = logits[:, rows].mean(1)
        if track in found[video].tracks and (video not in deciding or of_track.mean() > deciding[video].mean()):
            deciding[video] = of_track
    scored = [row for row in videos.labelled if row["video_id"] in deciding]
    if not scored:
        raise UserError(f"No validation video of {uri} has a face: a combination cannot be fitted by it.")
    labels = np.array([row["label"] == "FAKE" for row in scored], dtype=np.int64)
    return np.stack([deciding[row["video_id"]] for row in scored], axis=1), labels


def _log_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(log_losses(torch.sigmoid(torch.from_numpy(logits)).numpy(), labels).mean())
