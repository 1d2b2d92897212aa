"""What the demo commands can be told, as in dfdc_ray/config.py."""

from dataclasses import dataclass
from typing import Literal

DrawnFakes = Literal["swap", "colour", "sound"]


@dataclass(frozen=True, kw_only=True)
class DemoCorpusConfig:
    """Generate a corpus of drawn heads and fakes of them.

    In DFDC's own form. Says nothing about real fakes.
    """

    out: str
    """Folder for dfdc_train_part_NN.zip and test_videos/."""
    families: int = 48
    """Real videos; each has about four fakes."""
    seed: int = 0
    fakes: DrawnFakes = "swap"
    """swap: another face in the picture; colour: the same face with patches of colour that come and go, all videos under a lamp whose
    colour drifts; sound: the picture untouched, its sound shifted in time or of other words in the same voice.
    """


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The whole way in miniature, on a generated corpus.

    Generate, index, preprocess, train, evaluate and score an unseen video.
    """

    out: str = "out/demo"
