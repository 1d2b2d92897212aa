"""From the scores of faces to the score of a video: mean over a track, maximum over the tracks that are there long enough.

One manipulated face makes the video a fake, hence the maximum; a passer-by or a false detection in few frames must not decide, hence
the 30 %. When no track is that long (the face comes and goes), the longest track or tracks count instead. Plain numpy.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

MIN_COVERAGE_PERCENT = 30
RULE = (
    f"video: mean over the frames of a track, maximum over the tracks on at least {MIN_COVERAGE_PERCENT} % of the sampled frames "
    "(where no track is that long: the longest); frame: maximum over the faces of those tracks"
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


def aggregate_video(track_ids: np.ndarray, frames: np.ndarray, scores: np.ndarray, sampled_frames: int) -> Aggregate:
    """One video's score from its faces: three arrays [N] with one entry per face, a track having at most one face in a frame.

    Raises ValueError without any face: such a video has no score.
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
        score=max(float(scores[track_ids == track].mean()) for track in tracks),
        tracks=tuple(int(track) for track in tracks),
        short=short,
        frames=unique_frames.astype(np.int64),
        frame_scores=frame_scores,
    )


def video_score(scores: np.ndarray, track_ids: np.ndarray, sampled_frames: int) -> float:
    """The video's score alone, from the scores and track ids of its faces [N >= 1]."""
    return aggregate_video(track_ids, np.arange(len(scores)), scores, sampled_frames).score


def aggregate(
    video_ids: np.ndarray, track_ids: np.ndarray, frames: np.ndarray, scores: np.ndarray, sampled_frames: Mapping[str, int]
) -> dict[str, Aggregate]:
    """Every video's score from a table of faces: four arrays [N], one entry per face, in any order.

    `sampled_frames` maps a video id to its number of sampled frames that could be decoded, with or without a face.
    """
    if len(video_ids) == 0:
        return {}
    order = np.argsort(video_ids, kind="stable")
    ids, starts = np.unique(np.asarray(video_ids)[order], return_index=True)
    return {
        str(video_id): aggregate_video(track_ids[rows], frames[rows], scores[rows], sampled_frames[str(video_id)])
        for video_id, rows in zip(ids, np.split(order, starts[1:]), strict=True)
    }
