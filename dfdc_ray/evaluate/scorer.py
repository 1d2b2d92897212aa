"""A checkpoint's model with the transform that validation used: face pictures in, probabilities of fake out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dfdc_ray.errors import UserError
from dfdc_ray.evaluate import calibration
from dfdc_ray.evaluate.calibration import Calibration
from dfdc_ray.faces.crop import decode
from dfdc_ray.train import transforms
from dfdc_ray.train.checkpoint import load_model

_BATCH = 64


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


def load_scorer(checkpoint: str) -> Scorer:
    """The scorer of a checkpoint folder, with its calibration if it has one. UserError when there is none or it is damaged."""
    model, config = load_model(checkpoint)
    return Scorer(model, config, calibration.load(checkpoint, weights=weights_of(config)))


def weights_of(config: dict[str, Any]) -> str:
    """SHA-256 of the weights of a checkpoint, by its config.json."""
    return str(config["files"]["model.safetensors"])
