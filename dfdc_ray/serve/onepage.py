"""A scored video as one page that can be printed: verdict, timeline, the faces behind it, the model's card, and what a score cannot say.

dfdc-ray predict VIDEO --checkpoint out/train/best --report DIR
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dfdc_ray import __version__, pages
from dfdc_ray.corpus import splits
from dfdc_ray.evaluate.aggregate import MIN_COVERAGE_PERCENT, describe
from dfdc_ray.evaluate.heat import Shown, drawn, shown
from dfdc_ray.evaluate.metrics import THRESHOLD
from dfdc_ray.evaluate.scorer import Scorer
from dfdc_ray.pages import Table
from dfdc_ray.serve import show
from dfdc_ray.serve.judge import Evidence, VideoScore

FACES = 3  # of the highest and of the lowest scores each; of clips one each
_TICKS = 6
_WIDTH, _HEIGHT = 700, 110  # of a lane of the timeline, in its own units


@dataclass(frozen=True)
class Lane:
    """A track in the timeline: points x, y."""

    name: str
    counted: bool
    points: Sequence[tuple[float, float]]


def page(evidence: Evidence, scorer: Scorer, *, name: str) -> bytes:
    """The whole page, also of a video without a score. name: as the video shall be called."""
    video = evidence.video
    scored = len({face.frame for track in video.tracks for face in track.faces})
    return pages.render(
        "score.html",
        title=f"{name}: {video.verdict or 'no score'}",
        made_from=f"dfdc-ray {__version__}, weights {_weights(scorer)}",
        name=name,
        video=video,
        unit=video.unit,
        shown=None if video.score is None else show.shown(video),
        drawn=drawn(scorer),
        scored=scored,
        sureness=None if video.score is None else show.sureness(video),
        meaning=None if video.score is None else show.meaning(video),
        limits=show.LIMITS,
        threshold=THRESHOLD,
        min_coverage=MIN_COVERAGE_PERCENT,
        timeline=_timeline(video),
        width=_WIDTH,
        height=_HEIGHT,
        pictures=_pictures(evidence, scorer),
        tracks=Table([*show.tracks_head(video)[:-1], "remark"], show.tracks(video), texts=[len(show.tracks_head(video)) - 1]),
        card=Table(["what", "value"], _card(scorer), names=[1], texts=[1]),
        calibration=scorer.calibration,
        sound=scorer.sound,
    )


def _timeline(video: VideoScore) -> tuple[list[Lane], list[tuple[float, str]]] | None:
    """Tracks, each in a lane of its own, and times at which their axis is marked; None without a score."""
    times = [face.time_s for track in video.tracks for face in track.faces]
    if not times:
        return None
    first, last = min(times), max(times)
    scale = _WIDTH / (last - first) if last > first else 0.0
    lanes = [
        Lane(
            "whole frames" if video.subject == "frame" else f"face {track.track_id}",
            track.counted,
            [(round((face.time_s - first) * scale, 1), round(_HEIGHT * (1 - face.score), 1)) for face in track.faces],
        )
        for track in video.tracks
    ]
    ticks = np.linspace(first, last, _TICKS if scale else 1)
    return lanes, [(round((tick - first) * scale, 1), f"{tick:.1f} s") for tick in ticks.tolist()]


def _pictures(evidence: Evidence, scorer: Scorer) -> list[tuple[str, list[tuple[Shown, str]]]]:
    """Title, and pictures with what is said of them: of the tracks that count those with the highest scores, and those with the lowest that
    are not among them.
    """
    most = 1 if scorer.clips else FACES
    order = evidence.deciding
    high = order[:most]
    low = [i for i in order[::-1][:most] if i not in high]
    found = dict(zip([*high, *low], shown(scorer, [evidence.pictures[i] for i in (*high, *low)]), strict=True))
    groups = (("The highest scores", high), ("The lowest scores", low))
    return [(title, [(one, _said(evidence, i, one)) for i in some for one in found[i]]) for title, some in groups if some]


def _said(evidence: Evidence, i: int, one: Shown) -> str:
    row = evidence.rows[i]
    clip = f"{one.at + 1}. frame of the clip from " if len(evidence.pictures[i]) > 1 else ""
    face = "" if evidence.video.subject == "frame" else f", face {row['track_id'] or 0}"
    return f"{clip}{row['time_s']:.2f} s{face}: {evidence.scores[i]:.3f}"


def _weights(scorer: Scorer) -> str:
    return str(scorer.config.get("files", {}).get("model.safetensors", "of several checkpoints"))


def _card(scorer: Scorer) -> list[list[str]]:
    """What is known of the model: plain words."""
    config, faces = scorer.config, scorer.config.get("faces_config", {})

    def known(name: str) -> str:
        return _plain(config[name]) if name in config else "not recorded"

    return [
        ["model", known("model")],
        ["weights (SHA-256)", _weights(scorer)],
        ["trained on (data hash)", known("data_hash")],
        ["split rule", splits.describe(config["split"]) if "split" in config else "not recorded"],
        ["checkpoint chosen by", known("selection")],
        ["epoch", known("epoch")],
        ["share of fakes in training", known("prior")],
        ["faces of training", _plain({name: faces[name] for name in ("crop", "detector", "margin", "sampling") if name in faces})],
        ["frames to video", describe(scorer.rule)],
        ["calibration", f"{scorer.calibration.describe()}; by video alone" if scorer.calibration else "none: a score is no probability"],
        ["versions of training", known("versions")],
        ["scored by", f"dfdc-ray {__version__}"],
    ]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
