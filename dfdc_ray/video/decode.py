"""Reading videos with PyAV (FFmpeg): when their frames are shown, and the pixels of wanted ones without decoding more than they need.

A frame's index is its place in presentation order. H.264 packets of frames that no other frame refers to (see h264.py) are not decoded
unless wanted, nor is anything between two IDR pictures if no frame there is wanted; with any other codec, and in containers that do not
say when frames are shown (AVI, raw streams), everything up to the last wanted frame is. Either way only wanted frames are converted, and
they are bit-identical to those of a full decode.

Colours follow the stream's own tags (matrix and range); where it has none, swscale assumes ITU-R BT.601, limited range, as OpenCV does.
One thread: the caller runs one process for each CPU.
"""

from __future__ import annotations  # av.Packet has type parameters in its stubs only

import math
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import av
import numpy as np
from av.buffer import Buffer
from av.container import InputContainer
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from dfdc_ray.errors import VideoError
from dfdc_ray.video import h264
from dfdc_ray.video.source import open_stream, refuse_too_many

MAX_DELAY = 32  # frames; what has not come out when a packet so much later has will not come (H.264 and HEVC reorder by 16 at most)


@dataclass(frozen=True, eq=False)
class VideoInfo:
    """What is known of a video without decoding it."""

    width: int
    """Pixels, as shown: after rotation."""
    height: int
    codec: str
    """FFmpeg's name, such as h264 or hevc."""
    pts: NDArray[np.int64]
    """[N] ascending presentation timestamp of each frame, in the stream's time base."""
    times: NDArray[np.float64]
    """[N] the same in seconds. The first need not be 0."""
    rotation: int
    """Degrees counterclockwise by which stored frames are turned to be shown: 0, 90, 180 or 270."""
    mirrored: bool = False
    """Frames are mirrored left to right after that."""
    timed: bool = True
    """The packets say when their frames are shown. False: frames are counted as they leave the decoder."""
    clean_starts: tuple[int, ...] = ()
    """Timestamps at which decoding may start afresh (h264.CleanStarts); empty where that is not sure."""
    fault: str = ""
    """What is wrong with the file as a whole, such as its end missing. decode_frames raises it after the frames it could give."""


def probe(file: BinaryIO) -> VideoInfo:
    """Read the packets of a video (a seekable file, from its start), and decode one frame, which tells size and rotation.

    VideoError("probe", ...) if this is no video or no frame of it can be decoded. An exception of the file itself is passed on.
    """
    with open_stream(file, "probe") as (container, stream):
        first: VideoFrame | None = None
        stamps: list[tuple[int | None, int | None]] = []
        packets, corrupt, fault, cause = 0, False, "", ""
        announced = len(stream.index_entries) if "mp4" in container.format.name else 0  # listed apart from the packets themselves
        refuse_too_many(announced)
        starts = h264.CleanStarts(h264.length_size(stream.codec_context.extradata)) if stream.codec.canonical_name == "h264" else None
        try:
            for packet in _from_keyframe(container.demux(stream)):
                packets += 1
                corrupt = packet.is_corrupt
                if not packet.is_discard:  # an edit list leaves these out
                    stamps.append((packet.pts, packet.dts))
                    refuse_too_many(len(stamps))
                if starts is not None:
                    starts.add(bytes(packet), packet.pts)
                if first is None and packet.is_keyframe:
                    first, cause = _decode_one(stream.codec_context, packet)
        except MemoryError:
            raise
        except av.FFmpegError as error:
            fault = f"the file is damaged after frame {len(stamps)}: {error.strerror}"
        if not fault and (corrupt or packets < announced):
            total = f" of {announced}" if announced else ""
            fault = f"the file is cut short or damaged: {len(stamps)} frames{total} can be read. Download or copy it again."
        time_base = stream.time_base
        if packets == 0 and not fault:
            raise VideoError("probe", f"its video stream ({stream.codec.canonical_name}) has no keyframe, or no frames at all")
        if first is None or time_base is None or not stamps:
            raise VideoError("probe", fault or f"none of its {len(stamps)} frames can be decoded ({stream.codec.canonical_name}{cause})")
        pts, timed = _presentation_order(stamps, container, stream)
        rotation, mirrored = _orientation(first)
        width, height = (first.height, first.width) if rotation in (90, 270) else (first.width, first.height)
        times = pts * time_base.numerator / time_base.denominator
        clean = tuple(starts.times) if starts is not None and timed else ()
        return VideoInfo(width, height, stream.codec.canonical_name, pts, times, rotation, mirrored, timed, clean, fault)


