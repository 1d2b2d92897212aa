"""Videos, sound and spoilt, as bytes: small pictures by PyAV's encoders, then boxes and headers changed as no encoder would."""

import io
import itertools
import struct
import zlib
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache

import av
import cv2
import numpy as np
from av.stream import Disposition

from dfdc_ray.demo.corpus import film, plan_corpus

SIZE = (96, 64)
FRAMES = 12
HTML = b"<!DOCTYPE html><html><head><title>404 Not Found</title></head></html>"


def picture(i: int, width: int, height: int) -> np.ndarray:
    """Uint8 RGB: a square that moves over noise, so that frames differ and predict each other."""
    rgb = np.random.default_rng(0).integers(60, 120, (height, width, 3), np.uint8)
    side = max(1, min(width, height) // 3)
    x, y = 5 * i % max(1, width - side), 3 * i % max(1, height - side)
    rgb[y : y + side, x : x + side] = (250, i * 7 % 256, 20)
    return rgb


def encode(
    codec: str = "libx264",
    container: str = "mp4",
    *,
    frames: Sequence[np.ndarray] | None = None,
    n: int = FRAMES,
    size: tuple[int, int] = SIZE,
    pix_fmt: str = "yuv420p",
    times: Sequence[int] | None = None,
    rotation: float | None = None,
    options: dict[str, str] | None = None,
) -> bytes:
    """A video of `frames` (uint8 RGB), or `n` pictures of ours. times: ms of each frame; else there are 25 a second."""
    frames = frames if frames is not None else [picture(i, *size) for i in range(n)]
    time_base = Fraction(1, 25) if times is None else Fraction(1, 1000)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as out:
        stream = out.add_stream(codec, rate=25, options={"threads": "1"} | (options or {}))
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = time_base
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for i, rgb in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts, frame.time_base = i if times is None else times[i], time_base
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return buffer.getvalue()


def head(person: int, *, fake: bool = False, n: int = 15, skip: int = 0, size: tuple[int, int] | None = None) -> bytes:
    """A drawn talking head that the detector finds, or a fake of it, which shares its frames; without the first `skip`."""
    frames = _film(person)[int(fake)][skip : skip + n]
    return encode(frames=frames if size is None else [cv2.resize(rgb, size) for rgb in frames], options={"preset": "veryfast", "crf": "20"})


@cache
def _film(person: int) -> list[list[np.ndarray]]:
    family = plan_corpus(families=2 * person + 1, seed=1, test_families=0)[2 * person]  # the next one wears this one's face
    footage = itertools.islice(film(family, seed=1, seconds=0.6), 2)
    return [[cv2.cvtColor(planes, cv2.COLOR_YUV2RGB_I420) for planes in shot.frames] for shot in footage]


def audio_only(*, cover: bool = False) -> bytes:
    """Sound, with cover art (a video stream of one picture) or without."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        sound = out.add_stream("aac", rate=16000, layout="mono")
        art = out.add_stream("mjpeg", rate=1) if cover else None
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        if art is not None:
            art.width, art.height, art.pix_fmt = 64, 64, "yuvj420p"
            art.disposition = Disposition.attached_pic
            out.mux(art.encode(av.VideoFrame.from_ndarray(picture(0, 64, 64), format="rgb24")))
            out.mux(art.encode())
        out.mux(sound.encode(frame))
        out.mux(sound.encode())
    return buffer.getvalue()


def cut(data: bytes, percent: int) -> bytes:
    """The first so many percent."""
    return data[: len(data) * percent // 100]


def damaged(data: bytes, packets: Sequence[int]) -> bytes:
    """The video with zeros in place of these packets, but for the first bytes of each."""
    with av.open(io.BytesIO(data)) as source:
        places = [(packet.pos, packet.size) for packet in source.demux(video=0) if packet.pos is not None and packet.size]
    for number in packets:
        start, size = places[number]
        data = data[: start + 8] + bytes(size - 8) + data[start + size :]
    return data


def png_film(width: int, height: int, *, first: tuple[int, int] | None = None, n: int = 4) -> bytes:
    """A QuickTime film of PNG pictures, black and one bit deep, so that few bytes are many pixels; `first`: size of the first half."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mov") as out:
        stream = out.add_stream("png", rate=25)
        stream.width, stream.height = first or (64, 64)  # what the container says; the pictures count
        stream.pix_fmt = "monob"
        large = _png(width, height)
        for i in range(n):
            packet = av.Packet(_png(*first) if first and i < n // 2 else large)
            packet.stream, packet.pts, packet.dts, packet.time_base, packet.is_keyframe = stream, i, i, Fraction(1, 25), True
            out.mux(packet)
    return buffer.getvalue()


def _png(width: int, height: int) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    row = bytes(1 + (width + 7) // 8)
    pixels = zlib.compressobj(1)
    packed = b"".join(pixels.compress(row) for _ in range(height)) + pixels.flush()
    header = struct.pack(">2I5B", width, height, 1, 0, 0, 0, 0)  # one bit, grey, no interlacing
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def jpeg() -> bytes:
    """A picture."""
    return cv2.imencode(".jpg", picture(0, *SIZE))[1].tobytes()


def avi_of_size(width: int, height: int) -> bytes:
    """An AVI whose header says so, which holds smaller frames."""
    data = bytearray(encode("ffv1", "avi", n=1))
    struct.pack_into("<ii", data, data.index(b"strf") + 8 + 4, width, height)  # BITMAPINFOHEADER
    return bytes(data)


# ---- boxes of an mp4 (ISO/IEC 14496-12): four bytes of size, four of name, and what is in it

_HOLDERS = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts"}


def rebuild(data: bytes, change: Callable[[bytes, bytes], bytes | None]) -> bytes:
    """The boxes with `change(name, content)` as their contents, those inside others first; None leaves a box out."""
    out, at = b"", 0
    while at + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        content = data[at + 8 : at + size]
        new = change(name, rebuild(content, change) if name in _HOLDERS else content)
        if new is not None:
            out += struct.pack(">I4s", len(new) + 8, name) + new
        at += size
    return out


def without(data: bytes, *boxes: bytes) -> bytes:
    """The mp4 without its boxes of these names."""
    return rebuild(data, lambda name, content: None if name in boxes else content)


def index_in_front(data: bytes, *, shift: int = 0) -> bytes:
    """The same mp4 with its index before the frames, as sites make them; shift: of where the index says that the frames are, bytes."""
    at = data.index(b"moov") - 4
    size = len(data) - at
    start = struct.unpack_from(">I", data)[0]  # after ftyp

    def change(name: bytes, content: bytes) -> bytes:
        if name != b"stco":
            return content
        offsets = struct.unpack(f">{len(content) // 4 - 2}I", content[8:])
        return content[:8] + struct.pack(f">{len(offsets)}I", *(offset + size + shift for offset in offsets))

    return data[:start] + rebuild(data[at:], change) + data[start:at]


def zero_duration() -> bytes:
    """An mp4 whose frames are all shown at the same moment, and last for none."""
    data = without(encode(), b"ctts", b"edts")
    return rebuild(data, lambda name, content: struct.pack(">4I", 0, 1, FRAMES, 0) if name == b"stts" else content)


def no_frames() -> bytes:
    """An mp4 with a video stream whose tables are empty."""
    tables = (b"stts", b"stsz", b"stsc", b"stco", b"stss")
    data = without(encode(), b"ctts", b"edts")
    return rebuild(data, lambda name, content: bytes(12) if name in tables else content)


def many_frames(frames: int) -> bytes:
    """An mp4 below a megabyte that lists so many thousands of frames. They are all there: its chunks are the same bytes again and again."""
    one = encode("mjpeg", n=1, pix_fmt="yuvj420p", size=(32, 32))
    with av.open(io.BytesIO(one)) as source:
        picture = bytes(next(source.demux(video=0)))
    start = struct.unpack_from(">I", one)[0]  # after ftyp
    tables = {
        b"stts": struct.pack(">4I", 0, 1, frames, 512),  # all of one duration
        b"stsz": struct.pack(">3I", 0, len(picture), frames),  # and of one size
        b"stsc": struct.pack(">5I", 0, 1, 1, 1000, 1),  # 1000 in each chunk
        b"stco": struct.pack(">2I", 0, frames // 1000) + struct.pack(">I", start + 8) * (frames // 1000),
    }
    media = struct.pack(">I4s", 8 + 1000 * len(picture), b"mdat") + 1000 * picture
    index = rebuild(without(one[one.index(b"moov") - 4 :], b"edts"), tables.get)
    return one[:start] + media + index


def h264_of_size(width: int, height: int) -> bytes:
    """An H.264 mp4 whose sequence parameter set (ITU-T H.264, 7.3.2.1) declares so many pixels, in multiples of 16."""
    bits = f"{66:08b}{0xC0:08b}{62:08b}"  # baseline, level 6.2
    for value in (0, 0, 2, 1):  # id, frame numbers of 4 bits, order of output = order of decoding, one reference
        bits += _golomb(value)
    bits += "0" + _golomb(width // 16 - 1) + _golomb(height // 16 - 1) + "1100" + "1"  # whole frames, no cropping, no VUI; stop bit
    bits += "0" * (-len(bits) % 8)
    new = b"\x67" + int(bits, 2).to_bytes(len(bits) // 8, "big")

    def change(name: bytes, content: bytes) -> bytes:
        if name != b"stsd":
            return content
        start = content.index(b"avcC") - 4
        end = start + struct.unpack_from(">I", content, start)[0]
        record = content[start + 8 : end]  # 5 bytes, how many sets, length of the first, the first
        record = record[:6] + struct.pack(">H", len(new)) + new + record[8 + struct.unpack_from(">H", record, 6)[0] :]
        entry = content[12:start] + struct.pack(">I4s", len(record) + 8, b"avcC") + record + content[end:]
        return content[:8] + struct.pack(">I", len(entry) + 4) + entry

    return rebuild(encode(options={"profile": "baseline"}), change)


def _golomb(value: int) -> str:
    """Exponential Golomb code, as bits."""
    binary = f"{value + 1:b}"
    return "0" * (len(binary) - 1) + binary
