"""A synthesised voice: syllables of vowels from a harmonic source and formants, and how far the mouth is open meanwhile.

Additive synthesis: every harmonic of the pitch is weighted by the resonances of the vowel (formants F1-F3, mean of men in
Peterson & Barney 1952, doi:10.1121/1.1906875), scaled to the identity's vocal tract.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SAMPLE_RATE = 16_000
VOWELS = np.array(  # F1, F2, F3 in Hz of heed, hid, head, had, hod, hawed, who'd, hud
    [
        (270, 2290, 3010),
        (390, 1990, 2550),
        (530, 1840, 2480),
        (660, 1720, 2410),
        (730, 1090, 2440),
        (570, 840, 2410),
        (300, 870, 2240),
        (640, 1190, 2390),
    ],
    np.float64,
)
BANDWIDTHS_HZ = np.array((70.0, 100.0, 140.0))
HARMONICS = 28


@dataclass(frozen=True)
class Voice:
    """sound: float32 [samples] within -1..1 at SAMPLE_RATE; mouth: float64 [samples], the opening 0-1 that goes with it."""

    sound: npt.NDArray[np.float32]
    mouth: npt.NDArray[np.float64]

    def opening(self, times: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Mouth opening 0-1 at these times in seconds."""
        return np.interp(times, np.arange(len(self.mouth)) / SAMPLE_RATE, self.mouth)

    def cut(self, start: float, seconds: float) -> "Voice":
        """So many seconds of it, from this second on."""
        first = round(start * SAMPLE_RATE)
        piece = slice(first, first + round(seconds * SAMPLE_RATE))
        return Voice(self.sound[piece], self.mouth[piece])


def speak(rng: np.random.Generator, *, seconds: float, pitch_hz: float, formant_scale: float) -> Voice:
    """A few seconds of babble in the voice of an identity."""
    length = round(seconds * SAMPLE_RATE)
    time = np.arange(length) / SAMPLE_RATE
    loud, opening = np.zeros(length), np.zeros(length)
    formants = np.empty((length, 3))
    formants[:] = VOWELS[rng.integers(len(VOWELS))]
    start = rng.uniform(0.0, 0.15)
    while start < seconds:
        duration = rng.uniform(0.14, 0.3)
        vowel = VOWELS[rng.integers(len(VOWELS))]
        inside = np.clip((time - start) / duration, 0, 1)
        syllable = np.sin(np.pi * inside) ** 0.8
        formants[(inside > 0) & (inside < 1)] = vowel
        strength = rng.uniform(0.6, 1.0)
        loud += strength * syllable
        opening += strength * syllable * (0.35 + 0.65 * (vowel[0] - 270) / 460)  # the higher F1, the lower the jaw
        start += duration * rng.uniform(0.85, 1.1) + (rng.uniform(0.15, 0.4) if rng.random() < 0.15 else 0.0)
    smoothing = np.hanning(round(0.05 * SAMPLE_RATE))
    smoothing /= smoothing.sum()
    opening = np.convolve(opening, smoothing, "same")
    edge = len(smoothing)
    for column in range(3):
        padded = np.pad(formants[:, column], edge, "edge")
        formants[:, column] = formant_scale * np.convolve(padded, smoothing, "same")[edge:-edge]

    drift = 1 + 0.08 * np.sin(2 * np.pi * rng.uniform(0.4, 0.9) * time + rng.uniform(0, 6)) + 0.01 * np.sin(2 * np.pi * 5.5 * time)
    pitch = pitch_hz * drift * (1 - 0.06 * time / max(seconds, 0.1))
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
    sound = np.zeros(length)
    for harmonic in range(1, HARMONICS + 1):
        frequency = harmonic * pitch
        gain = sum((0.7**n) / (1 + ((frequency - formants[:, n]) / (BANDWIDTHS_HZ[n] * formant_scale)) ** 2) for n in range(3))
        sound += np.where(frequency < SAMPLE_RATE / 2, (gain + 0.02) * np.sin(harmonic * phase), 0.0) / harmonic**0.6
    sound = sound * loud + 0.01 * loud * rng.standard_normal(length)
    sound *= 0.5 / max(1e-6, np.abs(sound).max())
    sound += 0.001 * rng.standard_normal(length)  # the room
    return Voice(sound.astype(np.float32), np.clip(opening, 0, 1))
