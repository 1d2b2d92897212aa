"""Bad videos, and odd ones that are good."""

from contextlib import chdir
from typing import Any

import numpy as np

from .case import DECODE, PROBE, Case, both, fake, real
from .videos import (
    FRAMES,
    HTML,
    audio_only,
    avi_of_size,
    cut,
    damaged,
    encode,
    head,
    index_in_front,
    jpeg,
    no_frames,
    png_film,
    without,
    zero_duration,
)

UNFINISHED = "It is an mp4 whose end is missing, or that was never finished: download or copy it again"
LARGE = [np.full((4320, 7680, 3), 90, np.uint8)]  # 8K
SDP = b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"

BAD = [
    Case(kind="an empty file", make=both(lambda: b""), **PROBE, says="The file is empty: download or copy it again"),
    Case(kind="an HTML page saved as mp4", make=both(lambda: HTML), **PROBE, says="It begins with b'<!DOCTYPE html"),
    Case(kind="a zip saved as mp4", make=both(lambda: b"PK\3\4" + bytes(1000)), **PROBE, says=r"It begins with b'PK\\x03\\x04"),
    Case(kind="zeros", make=both(lambda: bytes(10_000)), **PROBE, says="It begins with zeros.*download or copy it again"),
    Case(kind="random bytes", make=both(lambda: np.random.default_rng(0).bytes(10_000)), **PROBE, says="not a readable video"),
    Case(kind="subtitles saved as mp4", make=both(lambda: b"1\n00:00:00,000 --> 00:00:04,000\nHello\n"), **PROBE, says="only subtitle"),
    Case(
        kind="a playlist of other files",
        make=both(lambda: b"ffconcat version 1.0\nfile good.mp4\n"),
        around=lambda corpus: chdir(corpus / "dfdc_train_part_0"),  # where FFmpeg would look for them
        **PROBE,
        says="not a readable video",
    ),
    Case(kind="a session description (SDP), to wait for a stream", make=both(lambda: SDP), **PROBE, says="not a readable video"),
    Case(kind="moov missing", make=both(lambda: without(encode(), b"moov")), **PROBE, says=UNFINISHED),
    *(
        Case(
            kind=f"truncated at {share} %, index at the end", make=both(lambda share=share: cut(encode(), share)), **PROBE, says=UNFINISHED
        )
        for share in (10, 50, 90)
    ),
    Case(
        kind="truncated at 10 %, index in front",
        make=both(lambda: cut(index_in_front(encode()), 10)),
        **PROBE,
        says=UNFINISHED,
    ),
    *(
        Case(
            kind=f"truncated at {share} %, index in front",
            make=both(lambda share=share: cut(index_in_front(encode(n=100)), share)),
            **DECODE,
            says=r"cut short or damaged: \d+ frames of 100 can be read",
        )
        for share in (50, 90)
    ),
    Case(
        kind="frames beyond the end of the file",
        make=both(lambda: index_in_front(encode(), shift=1 << 30)),
        **PROBE,
        says=f"cut short or damaged: 0 frames of {FRAMES} can be read",
    ),
    Case(
        kind="damaged in the middle",
        make=both(lambda: damaged(encode(), range(2, FRAMES))),
        **DECODE,
        says="frames could not be decoded",
    ),
    Case(kind="the only keyframe damaged", make=both(lambda: damaged(encode(), [0])), **PROBE, says="0 frames of 12 can be read"),
    Case(kind="no frames", make=both(no_frames), **PROBE, says="no keyframe, or no frames at all"),
    Case(kind="no video stream", make=both(audio_only), **PROBE, says="no video stream in this .*mp4.* file, only audio"),
    Case(kind="sound with cover art", make=both(lambda: audio_only(cover=True)), **PROBE, says="only audio, cover art"),
    Case(kind="an unknown codec", make=both(lambda: encode().replace(b"avc1", b"zzzz")), **PROBE, says="no decoder for"),
    Case(kind="encrypted (DRM)", make=both(lambda: encode().replace(b"avc1", b"encv")), **PROBE, says="or encrypted. Convert it to H.264"),
    Case(
        kind="rotated by 45 degrees",
        make=both(lambda: encode(rotation=45)),
        **PROBE,
        says="Convert it upright",
    ),
    Case(
        kind="17000 x 1000 pixels",
        make=both(lambda: avi_of_size(17000, 1000)),
        **PROBE,
        says="17000x1000 pixels are refused",
    ),
    Case(
        kind="turns into 16k x 16k half-way",
        make=both(lambda: png_film(16384, 16384, first=(96, 64), n=FRAMES)),
        **DECODE,
        says="frames could not be decoded",
    ),
    Case(
        kind="a fake of one frame, which its original's samples do not include",
        make=fake(lambda: encode(n=1)),
        **PROBE,
        says="none of the original's sampled frames lies within its 1 frames",
    ),
]

