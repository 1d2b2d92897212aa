"""A checkpoint's model with the transform that validation used: face pictures in, probabilities of fake out."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torchvision.transforms import v2

from dfdc_ray.console import Work
from dfdc_ray.errors import UserError
from dfdc_ray.evaluate import calibration
from dfdc_ray.evaluate.aggregate import DEFAULT
from dfdc_ray.evaluate.calibration import Calibration
from dfdc_ray.faces.crop import decode
from dfdc_ray.shards.dataset import FaceDataset, loader
from dfdc_ray.shards.order import FixedOrder
from dfdc_ray.shards.rows import RowTable
from dfdc_ray.train import transforms
from dfdc_ray.train.checkpoint import load_model

_BATCH = 64
_GPU_LOADERS = 8  # processes that decode pictures for a GPU


class Scorer:
    """Scores faces on the GPU where there is one, else on the CPU, in single precision. `config` is the checkpoint's config.json.

    calibration: of videos' scores (not of faces'); None where the checkpoint has none.
    """

    def __init__(self, model: torch.nn.Module, config: dict[str, Any], calibration: Calibration | None = None) -> None:
        self.config, self.calibration = config, calibration
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(self.device).to(memory_format=torch.channels_last).eval()
        self.transform = transforms.evaluation(config["transform"])

    @property
    def faces_config(self) -> dict[str, Any]:
        """The configuration of the training faces (`config` of their manifest.json). UserError if the checkpoint does not record it."""
        if "faces_config" not in self.config:
            raise UserError("the checkpoint's config.json has no faces_config, how its faces were made: train again with this version")
        faces_config: dict[str, Any] = self.config["faces_config"]
        return faces_config

    @property
    def rule(self) -> str:
        """How the scores of a track's frames become one: as calibration chose it, else the default."""
        return self.calibration.rule if self.calibration else DEFAULT

    def probability(self, score: float) -> float:
        """Of a video's score: calibrated, where the checkpoint is."""
        return score if self.calibration is None else float(self.calibration(np.array([score]))[0])

    @torch.inference_mode()
    def batch(self, images: torch.Tensor) -> np.ndarray:
        """Probabilities of fake, float64 [N], of transformed pictures, float32 [N,3,S,S]."""
        logits = self.model(images.to(self.device, memory_format=torch.channels_last))
        return torch.sigmoid(logits.double()).cpu().numpy()

    def score(self, pictures: Sequence[bytes]) -> np.ndarray:
        """Probabilities of fake, float64 [N], of encoded pictures (JPEG or PNG), decoded as the shards are."""
        scores = [np.empty(0)]
        for first in range(0, len(pictures), _BATCH):
            rgb = [torch.from_numpy(decode(picture)).permute(2, 0, 1) for picture in pictures[first : first + _BATCH]]
            images = [self.transform(image) for image in rgb]
            scores.append(self.batch(torch.stack(images)))
        return np.concatenate(scores)


def score_rows(
    scorer: Scorer,
    rows: RowTable,
    *,
    batch_size: int,
    change: Callable[[torch.Tensor], torch.Tensor] | None = None,
    each: Callable[[np.ndarray, torch.Tensor], None] | None = None,
    what: str = "scoring",
) -> np.ndarray:
    """Probabilities of fake, float64 [N], of all faces of a table, with progress.

    change: done to each stored picture (uint8 [3,H,W]) first. each: is given the positions of each batch and its pictures as the model gets
    them, but RGB in 0..1.
    """
    on_gpu = scorer.device.type == "cuda"
    transform = scorer.transform if change is None else v2.Compose([change, scorer.transform])
    dataset = FaceDataset(rows, transform, FixedOrder(len(rows), batch_size))
    batches = loader(dataset, workers=min(_GPU_LOADERS, os.cpu_count() or 1) if on_gpu else 0, pin_memory=on_gpu)
    mean, std = (torch.tensor(scorer.config["transform"][name])[:, None, None] for name in ("mean", "std"))
    scores = np.full(len(rows), np.nan)
    with Work(what, total=len(rows), unit="faces") as work:
        for batch in batches:
            positions = batch.positions.numpy()
            scores[positions] = scorer.batch(batch.images)
            if each:
                each(positions, batch.images * std + mean)
            work.advance(len(positions))
    return scores


def load_scorer(checkpoint: str) -> Scorer:
    """The scorer of a checkpoint folder, with its calibration if it has one. UserError when there is none or it is damaged."""
    model, config = load_model(checkpoint)
    return Scorer(model, config, calibration.load(checkpoint, weights=weights_of(config)))


def weights_of(config: dict[str, Any]) -> str:
    """SHA-256 of the weights of a checkpoint, by its config.json."""
    return str(config["files"]["model.safetensors"])
