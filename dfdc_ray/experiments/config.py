"""What the experiments commands can be told, as in dfdc_ray/config.py."""

from dataclasses import dataclass
from typing import Literal

from dfdc_ray.config import Balance, Uris


@dataclass(frozen=True, kw_only=True)
class ExperimentsConfig:
    """Do the founding report's experiments again.

    On a corpus, with more beside them: one table. Run it again after any interruption.
    """

    corpus: Uris = ()
    """Folder, zip or s3:// prefix; may be given several times. NAME=URI names the corpus, else its folder's name is used."""
    faces: str | None = None
    """In its place: faces made before, such as by import. Without the lines that want other frames of the videos."""
    out: str
    """Folder or s3:// prefix for faces, checkpoints, reports and the table."""
    split: str = "hash:0"
    """Split rule by group, as of train."""
    weights: str = "imagenet"
    """First weights, as of train. Without ImageNet's the table says that it is not comparable."""
    frames: int = 10
    """Frames per video, evenly spread; real videos give four times as many where the classes are balanced by frames."""
    image_size: int = 224
    """Side in pixels of the model's input for faces."""
    frame_size: int = 400
    """The same for whole frames: the report's."""
    epochs: tuple[int, int] = (3, 15)
    """Of the report's first model (whole frames) and of the others; with a share of the groups more, for about as many steps."""
    batch_size: int = 32
    learning_rate: float = 3e-4
    seed: int = 0
    robustness: bool = False
    """As of evaluate, for each line; one that was judged without (or with) is judged again, not trained again."""
    workers: int = 1
    """Ray Train workers, as of train."""
    gpu: bool = False
    """As of train."""
    cpus_per_worker: int = 1
    """As of train."""


@dataclass(frozen=True, kw_only=True)
class ModelsConfig:
    """Train and judge every detector on the same faces.

    Under one budget: one table and one plot. Run it again after any interruption.
    """

    corpus: Uris = ()
    """Folder, zip or s3:// prefix; may be given several times. NAME=URI names the corpus, else its folder's name is used."""
    faces: str | None = None
    """In its place: faces made before, such as by import. How many frames of a video, and whether in clips, was decided then."""
    out: str
    """Folder or s3:// prefix for faces, checkpoints, reports, the table and the plot."""
    split: str = "hash:0"
    """Split rule by group, as of train."""
    detectors: tuple[str, ...] = ()
    """Which lines of the table, by name; unset: all. A combination is there when all its members are."""
    weights: Literal["pretrained", "none"] = "pretrained"
    """pretrained: those begin with ImageNet's or Kinetics' for which docs/models.md names such; none: all from scratch."""
    sampling: Literal["clips", "spread"] = "clips"
    """clips: for models of time and of single frames alike; spread: frames evenly over the video, for the latter alone."""
    clips: int = 4
    """Of a video, with clips."""
    frames: int = 8
    """Per clip; per video with spread."""
    stride: int = 2
    """With clips: every so many-th frame of the video."""
    real_multiplier: int = 4
    """Real videos give this many times the clips or frames for training."""
    balance: Balance = "sample"
    """Of the classes, as of train; short videos have no room for as many clips of reals as would balance them."""
    image_size: int = 224
    """Side in pixels of the models' input; MesoNet's is 256 in any case."""
    epochs: int = 5
    """The budget: every detector sees each picture so many times."""
    batch_size: int = 32
    """Pictures per step; a clip counts as its frames."""
    learning_rate: float = 3e-4
    seed: int = 0
    robustness: bool = False
    """As of evaluate, for each line; one that was judged without (or with) is judged again, not trained again."""
    gpu: bool = False
    """One GPU for each detector; as many are trained at a time as there are GPUs (without: as the CPUs allow)."""
    cpus_per_worker: int = 1
    """CPUs, and so threads, for each detector."""


@dataclass(frozen=True, kw_only=True)
class BonettiniConfig(ModelsConfig):
    """Train and judge Bonettini et al. 2020's networks.

    `experiments models` with their split, frames and learning rate; docs/models.md says what differs.
    """

    split: str = "parts:0-34/35-39/40-49"
    detectors: tuple[str, ...] = (
        "efficientnet_b4",
        "efficientnet_b4_attention",
        "efficientnet_b4-siamese",
        "efficientnet_b4_attention-siamese",
    )
    sampling: Literal["clips", "spread"] = "spread"
    frames: int = 32
    real_multiplier: int = 1
    epochs: int = 1
    learning_rate: float = 1e-5