def decode_frames(file: BinaryIO, info: VideoInfo, wanted: Sequence[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Decode the frames of these indices (ascending, unique) in one pass over the file that `info` was made from.

    Yields (index, uint8 RGB [height, width, 3]) in ascending order. After the last, VideoError("decode", ...) if wanted frames are missing
    or damaged, or the file has a fault: damaged frames, and those that refer to them, are left out. Only damage that the decoder notices
    counts: some reads as other valid pictures, in HEVC and VP9 often. Where a stream changes its size half-way, so do the frames.
    ValueError for indices that are not ascending or not in the video.
    """
    wanted = [int(index) for index in wanted]
    if sorted(set(wanted)) != wanted or (wanted and not 0 <= wanted[0] <= wanted[-1] < len(info.pts)):
        raise ValueError(f"frames must be ascending, unique and in 0..{len(info.pts) - 1}: {wanted}")
    return _decode(file, info, wanted)


def _decode(file: BinaryIO, info: VideoInfo, wanted: list[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    missing = set(wanted)
    if not missing:
        return
    with open_stream(file, "decode") as (container, stream):
        one_pass = _Pass(stream.codec_context, info, wanted)
        try:
            for packet in _from_keyframe(container.demux(stream)):
                for index, frame in one_pass.send(packet):
                    yield index, _to_rgb(frame, info)
                    missing.remove(index)
                if one_pass.complete:
                    break
        except MemoryError:
            raise
        except av.FFmpegError as error:
            one_pass.errors.append(str(error.strerror))
        for index, frame in one_pass.flush():
            yield index, _to_rgb(frame, info)
            missing.remove(index)
        if missing:
            cause = f": {one_pass.errors[0]}" if one_pass.errors else ""
            which = f"the first is frame {min(missing)} of {len(info.pts)}"
            raise VideoError("decode", f"{len(missing)} of {len(wanted)} wanted frames could not be decoded ({which}){cause}")
        if info.fault:
            raise VideoError("decode", info.fault)


class _Pass:
    """One pass of a stream through the decoder: which packets it gets, and which of its frames may be handed on.

    Packets are numbered as they are sent, and frames carry these numbers in place of their timestamps, which may repeat.
    """

    def __init__(self, context: VideoCodecContext, info: VideoInfo, wanted: list[int]) -> None:
        self.context = context
        self.info = info
        self.last = wanted[-1]
        self.wanted = set(wanted)
        self.wanted_pts = set(info.pts[wanted].tolist())
        self.unsent = int(np.isin(info.pts, info.pts[wanted]).sum())
        self.selective = info.timed and info.codec == "h264"
        self.wanted_stretches = {bisect_right(info.clean_starts, pts) for pts in self.wanted_pts}
        self.length_size = h264.length_size(context.extradata)
        self.errors: list[str] = []
        self.sent_pts: list[int] = []  # by number
        self.keyframes: list[int] = []  # numbers
        self.damaged: dict[int, bool] = {}  # number: whether other frames may refer to it
        self.references: list[bool] = []  # by number
        self.out_pts: Counter[int] = Counter()
        self.out = 0  # frames that have left the decoder
        self.released = -1  # the last index handed on
        self.inside: set[int] = set()  # numbers that have not
        self.held: deque[tuple[int, int, VideoFrame]] = deque()  # number, index, frame

    @property
    def complete(self) -> bool:
        """All wanted frames are in the decoder."""
        if self.info.timed:
            return self.unsent == 0
        return self.out > self.last

    def send(self, packet: Packet[VideoStream]) -> Iterator[tuple[int, VideoFrame]]:
        wanted = packet.pts in self.wanted_pts and not packet.is_discard
        self.unsent -= wanted
        if packet.has_sidedata("new_extradata"):  # another form of packets may follow
            self.selective = False
        if self.selective and self.info.clean_starts and bisect_right(self.info.clean_starts, packet.pts or 0) not in self.wanted_stretches:
            return
        reference = not self.selective or h264.is_reference(bytes(packet), self.length_size)
        if self.selective and not wanted and not reference:
            return
        number = len(self.sent_pts)
        self.sent_pts.append(packet.pts or 0)  # absent only where it is not used
        self.references.append(reference)
        if packet.is_keyframe:
            self.keyframes.append(number)
        if packet.is_corrupt:
            self.damaged[number] = reference
        if not packet.is_discard:
            self.inside.add(number)
        packet.pts = number
        yield from self._decode(packet, number)

    def flush(self) -> Iterator[tuple[int, VideoFrame]]:
        if self.sent_pts:
            yield from self._decode(None, len(self.sent_pts) - 1)
        self.inside.clear()
        yield from self._release()

    def _decode(self, packet: Packet[VideoStream] | None, number: int) -> Iterator[tuple[int, VideoFrame]]:
        try:
            frames = self.context.decode(packet)
        except MemoryError:
            raise
        except av.FFmpegError as error:
            self.errors.append(str(error.strerror))
            self.damaged[number] = self.references[number]
            self.inside.discard(number)
            return
        for frame in frames:
            if frame.pts is None:
                continue
            if frame.is_corrupt:
                self.damaged[frame.pts] = self.references[frame.pts]
            self.inside = {n for n in self.inside if n != frame.pts and n > frame.pts - MAX_DELAY}
            index = self._index(frame.pts)
            if index in self.wanted:
                self.held.append((frame.pts, index, frame))
            self.out += 1
        yield from self._release()

    def _index(self, number: int) -> int:
        """Presentation index of the frame that leaves the decoder now. Among equal timestamps, the decoder's order counts."""
        if not self.info.timed:
            return self.out
        pts = self.sent_pts[number]
        self.out_pts[pts] += 1
        index = int(np.searchsorted(self.info.pts, pts)) + self.out_pts[pts] - 1
        return index if index < len(self.info.pts) and self.info.pts[index] == pts else -1  # -1: a second frame from one packet

    def _release(self) -> Iterator[tuple[int, VideoFrame]]:
        """The frames whose references have left the decoder too: one may come out later, and only then be known to be damaged."""
        while self.held and not any(n < self.held[0][0] for n in self.inside):
            number, index, frame = self.held.popleft()
            if index > self.released and self._sound(number):  # out of order: its timestamp contradicts the decoder
                self.released = index
                yield index, frame

    def _sound(self, number: int) -> bool:
        """Whether neither this frame nor one that it may refer to is damaged. No frame refers beyond the keyframe that it follows."""
        start = 0
        if self.info.timed:
            pts = self.sent_pts
            start = max((k for k in self.keyframes if k <= number and pts[k] <= pts[number]), default=0)
        return not any(bad == number or (start <= bad < number and reference) for bad, reference in self.damaged.items())


def _from_keyframe(packets: Iterator[Packet[VideoStream]]) -> Iterator[Packet[VideoStream]]:
    """The packets that hold pictures, from the first keyframe on: nothing before it can be decoded."""
    started = False
    for packet in packets:
        started = started or packet.is_keyframe
        if started and packet.size > 0:  # an empty one would end the decoding; demux() closes with one
            yield packet


def _decode_one(context: VideoCodecContext, keyframe: Packet[VideoStream]) -> tuple[VideoFrame | None, str]:
    """Decode a keyframe by itself, without the flags by which an edit list hides it. Returns the frame, or None and why."""
    try:
        frames = [*context.decode(Packet(bytes(keyframe))), *context.decode(None)]
    except MemoryError:
        raise
    except av.FFmpegError as error:
        return None, f": {error.strerror}"
    finally:
        context.flush_buffers()
    return (frames[0], "") if frames else (None, "")


def _presentation_order(
    stamps: list[tuple[int | None, int | None]], container: InputContainer, stream: VideoStream
) -> tuple[NDArray[np.int64], bool]:
    """Ascending timestamps of the frames, and whether each packet carries its own."""
    shown = [pts for pts, _ in stamps if pts is not None]
    decoded = [dts for _, dts in stamps if dts is not None]
    if len(shown) == len(stamps) and container.format.name != "avi":  # AVI has none, and FFmpeg's guess is wrong with B-frames
        return np.array(sorted(shown), np.int64), True
    if len(decoded) == len(stamps):
        return np.array(sorted(decoded), np.int64), False
    rate = stream.guessed_rate
    if shown or decoded or not rate or not stream.time_base:
        raise VideoError("probe", f"{len(stamps) - len(shown)} of {len(stamps)} frames have no timestamp (remux it with ffmpeg -c copy)")
    return np.array([round(i / rate / stream.time_base) for i in range(len(stamps))], np.int64), False  # a raw stream


def _orientation(frame: VideoFrame) -> tuple[int, bool]:
    """(degrees counterclockwise, mirrored afterwards) from the display matrix: int32 a b u, c d v, x y w (libavutil/display.h)."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if not isinstance(matrix, Buffer):
        return 0, False
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    mirrored = a * d - b * c < 0
    degrees = math.degrees(math.atan2(-b, -a if mirrored else a)) % 360
    rotation = round(degrees / 90) * 90
    if abs(degrees - rotation) > 1:
        raise VideoError("probe", f"rotated by {degrees:.0f} degrees: only quarter turns are supported. Convert it upright.")
    return rotation % 360, mirrored


def _to_rgb(frame: VideoFrame, info: VideoInfo) -> NDArray[np.uint8]:
    rgb = np.rot90(frame.to_ndarray(format="rgb24", threads=1), info.rotation // 90)
    return np.ascontiguousarray(rgb[:, ::-1] if info.mirrored else rgb, np.uint8)
