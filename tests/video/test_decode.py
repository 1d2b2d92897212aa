"""Wanted frames against a full decode by PyAV, bit for bit; everything else against a named error. The videos are made here."""

import io
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition

from dfdc_ray.errors import StorageError, VideoError
from dfdc_ray.video import source
from dfdc_ray.video.decode import VideoInfo, decode_frames, probe
from dfdc_ray.video.sampling import sample

GOP = {"bf": "3", "g": "250"}
QUIET = {"x265-params": "log-level=none"}


def picture(i: int, width: int, height: int) -> np.ndarray:
    """A moving square over noise, most of which stays, so that frames predict each other and every one of them takes some bytes."""
    rgb = np.random.default_rng(0).integers(60, 120, (height, width, 3), np.uint8)
    rgb[:32] = np.random.default_rng(i).integers(60, 120, (32, width, 3), np.uint8)
    x, y = i * 3 % (width - 24), i * 2 % (height - 24)
    rgb[y : y + 24, x : x + 24] = (250, i * 7 % 256, 20)
    return rgb


def encode(
    codec: str = "libx264",
    container: str = "mp4",
    *,
    options: dict[str, str] | None = None,
    n: int = 48,
    size: tuple[int, int] = (160, 96),
    pix_fmt: str = "yuv420p",
    pts: Sequence[int] | None = None,
    time_base: Fraction = Fraction(1, 25),
    audio: bool = False,
    rotation: tuple[float, bool] | None = None,
) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as out:
        stream = out.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = time_base
        stream.codec_context.thread_count = 1
        if rotation is not None:
            stream.set_display_rotation(*rotation)
        sound = out.add_stream("aac", rate=16000, layout="mono") if audio else None
        if sound is not None:
            tone = np.sin(np.arange(16000 * 2) / 20).astype(np.float32)[None]
            frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
            frame.sample_rate = 16000
            out.mux(sound.encode(frame))
            out.mux(sound.encode())
        for i in range(n):
            frame = av.VideoFrame.from_ndarray(picture(i, *size), format="rgb24")
            frame.pts = i if pts is None else pts[i]
            frame.time_base = time_base
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return buffer.getvalue()


def full_decode(data: bytes) -> tuple[list[np.ndarray], list[float | None]]:
    with av.open(io.BytesIO(data)) as container:
        frames = list(container.decode(video=0))
        return [f.to_ndarray(format="rgb24") for f in frames], [f.time for f in frames]


def decoded(data: bytes, info: VideoInfo, wanted: Sequence[int]) -> tuple[dict[int, np.ndarray], VideoError | None]:
    got: dict[int, np.ndarray] = {}
    try:
        for index, rgb in decode_frames(io.BytesIO(data), info, wanted):
            assert all(index > before for before in got)
            got[index] = rgb
    except VideoError as error:
        return got, error
    return got, None


