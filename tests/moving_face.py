"""Videos made here: a photographed face that moves over a background, the background alone, and a file that is no video."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import skimage.data

WIDTH, HEIGHT, FRAMES, RATE = 480, 360, 24, 12
FACE_SECONDS = (0.5, 2.0)  # the face is there from the first to the second, of 2 s
# The portrait's upper part, and in it the face: x, y, width, height by eye.
PORTRAIT = skimage.data.astronaut()[:256, 96:352]
FACE = (84, 62, 78, 112)


def write(path: Path, frames: list[np.ndarray], *, rate: int = RATE, begins_s: int = 0) -> None:
    """As H.264. begins_s: the timestamp of the first frame."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "18", "bf": "2"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = begins_s * rate + number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def portrait_at(frame: int) -> tuple[int, int]:
    """Where the portrait's left upper corner is."""
    return 20 + 8 * frame, 40 + 2 * frame


def write_videos(folder: Path) -> Path:
    """face.mp4 (a face from 0.5 s on), late.ts and late.mkv (the same, its timestamps from 2 h on), empty.mp4 (the background alone),
    text.mp4 (no video)."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    background = np.stack([columns // 4, rows // 3, 128 + 0 * rows], axis=-1).astype(np.uint8)
    moving = []
    for number in range(FRAMES):
        frame = background.copy()
        if number >= FACE_SECONDS[0] * RATE:
            x, y = portrait_at(number)
            frame[y : y + 256, x : x + 256] = PORTRAIT
        moving.append(frame)
    write(folder / "face.mp4", moving)
    for name in ("late.ts", "late.mkv"):
        write(folder / name, moving, begins_s=7200)
    write(folder / "empty.mp4", [background] * FRAMES)
    (folder / "text.mp4").write_text("not a video")
    return folder
