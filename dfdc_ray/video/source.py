"""A file's video stream, opened for FFmpeg: whose trouble an error is, the video's or the storage's, is told apart here."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, TypeVar

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from dfdc_ray.errors import Stage, VideoError

T = TypeVar("T")
MAX_SIDE = 16384  # pixels; larger frames are refused before they are decoded,
MAX_PIXELS = 1 << 27  # as are those of more pixels: 16384x8192, four times 8K
MAX_FRAMES = 1_000_000  # 9 hours at 30 a second; listing them takes some 6 s and 250 MB
_NOTHING_ELSE = {"protocol_whitelist": "none"}  # playlists, SDP and their like would have FFmpeg open other files, hosts and ports
_MAX_BOXES = 1000


class _Source:
    """The file as FFmpeg sees it. An exception on reading is kept for the caller: storage that fails must not look like a bad video.

    It has no name, so that the format is told from the content alone.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: Exception | None = None

    def read(self, size: int) -> bytes:
        return self._guarded(lambda: self.file.read(size), b"")

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._guarded(lambda: self.file.seek(offset, whence), -1)

    def tell(self) -> int:
        return self._guarded(self.file.tell, -1)

    def _guarded(self, call: Callable[[], T], otherwise: T) -> T:
        if self.error is None:
            try:
                return call()
            except Exception as error:  # raised again in open_stream
                self.error = error
        return otherwise


@contextmanager
def open_stream(file: BinaryIO, stage: Stage) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open the file's video stream for one thread. FFmpeg's errors become VideoError(stage, ...), the file's own are raised as they are."""
    av.logging.set_level(None)  # FFmpeg's own lines on stderr; its errors are raised in any case
    file.seek(0)
    source = _Source(file)
    try:
        with av.open(source, mode="r", metadata_errors="replace", container_options=_NOTHING_ELSE) as container:
            stream = _video_stream(container, stage, file)
            context = stream.codec_context
            context.thread_count = 1
            context.thread_type = "NONE"
            context.options = {"max_pixels": str(MAX_PIXELS)}
            if stream.codec.canonical_name == "hevc":  # else the decoder keeps most errors to itself
                context.options |= {"err_detect": "explode"}
            yield container, stream
    except MemoryError:
        raise
    except (av.FFmpegError, VideoError) as error:
        if source.error is not None:
            raise source.error from error
        if isinstance(error, VideoError):
            raise
        raise VideoError(stage, f"not a readable video: {error.strerror}{_appearance(file)}") from error
    if source.error is not None:
        raise source.error


def refuse_too_many(frames: int) -> None:
    """VideoError("probe", ...) for a video of so many frames that listing them is too much."""
    if frames > MAX_FRAMES:
        raise VideoError("probe", f"it has {frames} frames or more; above {MAX_FRAMES} a video is refused. Cut it into shorter ones.")


def _video_stream(container: InputContainer, stage: Stage, file: BinaryIO) -> VideoStream:
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]  # cover art is no video
    if not streams:
        found = ", ".join("cover art" if s.type == "video" else s.type for s in container.streams) or "no streams"
        raise VideoError(stage, f"no video stream in this {container.format.name} file, only {found}{_unfinished(file)}")
    stream = streams[0]
    if stream.codec_context is None:
        reason = _unfinished(file) or ": a rare format, or encrypted. Convert it to H.264."
        raise VideoError(stage, f"FFmpeg has no decoder for the video stream{reason}")
    width, height = stream.codec_context.width, stream.codec_context.height
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        limits = f"at most {MAX_SIDE} on a side and {MAX_PIXELS} in all"
        raise VideoError(stage, f"frames of {width}x{height} pixels are refused ({limits}). Scale the video down.")
    return stream


def _appearance(file: BinaryIO) -> str:
    """What a file looks like that FFmpeg cannot open, for whoever has to find out why."""
    file.seek(0)
    start = file.read(64)
    if not start:
        return ". The file is empty: download or copy it again."
    if not any(start):
        return ". It begins with zeros, as what was never written: download or copy it again."
    if start[4:8] != b"ftyp":
        return f". It begins with {start[:16]!r}."
    return _unfinished(file)


def _unfinished(file: BinaryIO) -> str:
    """What to say of an mp4 that ends too early; nothing of others."""
    names, whole = _boxes(file)
    if names[:1] != [b"ftyp"] or (whole and b"moov" in names):
        return ""
    return ". It is an mp4 whose end is missing, or that was never finished: download or copy it again."


def _boxes(file: BinaryIO) -> tuple[list[bytes], bool]:
    """Names of an mp4's outermost boxes, and whether the last is whole. ISO/IEC 14496-12, 4.2: size (1: 64 bits follow; 0: all), name."""
    names: list[bytes] = []
    end = file.seek(0, os.SEEK_END)
    at = 0
    while at < end and len(names) < _MAX_BOXES:
        file.seek(at)
        header = file.read(16)
        size = int.from_bytes(header[8:] if header[:4] == b"\0\0\0\1" else header[:4], "big")
        names.append(header[4:8])
        if size < 8:
            return names, size == 0
        at += size
    return names, at <= end