FOUR: dict[str, Any] = {"row": {"frames_decoded": 4}}
ONE: dict[str, Any] = {"row": {"frames_wanted": 1, "frames_decoded": 1}}

ODD = [
    Case(kind="a good video with a wrong extension", make=both(encode, extension="avi"), size=(96, 64), **FOUR),
    Case(kind="a good video, listed without an extension", make=both(encode, extension="txt"), size=(96, 64), **FOUR),
    Case(kind="one frame", make=real(lambda: encode(n=1)), size=(96, 64), **ONE),
    Case(kind="a picture saved as mp4", make=real(jpeg), size=(96, 64), **ONE),
    Case(kind="zero duration: all frames at one moment", make=real(zero_duration), size=(96, 64), **ONE),
    Case(kind="8K", make=real(lambda: encode(frames=LARGE, options={"preset": "ultrafast"})), size=(7680, 4320), **ONE),
    Case(
        kind="odd sizes, H.264 4:4:4", make=both(lambda: encode(size=(97, 65), pix_fmt="yuv444p")), size=(97, 65), row={"frames_decoded": 4}
    ),
    Case(
        kind="odd sizes, VP9 4:2:0",
        make=both(lambda: encode("libvpx-vp9", "webm", size=(97, 65))),
        size=(97, 65),
        **FOUR,
    ),
    Case(kind="10-bit", make=both(lambda: encode(pix_fmt="yuv420p10le")), size=(96, 64), **FOUR),
    Case(kind="grey", make=both(lambda: encode(pix_fmt="gray")), size=(96, 64), **FOUR),
    Case(kind="with transparency", make=both(lambda: encode("png", "mov", pix_fmt="rgba")), size=(96, 64), **FOUR),
    Case(kind="rotated", make=both(lambda: encode(rotation=90)), size=(64, 96), **FOUR),
    Case(kind="interlaced", make=both(lambda: encode(options={"x264-params": "interlaced=1"})), size=(96, 64), **FOUR),
    Case(
        kind="variable frame rate",
        make=both(lambda: encode(times=[0, 20, 40, 60, 80, 300, 400, 900, 1000, 1500, 1700, 2000])),
        size=(96, 64),
        **FOUR,
    ),
    Case(
        kind="one pixel",
        make=real(lambda: encode("ffv1", "matroska", size=(1, 1), pix_fmt="bgr0"), faces=True),
        status="no_face",
        faces=True,
        **FOUR,
    ),
    Case(
        kind="4096 x 4 pixels",
        make=real(lambda: encode("ffv1", "matroska", size=(4096, 4)), faces=True),
        status="no_face",
        faces=True,
        **FOUR,
    ),
    Case(
        kind="a fake of another size than its original",
        make=fake(lambda: head(0, fake=True, size=(320, 180))),
        faces=True,
        size=(320, 180),
        says="320x180 for 640x360",
        row={"box_source": "original", "frames_with_face": 4},
    ),
    Case(
        kind="a fake of another length than its original",
        make=fake(lambda: head(0, fake=True, n=9)),
        faces=True,
        says="9 frames for 15",
        row={"box_source": "original"},
    ),
    Case(
        kind="a fake that is another scene than its original",
        make=fake(lambda: head(1, fake=True)),
        faces=True,
        row={"box_source": "self", "frames_with_face": 4},
    ),
]
