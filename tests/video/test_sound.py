"""Sound around moments of a video: the right samples at the right time, silence at the ends, and what is said where there is none."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from dfdc_ray.video.decode import probe
from dfdc_ray.video.sound import RATE, WINDOW, _take, sound_around

SECONDS, FPS = 3.0, 25


def _video(
    sound: NDArray[np.float32] | None, *, rate: int = RATE, codec: str = "aac", container: str = "mp4", late: float = 0.0, channels: int = 1
) -> io.BytesIO:
    """Grey frames with this sound, which begins `late` seconds after them."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        video = file.add_stream("libx264", rate=FPS, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        layout = "mono" if channels == 1 else "stereo"
        audio = file.add_stream(codec, rate=rate, layout=layout) if sound is not None else None
        for n in range(int(SECONDS * FPS)):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 128, np.uint8), format="rgb24")
            frame.pts, frame.time_base = n, Fraction(1, FPS)
            file.mux(video.encode(frame))
        file.mux(video.encode(None))
        if audio is not None and sound is not None:
            wanted = audio.codec_context.format.name
            data = np.repeat(sound[None], channels, 0)
            chunk = av.AudioFrame.from_ndarray(np.ascontiguousarray(data), format="fltp", layout=layout)
            chunk.sample_rate, chunk.pts, chunk.time_base = rate, round(late * rate), Fraction(1, rate)
            for made in av.AudioResampler(format=wanted, layout=layout, rate=rate).resample(chunk):
                file.mux(audio.encode(made))
            file.mux(audio.encode(None))
    buffer.seek(0)
    return buffer


def _clicks(at: list[float], rate: int = RATE) -> NDArray[np.float32]:
    """Silence with 10 ms of a 1 kHz tone in the middle of which these moments are."""
    sound = np.zeros(int(SECONDS * rate), np.float32)
    for time in at:
        n = np.arange(round((time - 0.005) * rate), round((time + 0.005) * rate))
        sound[n] = 0.8 * np.sin(2 * np.pi * 1000 * n / rate)
    return sound


def _middle(window: NDArray[np.int16] | None) -> float:
    """Where in a window the loudest is, seconds from its middle."""
    assert window is not None
    energy = window.astype(np.float64) ** 2
    return float((np.arange(WINDOW) * energy).sum() / energy.sum() - WINDOW / 2) / RATE


@pytest.mark.parametrize(
    ("options", "late"),
    [
        ({}, 0.0),
        ({"rate": 44_100}, 0.0),
        ({"rate": 48_000, "channels": 2}, 0.0),
        ({"container": "matroska", "codec": "flac"}, 0.0),
        ({"container": "avi", "codec": "mp3", "rate": 44_100}, 0.0),
        ({"late": 0.25}, 0.25),
        ({"container": "matroska", "codec": "libopus", "rate": 48_000}, 0.0),
    ],
)
def test_sound_is_where_the_frames_are(options: dict, late: float) -> None:
    """To 5 ms: what lossy codecs smear and resampling delays."""
    sound = _clicks([0.5, 1.2, 2.0], options.get("rate", RATE))
    windows, said = sound_around(_video(sound, **options), [0.5 + late, 1.2 + late, 1.18 + late])
    assert said == "ok"
    assert all(window is not None and window.shape == (WINDOW,) and window.dtype == np.int16 for window in windows)
    assert _middle(windows[0]) == pytest.approx(0, abs=0.03 if options.get("container") == "avi" else 0.005)
    assert _middle(windows[1]) == pytest.approx(0, abs=0.03 if options.get("container") == "avi" else 0.005)
    assert _middle(windows[2]) - _middle(windows[1]) == pytest.approx(0.02, abs=0.002)


@pytest.mark.parametrize("container", ["mp4", "matroska", "flv", "mpegts"])
def test_pieces_of_sound_join_without_clicks(container: str) -> None:
    """A tone is all that is heard (to 25 dB, as the codec leaves it), also where the container's clock counts milliseconds."""
    rate = 44_100
    tone = 0.5 * np.sin(2 * np.pi * 300 * np.arange(int(SECONDS * rate)) / rate).astype(np.float32)
    windows, _ = sound_around(_video(tone, rate=rate, container=container), [0.5, 0.9, 1.3])
    phase = 2 * np.pi * 300 * np.arange(WINDOW) / RATE
    waves = np.stack((np.sin(phase), np.cos(phase)), 1)
    for window in windows:
        assert window is not None
        heard = window.astype(np.float64)
        rest = heard - waves @ np.linalg.lstsq(waves, heard, rcond=None)[0]
        assert 10 * np.log10((heard**2).sum() / (rest**2).sum()) > 25


