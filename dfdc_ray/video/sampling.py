"""Which frames of a video are looked at: arithmetic on timestamps, nothing is opened or decoded here.

    spread      n moments evenly over the video, its ends avoided
    centre      n consecutive frames around the middle
    per_second  as spread, with n for every second of video
    clips       c runs of n frames, every s-th, evenly over the video; no frame is in two of them

Core samples are the ones that an original and its fakes share, and that evaluation uses. A multiplier adds frames between and around them
(for real videos, to balance the classes) and never moves them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dfdc_ray.config import SamplingMethod
from dfdc_ray.errors import UserError

# A moment this share of a frame before a frame's time counts as that time: n moments over N frames often fall exactly on a frame,
# and rounding in float64 must not decide between it and the one before.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Sample:
    """One frame to look at."""

    frame: int
    """Index in presentation order."""
    core: bool
    """One of the samples shared by an original and its fakes; False: one of the extra frames that a multiplier asked for."""
    clip: int | None = None
    """Number of its clip in the video, core clips first; None without clips."""
    position: int | None = None
    """In the clip."""


def sample(
    times: NDArray[np.float64], *, method: SamplingMethod, frames: int, multiplier: int = 1, clips: int = 1, stride: int = 1
) -> list[Sample]:
    """Choose frames of a video whose frames are shown at `times` (float64 [N], seconds, ascending).

    Returns unique samples in ascending order, at most `multiplier * frames` of them (for each second with `per_second`): fewer where
    several moments show the same frame, and every frame once where the video has no more than were asked for. The core samples are the same
    for every multiplier. With `clips` frames are those of one clip, `stride` apart, by number and not by time; there are fewer clips where
    the video is too short for them, and none where it is shorter than one. UserError if a number is below 1, ValueError if there are no
    times.
    """
    if min(frames, multiplier, clips, stride) < 1:
        raise UserError(f"sampling: frames ({frames}), multiplier ({multiplier}), clips ({clips}) and stride ({stride}) must be at least 1")
    total = len(times)
    if total == 0:
        raise ValueError("a video without frames cannot be sampled")
    if method == "centre":
        return _centre(total, frames, multiplier)
    if method == "clips":
        return _clips(total, clips, frames, stride, multiplier)
    # The last frame is shown as long as a typical one.
    frame_s = float(np.median(np.diff(times))) if total > 1 else 0.0
    span_s = float(times[-1] - times[0]) + frame_s
    if method == "per_second":
        frames = max(1, round(span_s * frames))
    return _spread(times, span_s, frame_s, frames, multiplier)


def subset(samples: Sequence[Sample], n_frames: int) -> list[Sample]:
    """The samples that a fake of `n_frames` frames takes from its original's: the core ones before its end; of clips, whole ones."""
    cut = {s.clip for s in samples if s.clip is not None and s.frame >= n_frames}
    return [s for s in samples if s.core and s.frame < n_frames and s.clip not in cut]


def _centre(total: int, frames: int, multiplier: int) -> list[Sample]:
    def around_middle(count: int) -> range:
        start = max(0, (total - count) // 2)
        return range(start, min(total, start + count))

    core = around_middle(frames)
    return [Sample(frame, frame in core) for frame in around_middle(multiplier * frames)]


def _clips(total: int, clips: int, frames: int, stride: int, multiplier: int) -> list[Sample]:
    """A core clip in the middle of each of equal parts, and m - 1 more in each, after and before it in turn, where there is room."""
    length = (frames - 1) * stride + 1
    count = min(clips, total // length)
    core, extra = [], []
    for part in range(count):
        low, high = part * total // count, (part + 1) * total // count
        middle = low + (high - low - length) // 2
        core.append(middle)
        around = [middle + sign * step * length for step in range(1, multiplier) for sign in (1, -1)]
        extra += [start for start in around if low <= start <= high - length][: multiplier - 1]
    return sorted(
        (
            Sample(start + position * stride, number < count, number, position)
            for number, start in enumerate(core + extra)
            for position in range(frames)
        ),
        key=lambda s: s.frame,
    )


def _spread(times: NDArray[np.float64], span_s: float, frame_s: float, frames: int, multiplier: int) -> list[Sample]:
    """The frames shown at the fractions (i + 0.5) / n of the span, and m - 1 more around each of them, 1 / (m n) apart."""
    if len(times) <= frames:
        return [Sample(frame, True) for frame in range(len(times))]
    centres = (np.arange(frames) + 0.5) / frames
    steps = np.arange(multiplier) - (multiplier - 1) // 2
    fractions = (centres[:, None] + steps[None, :] / (multiplier * frames)).ravel()
    if multiplier % 2 == 0:  # one more step after each core sample than before it, so that the last would fall on the very end
        fractions[-1] = 1 - 0.5 / (multiplier * frames)

    def shown_at(fraction: NDArray[np.float64]) -> NDArray[np.int64]:
        moments = times[0] + fraction * span_s + TOLERANCE * frame_s
        return np.searchsorted(times, moments, side="right") - 1

    core = set(shown_at(centres).tolist())
    everything = set(range(len(times))) if len(times) <= multiplier * frames else core | set(shown_at(fractions).tolist())
    return [Sample(frame, frame in core) for frame in sorted(everything)]
