"""The lines of the founding report's table, and those put beside them: on which faces, trained how, split how."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from dfdc_ray import __version__, storage
from dfdc_ray.config import Balance, Objective
from dfdc_ray.experiments.config import ExperimentsConfig
from dfdc_ray.experiments.regroup import By
from dfdc_ray.models import NO_FILE
from dfdc_ray.shards.manifest import read_manifest

MAJORITY = 0.8075  # the report's numbers, frame accuracy on the Kaggle sample; its split is not stated
MVP = 0.865
IMPROVED = 0.94
IMPROVED_NAME = "faces, 4x reals (improved)"
DRAWN_NAME = "faces, reals drawn more often (improved)"  # the same of faces made before that have not four times the frames of reals
CENTRE_NAME = "faces, 5 frames from the middle"
SECONDS_NAME = "faces, 10 frames a second"
REAL_MULTIPLIER = 4
REPORTS_BATCH, REPORTS_RATES = 1, (1e-6, 1e-7)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One line. faces: what differs from preprocess's defaults. reported: the founding report's frame accuracy for it, if it has one."""

    name: str
    faces: dict[str, Any]
    epochs: int
    image_size: int
    batch_size: int
    learning_rate: float
    balance: Balance = "frames"
    objective: Objective = "bce"
    split_by: By | None = None
    groups: int | None = None
    reported: float | None = None

    @property
    def improved(self) -> bool:
        """Whether it is the line with which the others are compared."""
        return self.name in (IMPROVED_NAME, DRAWN_NAME)

    def key(self, config: ExperimentsConfig, faces_hash: str) -> str:
        """Names the cell's folder: what it does, and a hash of all that decides its result, that of the faces among it."""
        decides = {name: value for name, value in asdict(self).items() if name not in ("name", "reported")}
        decides |= {
            "version": __version__,
            "faces_hash": faces_hash,
            "split": config.split,
            "weights": _weights(config.weights),
            "seed": config.seed,
        }
        return folder_name(self.name, decides)


def _weights(given: str) -> str:
    """Which weights: of a file its content, for which another may stand tomorrow."""
    return given if given in NO_FILE else hashlib.sha256(storage.read_bytes(given)).hexdigest()


def report_name(*, robustness: bool) -> str:
    """Where in its folder a line's report is."""
    return "report-robustness" if robustness else "report"


def folder_name(name: str, decides: Any) -> str:
    """The name in plain letters, and a hash of what decides the content (plain JSON values)."""
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:8]
    words = "".join(c if c.isalnum() else "-" for c in name.lower())
    return f"{'-'.join(filter(None, words.split('-')))}-{digest}"


def cells(config: ExperimentsConfig) -> list[Cell]:
    """Those that can be had, but for the learning curve, which needs to know how many groups there are."""
    return [cell for cell in _every(config) if config.faces is None or not cell.faces]


def wanting(config: ExperimentsConfig) -> dict[str, str]:
    """By name, why lines cannot be had of faces that were made before."""
    why = "wants other frames of the videos than --faces holds: --corpus makes them."
    return {cell.name: why for cell in _every(config) if config.faces is not None and cell.faces}


def _every(config: ExperimentsConfig) -> list[Cell]:
    first, later = config.epochs
    given = config.faces is not None
    drawn = given and read_manifest(str(config.faces)).config["real_multiplier"] != REAL_MULTIPLIER
    usual: dict[str, Any] = {
        "faces": {} if given else {"frames": config.frames, "real_multiplier": REAL_MULTIPLIER},
        "balance": "sample" if drawn else "frames",
        "epochs": later,
        "image_size": config.image_size,
        "batch_size": config.batch_size,
        "learning_rate": config.learning_rate,
    }
    whole = {"crop": "frame", "max_side": config.frame_size, "frames": config.frames, "real_multiplier": 1}
    mvp = usual | {"faces": whole, "epochs": first, "image_size": config.frame_size, "balance": "none"}
    reports = {"batch_size": REPORTS_BATCH, "objective": "l2"}
    plain = {"real_multiplier": 1}
    return [
        Cell(name="whole frames (MVP)", reported=MVP, **mvp),
        Cell(name="whole frames, the report's settings", reported=MVP, **mvp | reports | {"learning_rate": REPORTS_RATES[0]}),
        Cell(name=DRAWN_NAME if drawn else IMPROVED_NAME, reported=IMPROVED, **usual),
        *(
            Cell(name=f"faces, the report's settings, {rate:g}", reported=IMPROVED, **usual | reports | {"learning_rate": rate})
            for rate in REPORTS_RATES
        ),
        Cell(name="faces, L2 for BCE", objective="l2", **usual),
        Cell(name="faces, reals not multiplied", **usual | {"balance": "none"}),
        Cell(name=CENTRE_NAME, **usual | {"faces": {"sampling": "centre", "frames": 5} | plain}),
        Cell(name=SECONDS_NAME, **usual | {"faces": {"sampling": "per_second", "frames": 10} | plain}),
        Cell(name="split by family", split_by="family", **usual),
        Cell(name="split by frame", split_by="frame", **usual),
    ]


def curve(config: ExperimentsConfig, groups: int, steps: Callable[[int], int]) -> list[Cell]:
    """The improved model on a quarter and half of the training groups, in so many epochs that it takes about as many steps.

    steps: how many an epoch has of so many groups.
    """
    improved = next(cell for cell in cells(config) if cell.improved)
    counts = sorted({max(1, round(groups * share)) for share in (0.25, 0.5)} - {groups})
    whole = improved.epochs * steps(groups)
    given = {name: value for name, value in asdict(improved).items() if name not in ("name", "groups", "reported", "epochs")}
    return [
        Cell(name=f"faces, {count} of {groups} training groups", groups=count, epochs=round(whole / steps(count)), **given)
        for count in counts
    ]