def test_where_the_clock_jumps_or_drifts_it_is_followed() -> None:
    """Pieces of 20 ms: half a second of them is missing; or each is 1 ms longer by the clock than by its samples."""
    whole, (starts, samples, there) = 320, (np.array([0, 16_000]), np.zeros((2, WINDOW), np.int16), np.zeros(2, np.int64))
    end = None
    for n in [*range(25), *range(50, 60)]:
        end = _take([_piece(n * whole, n + 1)], end, starts, samples, there)
    assert end == 60 * whole
    assert (samples[1] == np.repeat(np.arange(51, 61), whole)).all()

    end, late = None, []
    for n in range(200):
        end = _take([_piece(n * (whole + 16), 1)], end, starts, samples, there)
        assert end is not None
        late.append(n * (whole + 16) + whole - end)
    assert 0 <= min(late) < max(late) < whole


def _piece(pts: int, value: int) -> av.AudioFrame:
    """20 ms of this value that begin at this sample."""
    frame = av.AudioFrame.from_ndarray(np.full((1, 320), value, np.int16), format="s16", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = RATE, pts, Fraction(1, RATE)
    return frame


def test_times_are_those_of_the_frames() -> None:
    file = _video(_clicks([1.0]))
    times = probe(file).times
    windows, _ = sound_around(file, [float(times[25])])
    assert _middle(windows[0]) == pytest.approx(0, abs=0.005)


def test_beyond_the_ends_is_silence_and_then_nothing() -> None:
    windows, said = sound_around(
        _video(np.full(int(SECONDS * RATE), 0.5, np.float32), container="matroska", codec="flac"), [0.0, 3.05, 5.0]
    )
    assert said == "ok"
    first, after, far = windows
    assert first is not None
    assert not first[: WINDOW // 2].any()
    assert np.abs(first[WINDOW // 2 :] / 32768 - 0.5).max() < 0.01
    assert (after, far) == (None, None)


def test_a_video_without_sound_and_a_damaged_one() -> None:
    windows, said = sound_around(_video(None), [0.5, 1.0])
    assert (windows, said) == ([None, None], "none")

    data = bytearray(_video(_clicks([0.5])).getvalue())
    windows, said = sound_around(io.BytesIO(bytes(data[: len(data) // 3])), [0.5])
    assert windows == [None]
    assert said.startswith("damaged: ")


def test_a_muted_track_is_no_sound_but_a_quiet_one_is() -> None:
    muted = np.zeros(2 * RATE, np.float32)
    assert sound_around(_video(muted), [0.5, 1.0]) == ([None, None], "silent")
    windows, said = sound_around(_video(muted + 0.001 * np.sin(np.arange(2 * RATE, dtype=np.float32) / 8)), [0.5, 1.0])
    assert said == "ok"
    assert all(window is not None for window in windows)
    assert sound_around(_video(muted), []) == ([], "ok")  # nobody asked
    data = bytearray(_video(muted, container="matroska", codec="flac").getvalue())
    at = data.index(b"\xff\xf8", data.index(b"\xff\xf8") + 150)  # where one of FLAC's frames begins
    data[at : at + 12] = b"\x55" * 12
    windows, said = sound_around(io.BytesIO(bytes(data)), [0.5, 1.0])
    assert windows == [None, None]
    assert said.startswith("damaged: ")


def test_real_video(shared: Path) -> None:
    """A DFDC clip: speech, so no window is silent throughout, and neighbouring windows share what they share."""
    clip = sorted((shared / "data" / "dfdc_clips").glob("*.mp4"))[0]
    with clip.open("rb") as file:
        windows, said = sound_around(file, [1.0, 1.1, 5.0])
    assert said == "ok"
    one, other, later = windows
    assert one is not None
    assert other is not None
    assert later is not None
    assert np.array_equal(one[WINDOW // 2 :], other[: WINDOW // 2])
    assert one.std() > 0
