"""Boxes linked over sampled frames: which faces are one person's, and who is the subject."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from dfdc_ray.faces.detect import Box, Face

_REACH = 1.5  # how far a head may move between two samples, in sides of its box
_MAX_SIZE_RATIO = 2.0  # and how much its box may grow or shrink


def link(frames: Sequence[tuple[int, Sequence[Face]]]) -> list[list[int]]:
    """For each frame, the track of each of its faces: 0 is the main subject, higher numbers matter less.

    frames: (presentation-order index, faces), ascending; samples may be tens of frames apart, and a track may have gaps of any length.
    In each frame faces are assigned to the tracks so far by the Hungarian method (Kuhn 1955), on overlap and, as heads move between
    samples, distance relative to size. Only boxes are looked at: when two people cross between samples, or one stands where another
    has just been, their tracks may be exchanged or joined. Raises ValueError if frames do not ascend.
    """
    if any(a >= b for (a, _), (b, _) in pairwise(frames)):
        raise ValueError("frames must ascend")
    tracks: list[list[Box]] = []
    linked = []
    for _, faces in frames:
        affinity = np.array([[_affinity(track[-1], face.box) for track in tracks] for face in faces]).reshape(len(faces), len(tracks))
        from scipy.optimize import linear_sum_assignment  # a second of CPU time and 40 MB, which only the decoding process needs

        rows, columns = linear_sum_assignment(affinity, maximize=True)
        known = {int(i): int(j) for i, j in zip(rows, columns, strict=True) if affinity[i, j] > 0}
        ids = []
        for i, face in enumerate(faces):
            if i in known:
                tracks[known[i]].append(face.box)
            else:
                tracks.append([face.box])
            ids.append(known.get(i, len(tracks) - 1))
        linked.append(ids)
    rank = _rank(tracks)
    return [[rank[track] for track in ids] for ids in linked]


def steady(frames: Sequence[tuple[int, Sequence[Face]]]) -> list[list[Face]]:
    """For each frame of a clip the faces that are there in at least half of its frames, each with one box for the whole clip.

    The box is the median of the track's boxes, so that a crop does not jitter with the detector; the score is the mean; landmarks are each
    frame's own, None where the face was not found. Frames as for `link`.
    """
    found: dict[int, dict[int, Face]] = {}
    for (frame, faces), tracks in zip(frames, link(frames), strict=True):
        for face, track in zip(faces, tracks, strict=True):
            found.setdefault(track, {})[frame] = face
    kept = [faces for _, faces in sorted(found.items()) if 2 * len(faces) >= len(frames)]
    steadied = []
    for of_track in kept:
        x, y, w, h = (float(side) for side in np.median([face.box for face in of_track.values()], axis=0))
        score = float(np.mean([face.score for face in of_track.values()]))
        landmarks = {frame: face.landmarks for frame, face in of_track.items()}
        steadied.append({frame: Face(box=(x, y, w, h), score=score, landmarks=landmarks.get(frame)) for frame, _ in frames})
    return [[track[frame] for track in steadied] for frame, _ in frames]


def _affinity(a: Box, b: Box) -> float:
    """0 (cannot be the same face) to 2 (the same box): intersection over union, plus nearness of the centres."""
    (ax, ay, aw, ah), (bx, by, bw, bh) = a, b
    side_a, side_b = (aw * ah) ** 0.5, (bw * bh) ** 0.5
    if max(side_a, side_b) > _MAX_SIZE_RATIO * min(side_a, side_b):
        return 0.0
    distance = float(np.hypot(ax + aw / 2 - bx - bw / 2, ay + ah / 2 - by - bh / 2))
    nearness = 1 - distance / (_REACH * (side_a + side_b) / 2)
    if nearness <= 0:
        return 0.0
    overlap = max(0.0, min(ax + aw, bx + bw) - max(ax, bx)) * max(0.0, min(ay + ah, by + bh) - max(ay, by))
    return overlap / (aw * ah + bw * bh - overlap) + nearness


def _rank(tracks: Sequence[Sequence[Box]]) -> list[int]:
    """New number of each track. First those seen in at least half as many frames as the longest, then the others; by frames times size.

    So nobody who merely passes becomes the subject, however close to the camera, nor does somebody small in the background who is
    found in one frame more than the person who speaks.
    """
    longest = max(map(len, tracks), default=0)
    presence = [sum((w * h) ** 0.5 for _, _, w, h in track) for track in tracks]
    order = sorted(range(len(tracks)), key=lambda i: (2 * len(tracks[i]) < longest, -presence[i], i))
    rank = [0] * len(tracks)
    for new, old in enumerate(order):
        rank[old] = new
    return rank
