"""What an evaluation found."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dfdc_ray.evaluate.duplicates import Pair
from dfdc_ray.evaluate.metrics import THRESHOLD, Interval, Level, Metrics

WORST = 10


@dataclass(frozen=True, kw_only=True)
class JudgedVideo:
    """One labelled video of the split."""

    video_id: str
    group_id: str
    label: str  # REAL or FAKE
    method: str | None
    part: int | None
    status: str  # the ledger's, or no_core_face
    stage: str | None
    error: str | None
    raw_score: float | None  # the model's; None: no face to score
    score: float | None  # calibrated, where the checkpoint is
    counted_as: float  # the score in the metrics: the model's, or the training prior
    frames_sampled: int
    frames_scored: int
    short_tracks: bool  # no track on 30 % of the sampled frames
    lightness: float | None  # L*, 0 to 100: median over the frames (evaluate/appearance.py)
    skin_tone: float | None  # degrees: median over the frames


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """What is left after a change to every face."""

    change: str
    video: Metrics
    frame: Metrics
    video_auc: Interval | None  # of its change; None: undefined


@dataclass(frozen=True, kw_only=True)
class Report:
    """An evaluation. `protocol` holds plain JSON values; `warnings` come before any number."""

    title: str
    protocol: dict[str, Any]
    warnings: tuple[str, ...]
    video: Level
    frame: Level
    videos: tuple[JudgedVideo, ...]  # ascending video_id
    unlabelled_videos: int
    frame_scores: np.ndarray  # float64 [F], of each video its frames_scored, in the order of videos
    frame_labels: np.ndarray  # int64 [F], 0 real, 1 fake
    rules: Mapping[str, Metrics]  # by video, by each rule of aggregation, not calibrated
    rule: str  # the one in use
    robustness: tuple[Robustness, ...]  # empty: not asked for
    near_duplicates: tuple[Pair, ...] | None  # of training videos; None: not looked for
    unit: Literal["frames", "clips"]  # what is scored, and what else is said of frames here is said of
    maps_of: str  # of several models, some of which have no heat maps, those that have

    @property
    def calibrated(self) -> bool:
        """Whether the videos' scores are probabilities."""
        return any(v.score != v.raw_score for v in self.videos)

    @property
    def unscored(self) -> list[JudgedVideo]:
        """The videos that count at the prior."""
        return [v for v in self.videos if v.score is None]

    @property
    def worst(self) -> list[JudgedVideo]:
        """The scored videos with a wrong verdict, the surest first."""
        wrong = [v for v in self.videos if v.score is not None and (v.score > THRESHOLD) != (v.label == "FAKE")]
        return sorted(wrong, key=lambda v: (-abs(v.counted_as - THRESHOLD), v.video_id))[:WORST]
