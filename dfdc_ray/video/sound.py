"""The sound around given moments of a video, decoded with PyAV: mono, at one rate, aligned with the frames by the container's clock."""

from collections.abc import Sequence
from typing import BinaryIO

import av
import numpy as np
from numpy.typing import NDArray

from dfdc_ray.errors import VideoError
from dfdc_ray.video.source import open_stream

RATE = 16_000  # samples a second
WINDOW = 3_200  # samples: 0.2 s, as in Chung and Zisserman 2016 (https://www.robots.ox.ac.uk/~vgg/publications/2016/Chung16a/)
_HELD = WINDOW // 2  # samples of a window that must be there; the others are silence, as at a video's ends
_SILENT = 2  # of 32768: a track that is no louder was muted
_JUMP = RATE // 50  # samples, 20 ms: nearer than this to the end of the piece before, a piece is its continuation

MUTE = {"none": "it has no sound track", "silent": "its sound track is silent"}  # in words, by what is said of the sound


def sound_around(file: BinaryIO, times: Sequence[float]) -> tuple[list[NDArray[np.int16] | None], str]:
    """For each time (s, as VideoInfo.times) the WINDOW samples in whose middle it is, int16; None where less than half of them are there.

    And what to say of the sound: "ok", "none" (there is no sound track), "silent" (nothing is on it around any of the times, all are None),
    or "damaged: ..." where not all of it could be decoded. Raises no VideoError: a video is good without its sound.
    """
    starts = np.array([round(time * RATE) - WINDOW // 2 for time in times])
    samples = np.zeros((len(starts), WINDOW), np.int16)
    there = np.zeros(len(starts), np.int64)
    last = int(starts.max()) + WINDOW if len(starts) else None
    end: int | None = None
    said = "none"
    try:
        with open_stream(file, "sound") as (container, _):
            stream = next(iter(container.streams.audio), None)
            if stream is not None:
                said = "ok"
                resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
                for packet in container.demux(stream):
                    try:
                        frames = [made for frame in packet.decode() for made in resampler.resample(frame)]
                    except MemoryError:
                        raise
                    except (av.FFmpegError, ValueError) as error:
                        said = f"damaged: {error}"
                        continue
                    end = _take(frames, end, starts, samples, there)
                    if end is not None and last is not None and end >= last:
                        break
    except VideoError as error:
        said = f"damaged: {error.message}"
    except av.FFmpegError as error:
        said = f"damaged: {error.strerror}"
    heard = samples[there >= _HELD].astype(np.int32)
    if len(heard) and np.abs(heard).max() <= _SILENT:
        return [None] * len(samples), "silent" if said == "ok" else said
    return [window if held >= _HELD else None for window, held in zip(samples, there, strict=True)], said


def _take(
    frames: Sequence[av.AudioFrame],
    end: int | None,
    starts: NDArray[np.int64],
    samples: NDArray[np.int16],
    there: NDArray[np.int64],
) -> int | None:
    """Copy what of these frames is in a window; end: of what came before, in samples by the clock (None: nothing did). Returns the new end.

    Pieces are laid end to end and the clock is followed where it jumps: many containers' clocks count milliseconds, and pieces placed by
    such numbers would leave gaps and overlap, each a click.
    """
    for frame in frames:
        if frame.pts is None or frame.time_base is None:
            continue
        data = frame.to_ndarray()[0]
        begin = round(float(frame.pts * frame.time_base) * RATE)
        if end is not None and abs(begin - end) < _JUMP:
            begin = end
        end = begin + len(data)
        for n in np.flatnonzero((starts < end) & (starts + WINDOW > begin)):
            first, last = max(begin, starts[n]), min(end, starts[n] + WINDOW)
            samples[n, first - starts[n] : last - starts[n]] = data[first - begin : last - begin]
            there[n] += last - first
    return end
