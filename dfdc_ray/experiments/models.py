"""The lines of `experiments models`: which detectors are trained and how, which of them are combined, and what each costs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow.compute as pc
import torch
from torch.utils.flop_counter import FlopCounterMode

from dfdc_ray import __version__, storage
from dfdc_ray.config import CombineConfig, EvaluateConfig, Objective, PreprocessConfig, TrainConfig
from dfdc_ray.errors import UserError
from dfdc_ray.experiments.cells import folder_name, report_name
from dfdc_ray.experiments.config import ModelsConfig
from dfdc_ray.models import NAMES, create_model, only_side, pretrained, takes_clips, takes_sound
from dfdc_ray.preprocess.crops import LANDMARKS_BY
from dfdc_ray.shards.manifest import read_ledger, read_manifest
from dfdc_ray.train.plan import MAY_CHANGE
from dfdc_ray.video.sound import WINDOW

FEWEST = 2  # clips a step: of one, batch normalisation would have nothing to compare


@dataclass(frozen=True, kw_only=True)
class Detector:
    """One that is trained."""

    name: str
    model: str
    objective: Objective = "bce"
    self_blend: float = 0.0
    cutmix: float = 0.0
    stabilise: bool = False


_OBJECTIVES: dict[str, Objective] = {"meso4": "l2", "mesoinception4": "l2", "av_sync": "sync"}  # else bce
DETECTORS = (
    *(Detector(name=model, model=model, objective=_OBJECTIVES.get(model, "bce")) for model in NAMES),
    Detector(name="efficientnet_b4-siamese", model="efficientnet_b4", objective="triplet"),
    Detector(name="efficientnet_b4_attention-siamese", model="efficientnet_b4_attention", objective="triplet"),
    Detector(name="resnet34-self-blended", model="resnet34", self_blend=0.5),
    *(Detector(name=f"{model}-cutmix", model=model, cutmix=0.5) for model in ("seresnext50", "r2plus1d_18", "resnet34_3d")),
    *(
        Detector(name=f"{model}-stabilised", model=model, stabilise=True)
        for model in ("framediff_frames", "framediff_only", "framediff_early", "framediff_late", "chroma")
    ),
)
COMBINATIONS = {
    "four EfficientNets": (
        "efficientnet_b4",
        "efficientnet_b4_attention",
        "efficientnet_b4-siamese",
        "efficientnet_b4_attention-siamese",
    ),
    "2D and 3D": ("seresnext50-cutmix", "r2plus1d_18-cutmix"),
    "frames and differences": ("resnet34", "framediff_only"),
}
"""By name, of which detectors: Bonettini et al. 2020's ensemble; one of each half of that of DFDC's 5th place, which count alike there; the
founding report's model and its wish."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What makes one line: a training, or a combination of what others have trained; then an evaluation."""

    name: str
    key: str  # its folder's name: the line, and a hash of what decides its result
    detectors: tuple[Detector, ...]
    make: TrainConfig | CombineConfig
    judge: EvaluateConfig

    @property
    def checkpoint(self) -> str:
        return self.judge.checkpoint[0]

    @property
    def report(self) -> str:
        """The last file of its evaluation: where it is, the line is done."""
        return storage.join(self.judge.out, "report.json")


def faces_of(config: ModelsConfig) -> str:
    """Where the faces of all lines are."""
    return storage.join(config.out, "faces") if config.faces is None else config.faces


def with_given_faces(config: ModelsConfig) -> ModelsConfig:
    """The settings, those of sampling as --faces was made. UserError where it is no output of preprocess or import."""
    made = read_manifest(faces_of(config)).config
    sampled: dict[str, Any] = {"sampling": "spread", "real_multiplier": made["real_multiplier"]}
    if made["sampling"] == "clips":
        sampled |= {"sampling": "clips", "clips": made["clips"], "frames": made["frames"], "stride": made["stride"]}
    else:  # the setting may be for each second
        sampled["frames"] = pc.max(read_ledger(faces_of(config))["core_decoded"]).as_py()
    return replace(config, **sampled)


def preprocessing(config: ModelsConfig) -> PreprocessConfig:
    """How the faces of all lines are made of --corpus."""
    in_clips = config.sampling == "clips"
    return PreprocessConfig(
        corpus=config.corpus,
        out=faces_of(config),
        sampling=config.sampling,
        frames=config.frames,
        clips=config.clips if in_clips else None,
        stride=config.stride if in_clips else None,
        real_multiplier=config.real_multiplier,
        sound=in_clips,
        max_error_share=1.0,  # the table counts what failed
    )


def chosen(config: ModelsConfig) -> list[Detector]:
    """The lines asked for. UserError for one that is not known, or that wants clips where there are none."""
    known = {detector.name: detector for detector in DETECTORS}
    in_clips = config.sampling == "clips"
    for name in config.detectors:
        if name not in known:
            raise UserError(f"--detectors {name}: there is no such line. Known: {'; '.join(known)}.")
        if takes_clips(known[name].model) and not in_clips:
            needs = "give --sampling clips" if config.faces is None else f"preprocess --sampling clips makes them, {config.faces} has none"
            raise UserError(f"--detectors {name} looks at clips: {needs}.")
    if config.detectors:
        return [known[name] for name in config.detectors]
    return [detector for detector in DETECTORS if in_clips or not takes_clips(detector.model)]