FORMATS: dict[str, Callable[[], bytes]] = {
    "h264 with B-frames, long GOP and AAC": lambda: encode(options=GOP, audio=True),
    "h264 with a B-pyramid": lambda: encode(options=GOP | {"x264-params": "b-pyramid=normal:b-adapt=0:bframes=7:ref=5"}),
    "h264 with open GOPs": lambda: encode(options={"x264-params": "open-gop=1:keyint=12:bframes=3"}),
    "h264 without B-frames": lambda: encode(options={"bf": "0"}),
    "h264 with intra refresh": lambda: encode(options={"x264-params": "intra-refresh=1:keyint=12"}),
    "h264 interlaced": lambda: encode(options=GOP | {"x264-params": "interlaced=1"}),
    "h264 with slices": lambda: encode(options=GOP | {"x264-params": "slices=4"}),
    "h264 4:4:4, odd size": lambda: encode(options=GOP, size=(161, 97), pix_fmt="yuv444p"),
    "h264 cropped": lambda: encode(options=GOP, size=(162, 98)),
    "h264 10 bit": lambda: encode(options=GOP, pix_fmt="yuv420p10le"),
    "h264 in fragments": lambda: encode(options=GOP | {"movflags": "frag_keyframe+empty_moov", "g": "12"}),
    "h264 in Matroska": lambda: encode(container="matroska", options=GOP),
    "h264 Annex B in MPEG-TS": lambda: encode(container="mpegts", options=GOP | {"g": "20"}),
    "h264 Annex B, raw": lambda: encode(container="h264", options=GOP),
    "h264 in AVI": lambda: encode(container="avi", options=GOP),
    "h264 irregular times": lambda: encode(
        options=GOP, time_base=Fraction(1, 1000), pts=np.cumsum(np.random.default_rng(1).integers(1, 200, 48)).tolist()
    ),
    "h264 equal times": lambda: encode(
        container="matroska",
        options=GOP,
        time_base=Fraction(1, 10000),
        pts=[i * 4 for i in range(48)],  # rounded to milliseconds
    ),
    "h264 starts late": lambda: encode(options=GOP, pts=range(50, 98), audio=True),
    "h264, one frame": lambda: encode(options=GOP, n=1),
    "hevc": lambda: encode("libx265", options={"x265-params": "log-level=none:keyint=20"}),
    "hevc 10 bit": lambda: encode("libx265", options=QUIET, pix_fmt="yuv420p10le"),
    "vp9": lambda: encode("libvpx-vp9", "webm", options={"deadline": "realtime", "cpu-used": "8"}),
    "vp9, odd size": lambda: encode("libvpx-vp9", "webm", options={"deadline": "realtime", "cpu-used": "8"}, size=(161, 97)),
    "vp8": lambda: encode("libvpx", "webm", options={"deadline": "realtime", "cpu-used": "8"}),
    "av1": lambda: encode("libsvtav1", options={"preset": "12", "svtav1-params": "lp=1"}),
    "mpeg4": lambda: encode("mpeg4", options={"bf": "0"}),
    "mpeg4 with B-frames": lambda: encode("mpeg4", options={"bf": "2"}),
    "mpeg4 with B-frames in AVI": lambda: encode("mpeg4", "avi", options={"bf": "2"}),
    "mjpeg": lambda: encode("mjpeg", "avi", pix_fmt="yuvj420p"),
    "ffv1": lambda: encode("ffv1", "matroska"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_wanted_frames_are_those_of_a_full_decode(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    data = FORMATS[name]()
    capfd.readouterr()
    expected, times = full_decode(data)
    info = probe(io.BytesIO(data))
    assert len(info.pts) == len(expected)
    assert (info.height, info.width, 3) == expected[0].shape
    assert info.codec == name.split(maxsplit=1)[0].rstrip(",")
    assert not info.fault
    if info.timed:
        np.testing.assert_allclose(info.times, np.array(times, float), rtol=0, atol=1e-9)
    else:
        np.testing.assert_allclose(np.diff(info.times), 1 / 25, rtol=0, atol=1e-9)
    last = len(expected) - 1
    spread = [s.frame for s in sample(info.times, method="spread", frames=7)]
    for wanted in (list(range(last + 1)), spread, [0], [last], [last // 2], list(range(1, last + 1, 2))):
        got, error = decoded(data, info, wanted)
        assert error is None
        assert list(got) == wanted
        for index, rgb in got.items():
            assert rgb.dtype == np.uint8
            assert rgb.flags.c_contiguous
            np.testing.assert_array_equal(rgb, expected[index])
    assert capfd.readouterr() == ("", "")  # FFmpeg is quiet


@pytest.mark.parametrize("container", ["mp4", "mpegts"])
def test_frames_that_nobody_wants_or_refers_to_are_not_decoded(container: str) -> None:
    data = encode(container=container, options=GOP | {"x264-params": "b-pyramid=none:b-adapt=0:bframes=3"})
    expected, _ = full_decode(data)
    info = probe(io.BytesIO(data))
    with av.open(io.BytesIO(data)) as source:
        types = [f.pict_type for f in source.decode(video=0)]
    b_frames = [i for i, kind in enumerate(types) if kind == av.video.frame.PictureType.B]
    assert len(b_frames) > 30
    others = sorted(set(range(48)) - set(b_frames))

    with av.open(io.BytesIO(data)) as source:  # spoil the slices of every B-frame
        broken = data
        rank = {pts: i for i, pts in enumerate(info.pts.tolist())}
        for packet in source.demux(video=0):
            if packet.pts is not None and rank[packet.pts] in b_frames:
                chunks = (bytes(packet)[at : at + 12] for at in range(packet.size - 12, 0, -4))
                chunk = next(c for c in chunks if broken.count(c) == 1)  # MPEG-TS cuts packets into pieces
                broken = broken.replace(chunk, b"\xff" * 12)

    got, error = decoded(broken, info, others)
    assert error is None
    assert list(got) == others
    for index, rgb in got.items():
        np.testing.assert_array_equal(rgb, expected[index])
    got, error = decoded(broken, info, range(48))
    assert error is not None  # this is what would have been noticed
    for index in others:
        np.testing.assert_array_equal(got[index], expected[index])


@pytest.mark.parametrize(
    ("container", "options"), [("mp4", {}), ("mpegts", {}), ("matroska", {"x264-params": "bframes=3:b-pyramid=normal"})]
)
def test_stretches_without_a_wanted_frame_are_not_decoded(container: str, options: dict[str, str]) -> None:
    data = encode(container=container, options=options | {"g": "12", "bf": "3"}, n=60)
    expected, _ = full_decode(data)
    info = probe(io.BytesIO(data))
    assert len(info.clean_starts) == 5
    wanted = [3, 11, 36, 37]  # in the first stretch and the fourth
    for others in ([12, 35], [48, 59]):
        first, last = (int(info.pts[i]) for i in others)
        broken = data
        with av.open(io.BytesIO(data)) as source:  # spoil all that lies between
            for packet in source.demux(video=0):
                if packet.pts is not None and first <= packet.pts <= last:
                    chunks = (bytes(packet)[at : at + 12] for at in range(packet.size - 12, 0, -4))
                    broken = broken.replace(next(c for c in chunks if broken.count(c) == 1), b"\xff" * 12)
        got, error = decoded(broken, info, wanted)
        assert error is None
        assert list(got) == wanted
        for index, rgb in got.items():
            np.testing.assert_array_equal(rgb, expected[index])


def test_open_stretches_are_decoded_as_a_whole() -> None:
    data = encode(options={"g": "12", "bf": "3", "x264-params": "open-gop=1"}, n=60)
    expected, _ = full_decode(data)
    info = probe(io.BytesIO(data))
    assert len(info.clean_starts) == 1  # the other keyframes are no IDR pictures
    got, error = decoded(data, info, [24, 50])
    assert error is None
    for index, rgb in got.items():
        np.testing.assert_array_equal(rgb, expected[index])


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_rotation(degrees: int, mirrored: bool) -> None:
    data = encode(options=GOP, n=6, rotation=(degrees, mirrored))
    stored, _ = full_decode(data)
    info = probe(io.BytesIO(data))
    assert (info.rotation, info.mirrored) == (degrees, mirrored)
    assert (info.width, info.height) == ((96, 160) if degrees in (90, 270) else (160, 96))
    got, error = decoded(data, info, [0, 3])
    assert error is None
    for index, rgb in got.items():
        shown = np.rot90(stored[index], degrees // 90)  # counterclockwise, as the display matrix is read
        np.testing.assert_array_equal(rgb, np.fliplr(shown) if mirrored else shown)


def test_rotation_matrix_of_a_phone() -> None:
    """A portrait video as phones write it: tkhd matrix (0 1 0, -1 0 0) in 16.16, to be turned clockwise for showing."""
    data = bytearray(encode(options=GOP, n=3))
    matrix = data.index(b"tkhd") + 4 + 40  # version 0: 40 bytes of flags, times, id, duration, layer, volume
    assert struct.unpack_from(">9i", data, matrix) == (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", data, matrix, 0, 65536, 0, -65536, 0, 0, 96 << 16, 0, 1 << 30)
    info = probe(io.BytesIO(data))
    assert (info.rotation, info.width, info.height) == (270, 96, 160)
    got, _ = decoded(bytes(data), info, [0])
    np.testing.assert_array_equal(got[0], np.rot90(full_decode(bytes(data))[0][0], -1))


def test_other_angles_are_refused() -> None:
    with pytest.raises(VideoError, match="rotated by 45 degrees") as caught:
        probe(io.BytesIO(encode(n=2, rotation=(45, False))))
    assert caught.value.stage == "probe"


@pytest.mark.parametrize("skipped", [5, 11, 25, 40])
def test_edit_list_that_starts_late(skipped: int) -> None:
    """Frames before the edit's start are decoded for the sake of others, and never shown: they have no index."""
    data = bytearray(encode(options=GOP | {"g": "20"}))
    entry = data.index(b"elst") + 12  # version 0, one entry: duration, media time, rate
    duration, media_time, rate = struct.unpack_from(">iii", data, entry)
    struct.pack_into(">iii", data, entry, duration - skipped * 40, media_time + skipped * 512, rate)
    expected, times = full_decode(bytes(data))
    info = probe(io.BytesIO(data))
    assert len(info.pts) == len(expected) == 48 - skipped
    np.testing.assert_allclose(info.times, np.array(times, float), rtol=0, atol=1e-9)
    got, error = decoded(bytes(data), info, range(0, len(expected), 3))
    assert error is None
    for index, rgb in got.items():
        np.testing.assert_array_equal(rgb, expected[index])


def test_stream_that_begins_in_the_middle() -> None:
    whole = encode(container="mpegts", options=GOP | {"g": "20"})
    data = whole[len(whole) // 4 // 188 * 188 :]
    expected, _ = full_decode(data)
    info = probe(io.BytesIO(data))
    assert 0 < len(info.pts) == len(expected) < 48
    got, error = decoded(data, info, range(len(expected)))
    assert error is None
    for index, rgb in got.items():
        np.testing.assert_array_equal(rgb, expected[index])


def faststart(data: bytes, folder: Path) -> bytes:
    """The same streams with the index in front (the muxer opens its file again, so it needs a real one)."""
    with av.open(io.BytesIO(data)) as source, av.open(folder / "fast.mp4", "w", options={"movflags": "faststart"}) as out:
        streams = {s.index: out.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream_index]
                out.mux(packet)
    return (folder / "fast.mp4").read_bytes()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_cut_short_with_the_index_in_front(share: float, tmp_path: Path) -> None:
    whole = faststart(encode(options=GOP, n=150), tmp_path)
    assert whole.index(b"moov") < whole.index(b"mdat")
    expected, _ = full_decode(whole)
    times = probe(io.BytesIO(whole)).times.tolist()
    start = whole.index(b"mdat")
    data = whole[: start + int((len(whole) - start) * share)]
    info = probe(io.BytesIO(data))
    assert 0 < len(info.pts) < 150
    assert info.fault == f"the file is cut short or damaged: {len(info.pts)} frames of 150 can be read. Download or copy it again."
    got, error = decoded(data, info, range(len(info.pts)))
    assert error is not None
    assert error.stage == "decode"
    assert len(got) >= len(info.pts) - 4  # the last packet is half there; those that refer to it are gone with it
    for index, rgb in got.items():  # by time: an index counts what is there
        np.testing.assert_array_equal(rgb, expected[times.index(info.times[index])])
    got, error = decoded(data, info, [0])
    assert list(got) == [0]
    assert error is not None
    assert "cut short" in error.message


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_cut_short_with_the_index_at_the_end(share: float) -> None:
    data = encode(options=GOP)
    with pytest.raises(VideoError, match="not a readable video: Invalid data") as caught:
        probe(io.BytesIO(data[: int(len(data) * share)]))
    assert caught.value.stage == "probe"


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_damage_in_the_middle_is_never_passed_on(codec: str) -> None:
    options = {"x265-params": "log-level=none:keyint=16:min-keyint=16:no-open-gop=1"} if codec == "libx265" else {"g": "16", "bf": "3"}
    data = encode(codec, options=options)
    expected, _ = full_decode(data)
    info = probe(io.BytesIO(data))
    with av.open(io.BytesIO(data)) as source:
        packets = [p for p in source.demux(video=0) if p.size]
    keyframes = [i for i, p in enumerate(packets) if p.is_keyframe]
    assert keyframes == [0, 16, 32]
    hurt = packets[17]  # a P-frame, which the rest of its group needs
    assert hurt.pos is not None
    broken = data[: hurt.pos + 8] + bytes(hurt.size - 8) + data[hurt.pos + hurt.size :]
    got, error = decoded(broken, probe(io.BytesIO(broken)), range(48))
    for index, rgb in got.items():
        np.testing.assert_array_equal(rgb, expected[index])
    assert set(range(17)) | set(range(32, 48)) <= set(got)  # the groups before and after it are whole
    assert info.pts.tolist().index(hurt.pts) not in got
    assert error is not None
    assert error.stage == "decode"
    assert f"{48 - len(got)} of 48 wanted frames could not be decoded (the first is frame" in error.message


def test_a_damaged_first_keyframe_is_reported() -> None:
    data = encode(options={"g": "16"})
    with av.open(io.BytesIO(data)) as source:
        first = next(source.demux(video=0))
    assert first.pos is not None
    broken = data[: first.pos + 8] + bytes(first.size - 8) + data[first.pos + first.size :]
    info = probe(io.BytesIO(broken))
    got, error = decoded(broken, info, [len(info.pts) - 1])
    np.testing.assert_array_equal(got[len(info.pts) - 1], full_decode(data)[0][47])
    assert error is not None
    assert "of 48 can be read" in error.message


def test_errors_of_the_hevc_decoder_are_heard() -> None:
    data = encode("libx265", options={"x265-params": "log-level=none:keyint=16:min-keyint=16"})
    with av.open(io.BytesIO(data)) as source:
        packets = [p for p in source.demux(video=0) if p.size]
    noticed = 0
    for packet in packets[1:16]:  # by default, FFmpeg passes on all of these as sound
        assert packet.pos is not None
        half = packet.pos + packet.size // 2
        end = packet.pos + packet.size
        broken = data[:half] + b"\xff" * (end - half) + data[end:]
        noticed += decoded(broken, probe(io.BytesIO(broken)), range(48))[1] is not None
    assert noticed >= 4


def test_frames_shown_before_the_damaged_frame_that_they_refer_to() -> None:
    """Damage that the decoder reports only with the frame itself, which leaves it after B-frames that refer to it."""
    data = encode(options={"g": "24", "bf": "3"})
    expected, _ = full_decode(data)
    info = probe(io.BytesIO(data))
    with av.open(io.BytesIO(data)) as source:
        packets = [p for p in source.demux(video=0) if p.size]
    rng = np.random.default_rng(0)
    noticed = 0
    for packet in packets:
        assert packet.pos is not None
        half = packet.pos + packet.size // 2
        broken = data[:half] + rng.bytes(packet.size // 4) + data[half + packet.size // 4 :]
        got, error = decoded(broken, info, range(48))
        if error is None:
            continue  # some damage reads as other valid pictures
        noticed += 1
        for index, rgb in got.items():
            np.testing.assert_array_equal(rgb, expected[index])
    assert noticed >= 24


def broken_reads(data: bytes, after: int) -> io.BytesIO:
    class Flaky(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() >= after:
                raise StorageError("503 slow down")
            return super().read(size)

    return Flaky(data)


def test_trouble_with_the_file_is_not_the_videos_fault(capfd: pytest.CaptureFixture[str]) -> None:
    data = encode(container="mpegts", options=GOP, n=200, size=(320, 240))
    assert len(data) > 200_000
    info = probe(io.BytesIO(data))
    for after in (0, 40_000, 120_000):
        with pytest.raises(StorageError, match="503 slow down"):
            probe(broken_reads(data, after))
        with pytest.raises(StorageError, match="503 slow down"):
            list(decode_frames(broken_reads(data, after), info, [0, 100, 199]))
    assert capfd.readouterr() == ("", "")


def audio_only(container: str, *, cover: bool = False) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as out:
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


def huge() -> bytes:
    data = bytearray(encode("ffv1", "avi", n=1))
    struct.pack_into("<ii", data, data.index(b"strf") + 8 + 4, 17000, 1000)  # BITMAPINFOHEADER: width, height
    return bytes(data)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: b"", "not a readable video: .*The file is empty"),
        (lambda: b"<!DOCTYPE html><html><head><title>404 Not Found</title></head></html>" * 100, "begins with b'<!DOCTYPE html>"),
        (lambda: b"notes on a video\n" * 100, "not a readable video"),
        (lambda: bytes(100_000), "not a readable video: .*It begins with zeros"),
        (lambda: encode(n=3)[:40], "not a readable video: .*end is missing"),
        (lambda: encode(n=0), "no video stream|not a readable video"),
        (lambda: audio_only("mp4"), "no video stream in this .*mp4.* file, only audio"),
        (lambda: audio_only("mp4", cover=True), "no video stream in this .*mp4.* file, only"),
        (huge, "17000x1000 pixels are refused"),
    ],
    ids=["empty", "html", "text", "zeros", "header only", "no frames", "audio only", "audio with cover art", "huge"],
)
def test_what_is_no_video(make: Callable[[], bytes], message: str) -> None:
    data = io.BytesIO(make())
    with pytest.raises(VideoError, match=message) as caught:
        probe(data)
    assert caught.value.stage == "probe"


@pytest.mark.parametrize("container", ["mp4", "mpegts"])
def test_more_frames_than_can_be_listed_are_refused(container: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(container=container)
    monkeypatch.setattr(source, "MAX_FRAMES", 48)
    assert len(probe(io.BytesIO(data)).pts) == 48
    monkeypatch.setattr(source, "MAX_FRAMES", 47)
    with pytest.raises(VideoError, match="48 frames or more; above 47 a video is refused"):
        probe(io.BytesIO(data))


@pytest.mark.parametrize("text", ["", "notes on a video\n" * 100])
def test_what_is_no_video_on_disk(text: str, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"  # by this name FFmpeg would take it for pictures drawn in text
    path.write_text(text)
    with path.open("rb") as file, pytest.raises(VideoError, match="not a readable video"):
        probe(file)


def test_larger_frames_than_declared_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(options=GOP)
    info = probe(io.BytesIO(data))
    monkeypatch.setattr(source, "MAX_SIDE", 100)
    with pytest.raises(VideoError, match="160x96 pixels are refused"):
        list(decode_frames(io.BytesIO(data), info, [0]))


def test_colour_follows_the_tags() -> None:
    """One grey-blue picture, tagged three ways, against the equations of ITU-R BT.601 and BT.709 (limited range), to 2 levels."""

    def shown(tags: str) -> np.ndarray:
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="mp4") as out:
            stream = out.add_stream("libx264", rate=25, options={"crf": "1", "x264-params": tags})
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
            planes = np.repeat(np.array([120, 150, 90], np.uint8), (64, 16, 16))[:, None].repeat(64, axis=1)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
            out.mux(stream.encode())
        data = io.BytesIO(buffer.getvalue())
        return next(iter(decode_frames(data, probe(data), [0])))[1].mean((0, 1))

    def rgb(kr: float, kb: float) -> np.ndarray:
        y, cb, cr = (120 - 16) / 219, (150 - 128) / 224, (90 - 128) / 224
        r, b = y + 2 * (1 - kr) * cr, y + 2 * (1 - kb) * cb
        return 255 * np.array([r, (y - kr * r - kb * b) / (1 - kr - kb), b])

    bt601, bt709 = rgb(0.299, 0.114), rgb(0.2126, 0.0722)
    assert np.abs(bt601 - bt709).max() > 6
    np.testing.assert_allclose(shown("colormatrix=bt709"), bt709, rtol=0, atol=2)
    np.testing.assert_allclose(shown("colormatrix=smpte170m"), bt601, rtol=0, atol=2)
    np.testing.assert_allclose(shown("bframes=0"), bt601, rtol=0, atol=2)  # no tags


@pytest.mark.parametrize("wanted", [[-1], [48], [3, 2], [2, 2]])
def test_bad_indices(wanted: list[int]) -> None:
    data = io.BytesIO(encode(options=GOP))
    with pytest.raises(ValueError, match="frames must be ascending, unique"):
        decode_frames(data, probe(data), wanted)


def test_a_file_can_be_read_again_and_left_half_way() -> None:
    data = io.BytesIO(encode(options=GOP))
    info = probe(data)
    frames = decode_frames(data, info, [3, 30, 47])
    assert next(frames)[0] == 3
    frames.close()
    assert [index for index, _ in decode_frames(data, info, [0, 47])] == [0, 47]
    assert list(decode_frames(data, info, [])) == []


@pytest.mark.parametrize(
    "name",
    [
        "dfdc_clips/brtujopkby.mp4",
        "ffpp_c40/183.mp4",
        pytest.param("dfdc_clips/abofeumbvv.mp4", marks=pytest.mark.slow),
        pytest.param("dfdc_clips/lynaeydofd.mp4", marks=pytest.mark.slow),
        pytest.param("dfdc_clips/widuwuoiur.mp4", marks=pytest.mark.slow),
    ],
)
def test_real_videos(shared: Path, name: str) -> None:
    path = shared / "data" / name
    with path.open("rb") as file:
        info = probe(file)
        wanted = [s.frame for s in sample(info.times, method="spread", frames=10)]
        got = dict(decode_frames(file, info, wanted))
    assert list(got) == wanted
    with av.open(path) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index in got:
                np.testing.assert_array_equal(got[index], frame.to_ndarray(format="rgb24"))
    assert index + 1 == len(info.pts)
