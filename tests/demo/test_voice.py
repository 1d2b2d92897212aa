"""The synthesised voice: pitch, level, and a mouth that moves with it."""

import numpy as np
import pytest

from dfdc_ray.demo.voice import SAMPLE_RATE, speak


@pytest.mark.parametrize("pitch_hz", [100.0, 200.0])
def test_voice_has_the_pitch_asked_for(pitch_hz: float) -> None:
    voice = speak(np.random.default_rng(0), seconds=2.0, pitch_hz=pitch_hz, formant_scale=1.0)
    assert voice.sound.shape == (2 * SAMPLE_RATE,)
    assert 0.3 < np.abs(voice.sound).max() < 1
    loudest = int(np.argmax(np.convolve(voice.sound**2, np.ones(1600), "same")))
    piece = voice.sound[max(0, loudest - 1600) :][:3200].astype(np.float64)
    correlation = np.correlate(piece, piece, "full")[len(piece) - 1 :]
    low, high = round(SAMPLE_RATE / (1.3 * pitch_hz)), round(SAMPLE_RATE / (0.75 * pitch_hz))
    period = low + int(np.argmax(correlation[low:high]))
    assert SAMPLE_RATE / period == pytest.approx(pitch_hz, rel=0.16)  # the melody strays by 8 % and falls by 6 %


def test_mouth_opens_with_the_voice() -> None:
    voice = speak(np.random.default_rng(1), seconds=2.0, pitch_hz=120, formant_scale=1.0)
    loudness = np.sqrt(np.convolve(voice.sound.astype(np.float64) ** 2, np.ones(800) / 800, "same"))
    assert np.corrcoef(loudness, voice.mouth)[0, 1] > 0.5
    assert voice.mouth.min() >= 0
    assert voice.mouth.max() <= 1
    times = np.array((0.5, 1.0))
    assert voice.opening(times) == pytest.approx(voice.mouth[(times * SAMPLE_RATE).astype(int)])
