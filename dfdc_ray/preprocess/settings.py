"""From the options of the command to the hashed configuration: every default resolved, every weight by its checksum."""

from dataclasses import dataclass
from typing import Literal

from dfdc_ray.config import PreprocessConfig, SamplingMethod
from dfdc_ray.errors import UserError
from dfdc_ray.faces.detect import resolve
from dfdc_ray.faces.follow import SMALLER_SIDES
from dfdc_ray.faces.weights import checksums
from dfdc_ray.shards.format import FORMAT_VERSION

CLIPS = 4  # of a video
MAX_SIDE = {"face": 320, "frame": 640}  # pixels


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides which rows and bytes come out: the hashed configuration of an output folder."""

    sampling: SamplingMethod
    frames: int
    clips: int | None = None  # None without clips, as is the next
    stride: int | None = None
    real_multiplier: int
    detector: str | None  # None with whole frames, as are the next two
    detector_threshold: float | None
    detector_long_side: int | None
    detector_smaller_sides: tuple[int, ...]  # faces/follow.py; empty: every frame at the full long side
    weights: dict[str, str]  # the detector's files by SHA-256
    crop: Literal["face", "frame"]
    margin: float
    max_side: int
    image_format: Literal["jpeg", "png"]
    sound: bool = False
    format_version: int


def settings_of(config: PreprocessConfig) -> Settings:
    """Resolve the options. Raises UserError for values that make no sense."""
    faces = config.crop == "face"
    in_clips = config.sampling == "clips"
    if not in_clips and (config.clips, config.stride) != (None, None):
        raise UserError("--clips and --stride go with --sampling clips.")
    clips, stride = (CLIPS if config.clips is None else config.clips), (1 if config.stride is None else config.stride)
    max_side = config.max_side or MAX_SIDE[config.crop]
    for name, value, least in (
        ("frames", config.frames, 2 if in_clips else 1),
        ("clips", clips, 1),
        ("stride", stride, 1),
        ("real-multiplier", config.real_multiplier, 1),
        ("max-side", max_side, 16),
        ("margin", config.margin, 0),
    ):
        if value < least:
            raise UserError(f"--{name} {value}: must be at least {least}.")
    threshold, long_side = resolve(config.detector, threshold=config.detector_threshold, long_side=config.detector_long_side)
    return Settings(
        sampling=config.sampling,
        frames=config.frames,
        clips=clips if in_clips else None,
        stride=stride if in_clips else None,
        real_multiplier=config.real_multiplier,
        detector=config.detector if faces else None,
        detector_threshold=threshold if faces else None,
        detector_long_side=long_side if faces else None,
        detector_smaller_sides=tuple(side for side in SMALLER_SIDES.get(config.detector, ()) if side < long_side) if faces else (),
        weights=checksums(config.detector) if faces else {},
        crop=config.crop,
        margin=config.margin if faces else 0.0,
        max_side=max_side,
        image_format=config.image_format,
        sound=config.sound,
        format_version=FORMAT_VERSION,
    )
