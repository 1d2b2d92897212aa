"""From the scores of faces to the score of a video: one number for each track, maximum over the tracks that are there long enough.

One manipulated face makes the video a fake, hence the maximum; a passer-by or a false detection in few frames must not decide, hence
the 30 %. When no track is that long (the face comes and goes), the longest track or tracks count instead. Plain numpy and scipy.

How the frames of a track become one number is a rule, which `dfdc-ray calibrate` chooses on validation; the default is their mean.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit

MIN_COVERAGE_PERCENT = 30
DEFAULT = "mean"
CLIP = 1e-6  # scores are kept so far from 0 and 1 where their logit is taken
_SURE, _SURE_REAL = 0.8, 0.2  # of the rule "confident"


def _mean_logit(scores: np.ndarray) -> float:
    return float(expit(logit(np.clip(scores, CLIP, 1 - CLIP)).mean()))


def _top_quarter(scores: np.ndarray) -> float:
    return float(np.sort(scores)[-max(1, round(len(scores) / 4)) :].mean())


def _confident(scores: np.ndarray) -> float:
    fake, real = scores > _SURE, scores < _SURE_REAL
    if fake.sum() > len(scores) / 2.5 and fake.sum() > 11:
        return float(scores[fake].mean())
    return float(scores[real].mean()) if real.sum() > 0.9 * len(scores) else float(scores.mean())


RULES: dict[str, Callable[[np.ndarray], float]] = {
    "mean": lambda scores: float(scores.mean()),
    "mean_logit": _mean_logit,
    "max": lambda scores: float(scores.max()),
    "top_quarter": _top_quarter,
    "confident": _confident,
}
"""Scores of a track's frames (float64 [N >= 1], in [0, 1]) to one score in [0, 1].

mean_logit: polimi's (Bonettini et al. 2020, https://arxiv.org/abs/2004.07676). top_quarter: so that a few bad frames do not drown in many
good ones. confident: Seferbekov's, of the winning DFDC entry: of the sure fakes (above 0.8) where they are more than 11 and 40 % of the
frames, of the sure reals (below 0.2) where they are more than 90 %, else of all. The order of this table breaks ties.
"""

_WORDS = {
    "mean": "mean",
    "mean_logit": "mean of the logits",
    "max": "highest",
    "top_quarter": "mean of the highest quarter",
    "confident": "mean of the sure ones where there are many",
}


def describe(rule: str) -> str:
    """For people."""
    return (
        f"video: {_WORDS[rule]} over the frames of a track, maximum over the tracks on at least {MIN_COVERAGE_PERCENT} % of the sampled "
        "frames (where no track is that long: the longest); frame: maximum over those tracks"
    )


@dataclass(frozen=True)
class Aggregate:
    """The score of one video and of its frames."""

    score: float
    tracks: tuple[int, ...]  # the track ids that counted, ascending
    short: bool  # no track covered enough of the video, so the longest counted
    frames: np.ndarray  # int64 [F], ascending: the frames in which a counted track has a face
    frame_scores: np.ndarray  # float64 [F]: the highest score of a counted track's face in that frame


def counted_tracks(track_ids: np.ndarray, sampled_frames: int) -> tuple[np.ndarray, bool]:
    """Which tracks decide, given each face's track id [N >= 1] and how many frames were sampled and decoded.

    Returns the ids, ascending, and whether they are too short and count only because no other track is longer.
    """
    tracks, lengths = np.unique(track_ids, return_counts=True)
    enough = lengths * 100 >= MIN_COVERAGE_PERCENT * sampled_frames  # integers: 3 frames of 10 are exactly 30 %
    if enough.any():
        return tracks[enough], False
    return tracks[lengths == lengths.max()], True


def aggregate_video(
    track_ids: np.ndarray, frames: np.ndarray, scores: np.ndarray, sampled_frames: int, *, rule: str = DEFAULT
) -> Aggregate:
    """One video's score from its faces: three arrays [N] with one entry per face, a track having at most one face in a frame.

    rule: of RULES. Raises ValueError without any face: such a video has no score.
    """
    if len(scores) == 0:
        raise ValueError("a video without faces has no score")
    order = np.lexsort((frames, track_ids))  # one order of summation, whatever the order of the rows
    track_ids, frames, scores = np.asarray(track_ids)[order], np.asarray(frames)[order], np.asarray(scores, dtype=np.float64)[order]
    tracks, short = counted_tracks(track_ids, sampled_frames)
    counts = np.isin(track_ids, tracks)
    unique_frames, position = np.unique(frames[counts], return_inverse=True)
    frame_scores = np.full(len(unique_frames), -np.inf)
    np.maximum.at(frame_scores, position, scores[counts])
    return Aggregate(
        score=max(RULES[rule](scores[track_ids == track]) for track in tracks),
        tracks=tuple(int(track) for track in tracks),
        short=short,
        frames=unique_frames.astype(np.int64),
        frame_scores=frame_scores,
    )


def aggregate(
    video_ids: np.ndarray,
    track_ids: np.ndarray,
    frames: np.ndarray,
    scores: np.ndarray,
    sampled_frames: Mapping[str, int],
    *,
    rule: str = DEFAULT,
) -> dict[str, Aggregate]:
    """Every video's score from a table of faces: four arrays [N], one entry per face, in any order.

    `sampled_frames` maps a video id to its number of sampled frames that could be decoded, with or without a face.
    """
    if len(video_ids) == 0:
        return {}
    order = np.argsort(video_ids, kind="stable")
    ids, starts = np.unique(np.asarray(video_ids)[order], return_index=True)
    return {
        str(video_id): aggregate_video(track_ids[rows], frames[rows], scores[rows], sampled_frames[str(video_id)], rule=rule)
        for video_id, rows in zip(ids, np.split(order, starts[1:]), strict=True)
    }
