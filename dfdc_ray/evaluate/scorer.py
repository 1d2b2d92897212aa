"""A checkpoint's models with the transforms that validation used: face pictures in, probabilities of fake out."""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torchvision.transforms import v2

from dfdc_ray.console import Work, errors
from dfdc_ray.errors import UserError
from dfdc_ray.evaluate import calibration
from dfdc_ray.evaluate.aggregate import DEFAULT
from dfdc_ray.evaluate.calibration import Calibration
from dfdc_ray.evaluate.members import Member, Members, load_members, mean
from dfdc_ray.faces.crop import decode
from dfdc_ray.shards.dataset import NO_SOUND, FaceDataset, decode_sound, loader
from dfdc_ray.shards.order import FixedOrder
from dfdc_ray.shards.rows import RowTable
from dfdc_ray.train import transforms
from dfdc_ray.train.validation import model_to_device, to_device

_BATCH, _CLIPS = 64, 4
_GPU_LOADERS = 8  # processes that decode pictures for a GPU


class Scorer:
    """Scores faces on the GPU where there is one, else on the CPU, in single precision. `config` is the checkpoint's config.json.

    The logit of a face is the weighted sum of the members' and the bias. calibration: of videos' scores (not of faces'); None where the
    checkpoint has none. clips: whether what is scored are clips; members that look at single frames then give the mean of their logits over
    a clip's. sound: whether a member listens, so that only clips with sound can be scored.
    """

    def __init__(self, members: Members, calibration: Calibration | None = None) -> None:
        self.members, self.config, self.bias, self.clips = members.members, members.config, members.bias, members.clips
        self.calibration, self.sound = calibration, members.sound
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        for member in self.members:
            model_to_device(member.model, self.device).eval().requires_grad_(False)  # heat maps need gradients of their maps alone

    @property
    def faces_config(self) -> dict[str, Any]:
        """The configuration of the training faces (`config` of their manifest.json). UserError if the checkpoint does not record it."""
        if "faces_config" not in self.config:
            raise UserError("the checkpoint's config.json has no faces_config, how its faces were made: train again with this version")
        faces_config: dict[str, Any] = self.config["faces_config"]
        return faces_config

    @property
    def rule(self) -> str:
        """How the scores of a track's frames become one: as calibration chose it, else as a combination was fitted, else the default."""
        return self.calibration.rule if self.calibration else str(self.config.get("rule", DEFAULT))

    @property
    def unit(self) -> Literal["frames", "clips"]:
        """What is scored."""
        return "clips" if self.clips else "frames"

    def probability(self, score: float) -> float:
        """Of a video's score: calibrated, where the checkpoint is."""
        return score if self.calibration is None else float(self.calibration(np.array([score]))[0])

    @torch.inference_mode()
    def logits(self, member: Member, images: torch.Tensor, sound: torch.Tensor = NO_SOUND) -> np.ndarray:
        """One member's, float64 [N], of pictures or clips transformed for it, float32 [N,3,S,S] or [N,T,3,S,S], and the clips' sound."""
        if images.ndim == 5 and not member.clips:
            return np.array([self.logits(member, clip).mean() for clip in images])
        found: torch.Tensor = member.model(*to_device(images, sound if member.sound else NO_SOUND, self.device))
        return found.double().cpu().numpy()

    def together(self, logits: Sequence[np.ndarray]) -> np.ndarray:
        """The weighted sum of the members' logits, float64 [N], and the bias."""
        return np.asarray(sum(member.weight * found for member, found in zip(self.members, logits, strict=True)) + self.bias)

    def score(
        self,
        pictures: Sequence[Sequence[bytes]],
        sound: Sequence[Sequence[bytes]] = (),
        *,
        on_batch: Callable[[float], None] = lambda share: None,
    ) -> np.ndarray:
        """Probabilities of fake, float64 [N], of encoded pictures (JPEG or PNG), decoded as the shards are: of clips, or of one each.

        sound: that around each picture of the clips, as the shards have it; for members that listen. on_batch: told after each batch which
        share of the pictures is done, 0 to 1; what it raises ends the scoring.
        """
        ways = [(member, transforms.evaluation(member.transform)) for member in self.members]
        scores = [np.empty(0)]
        step = _BATCH if not self.clips else _CLIPS
        for first in range(0, len(pictures), step):
            decoded = [[torch.from_numpy(decode(one)).permute(2, 0, 1) for one in each] for each in pictures[first : first + step]]
            rgb = [torch.stack(each) if self.clips else each[0] for each in decoded]
            heard = torch.stack([decode_sound(each) for each in sound[first : first + step]]) if self.sound else NO_SOUND
            logits = [self.logits(member, torch.stack(list(map(way, rgb))), heard) for member, way in ways]
            scores.append(_sigmoid(self.together(logits)))
            on_batch(min(1.0, (first + step) / len(pictures)))
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
    """Probabilities of fake, float64 [N], of all lines of a table, with progress.

    change: done to each stored picture (uint8 [3,H,W]) or clip first. each: is given the positions of each batch and its pictures (of clips
    the middle frames) as the first member gets them, but RGB in 0..1.
    """
    on_gpu = scorer.device.type == "cuda"
    batch_size = max(1, batch_size // (rows.clip_length or 1))
    logits = np.full((len(scorer.members), len(rows)), np.nan)
    with Work(what, total=logits.size, unit="faces") as work:
        for member, found in zip(scorer.members, logits, strict=True):
            transform = transforms.evaluation(member.transform)
            changed = v2.Compose([functools.partial(_framewise, change), transform]) if change else transform
            dataset = FaceDataset(rows, changed, FixedOrder(len(rows), batch_size), sound=member.sound)
            for batch in loader(dataset, workers=min(_GPU_LOADERS, os.cpu_count() or 1) if on_gpu else 0, pin_memory=on_gpu):
                positions = batch.positions.numpy()
                found[positions] = scorer.logits(member, batch.images, batch.sound)
                if each and member is scorer.members[0]:
                    images = batch.images if batch.images.ndim == 4 else batch.images[:, batch.images.shape[1] // 2]
                    each(positions, transforms.pixels(member.transform, images))
                work.advance(len(positions))
    return _sigmoid(scorer.together(list(logits)))


def load_scorer(*checkpoints: str, calibrated: bool = True) -> Scorer:
    """The scorer of a checkpoint folder, with its calibration if it has one; of several the mean of their logits, without.

    calibrated: False leaves the calibration out, which may be of other weights. UserError when none is given, when one is absent or
    damaged, or when they do not go together.
    """
    if not checkpoints:
        raise UserError("No checkpoint is given: --checkpoint DIR, such as OUT/best of `dfdc-ray train`.")
    loaded = [load_members(uri) for uri in checkpoints]
    if len(loaded) > 1:
        errors.print("The mean of several checkpoints' logits is not calibrated: `dfdc-ray combine` them, then `dfdc-ray calibrate` that.")
        return Scorer(mean(loaded))
    return Scorer(loaded[0], calibration.load(checkpoints[0], weights=weights_of(loaded[0].config)) if calibrated else None)


def weights_of(config: dict[str, Any]) -> str:
    """SHA-256 of the weights of a checkpoint, by its config.json; of several, with "; " between them."""
    return str(config["files"]["model.safetensors"])


def _framewise(change: Callable[[torch.Tensor], torch.Tensor], picture: torch.Tensor) -> torch.Tensor:
    """Of a clip every frame by itself."""
    return change(picture) if picture.ndim == 3 else torch.stack([change(frame) for frame in picture])


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return torch.sigmoid(torch.from_numpy(logits)).numpy()