def cannot_be_had(config: ModelsConfig, detectors: Sequence[Detector]) -> dict[str, str]:
    """Of all lines, or of these that were asked for, by name why the faces cannot carry them."""
    faces = faces_of(config)
    made = read_manifest(faces).config
    found = {}
    if not config.detectors:
        in_clips = config.sampling == "clips"
        found = {d.name: "it looks at clips, and these faces are none" for d in DETECTORS if takes_clips(d.model) and not in_clips}
    if not any(row.get("sound") == "ok" for row in read_ledger(faces).to_pylist()):
        mute = "no video of the corpus has sound" if made.get("sound") else "the faces were made without sound: preprocess --sound keeps it"
        found |= {d.name: mute for d in detectors if takes_sound(d.model)}
    if made.get("detector", made.get("landmarks")) != LANDMARKS_BY:
        needs = "the faces have no landmarks: preprocess --detector centerface and import --landmarks find them"
        found |= {d.name: needs for d in detectors if d.self_blend}
    return found


def trainings(config: ModelsConfig, detectors: Sequence[Detector], *, faces_hash: str) -> list[Task]:
    """A training and its evaluation for each, on faces of this hash."""
    tasks = []
    for detector in detectors:
        batch = max(FEWEST, config.batch_size // config.frames) if takes_clips(detector.model) else config.batch_size
        training = TrainConfig(
            faces=faces_of(config),
            out="",
            split=config.split,
            model=detector.model,
            weights=pretrained(detector.model) if config.weights == "pretrained" else "none",
            objective=detector.objective,
            self_blend=detector.self_blend,
            cutmix=detector.cutmix,
            stabilise=detector.stabilise,
            balance=config.balance,
            epochs=config.epochs,
            batch_size=batch,
            learning_rate=config.learning_rate,
            image_size=only_side(detector.model) or config.image_size,
            seed=config.seed,
            gpu=config.gpu,
            cpus_per_worker=config.cpus_per_worker,
        )
        decides = {key: value for key, value in asdict(training).items() if key not in MAY_CHANGE}
        key = folder_name(detector.name, [decides, faces_hash, __version__])
        out = storage.join(config.out, "lines", key)
        training = TrainConfig(**asdict(training) | {"out": storage.join(out, "train")})
        judge = _judge(config, storage.join(training.out, "best"), out)
        tasks.append(Task(name=detector.name, key=key, detectors=(detector,), make=training, judge=judge))
    return tasks


def _judge(config: ModelsConfig, checkpoint: str, out: str) -> EvaluateConfig:
    """How a line in the folder `out` is judged."""
    report = storage.join(out, report_name(robustness=config.robustness))
    return EvaluateConfig(faces=faces_of(config), checkpoint=(checkpoint,), out=report, robustness=config.robustness)


def combinations(config: ModelsConfig, done: Sequence[Task]) -> list[Task]:
    """The mean and the logistic combination of each set whose members are all done."""
    by_name = {task.name: task for task in done}
    tasks = []
    for name, members in COMBINATIONS.items():
        if not by_name.keys() >= set(members):
            continue
        checkpoints = tuple(by_name[member].checkpoint for member in members)
        for by, words in (("mean", "mean of"), ("logistic", "logistic of")):
            key = folder_name(f"{words} {name}", [by_name[member].key for member in members])
            out = storage.join(config.out, "lines", key)
            folder = storage.join(out, "combination")
            fitted = faces_of(config) if by == "logistic" else None
            make = CombineConfig(checkpoint=checkpoints, out=folder, by=by, faces=fitted)  # type: ignore[arg-type]
            judge = _judge(config, folder, out)
            detectors = tuple(by_name[member].detectors[0] for member in members)
            tasks.append(Task(name=f"{words} {name}", key=key, detectors=detectors, make=make, judge=judge))
    return tasks


def parameters(model: str) -> int:
    """How many weights are trained."""
    with torch.device("meta"):
        return sum(p.numel() for p in create_model(model).parameters())


def macs(model: str, *, side: int, frames: int) -> float:
    """Multiply-adds for one picture of so many pixels a side, or for one clip of so many frames, counted by torch."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        inputs = [torch.empty(1, frames, 3, side, side) if takes_clips(model) else torch.empty(1, 3, side, side)]
        inputs += [torch.empty(1, frames, WINDOW)] if takes_sound(model) else []
        create_model(model).eval()(*inputs)
    return counter.get_total_flops() / 2  # it counts a multiply-add as two


def macs_a_video(task: Task, config: ModelsConfig) -> float:
    """Multiply-adds for the core frames of one video with one face."""
    clips = config.clips if config.sampling == "clips" else 1
    total = 0.0
    for detector in task.detectors:
        once = macs(detector.model, side=only_side(detector.model) or config.image_size, frames=config.frames)
        total += once * clips * (1 if takes_clips(detector.model) else config.frames)
    return total
