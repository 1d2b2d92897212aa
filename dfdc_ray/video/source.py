"""A file's video stream, opened for FFmpeg: whose trouble an error is, the video's or the storage's, is told apart here."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, TypeVar

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from dfdc_ray.errors import Stage, VideoError

T = TypeVar("T")
MAX_SIDE = 16384  # pixels; larger frames are refused before they are decoded


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
        with av.open(source, mode="r", metadata_errors="replace") as container:
            stream = _video_stream(container, stage)
            context = stream.codec_context
            context.thread_count = 1
            context.thread_type = "NONE"
            context.options = {"max_pixels": str(MAX_SIDE * MAX_SIDE)}
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
        raise VideoError(stage, f"not a readable video: {error.strerror}") from error
    if source.error is not None:
        raise source.error


def _video_stream(container: InputContainer, stage: Stage) -> VideoStream:
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]  # cover art is no video
    if not streams:
        found = ", ".join(s.type for s in container.streams) or "no streams"
        raise VideoError(stage, f"no video stream in this {container.format.name} file, only {found}")
    stream = streams[0]
    if stream.codec_context is None:
        raise VideoError(stage, "FFmpeg has no decoder for the video stream")
    width, height = stream.codec_context.width, stream.codec_context.height
    if max(width, height) > MAX_SIDE:
        raise VideoError(stage, f"frames of {width}x{height} pixels are refused (at most {MAX_SIDE} on a side)")
    return stream
