"""Identities: what each drawn person looks and sounds like, and where on its canvas each feature of a head lies.

Coordinates on the head are u, v: offsets from the face's centre in half-widths and half-heights, v downwards.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Image = npt.NDArray[np.uint8]
Colour = tuple[float, float, float]  # RGB, 0-255

CANVAS_WIDTH, CANVAS_HEIGHT = 448, 576
CENTRE = (224.0, 292.0)  # of the face on the canvas
INNER = (0.78, 0.66)  # half-axes of the inner face, as shares of the face's

SKIN: Array = np.array([(238, 206, 188), (224, 182, 156), (202, 152, 120), (170, 118, 86), (128, 84, 60), (92, 62, 47)], np.float32)
HAIR: tuple[Colour, ...] = ((28, 22, 20), (52, 36, 26), (88, 58, 36), (130, 92, 56), (186, 150, 98), (142, 68, 38), (150, 146, 142))
IRIS: tuple[Colour, ...] = ((66, 42, 26), (92, 62, 34), (108, 116, 70), (82, 118, 142), (106, 122, 128), (48, 32, 24))
CLOTHES: tuple[Colour, ...] = (
    *((52, 60, 84), (134, 44, 46), (226, 224, 216), (58, 92, 70)),
    *((40, 40, 44), (108, 130, 160), (196, 158, 72), (120, 84, 124)),
)
HAIR_STYLES = ("bald", "short", "fringe", "parted", "long", "curly")


def stream(seed: int, *names: str) -> np.random.Generator:
    """A random generator that depends on the seed and these names alone, whichever process asks."""
    return np.random.default_rng(np.random.SeedSequence([seed, *"/".join(names).encode()]))


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], sigma_x: float, sigma_y: float) -> Array:
    """Gaussian noise blurred to these sizes (pixels), with mean 0 and deviation 1; float32 [H, W]."""
    noise = cv2.GaussianBlur(rng.standard_normal(shape, dtype=np.float32), (0, 0), sigma_x, sigmaY=sigma_y)
    return ((noise - noise.mean()) / noise.std()).astype(np.float32)


@dataclass(frozen=True)
class Identity:
    """What one person looks like. Lengths along u and v; colours RGB 0-255."""

    skin: Colour
    hair: Colour
    iris: Colour
    clothes: Colour
    collar: int
    hair_style: str  # one of HAIR_STYLES
    hairline: float  # v
    half_width: float  # pixels of the canvas
    half_height: float
    jaw: float  # how much the face narrows downwards
    squareness: float  # exponent of the outline
    eye_u: float
    eye_v: float
    eye_width: float
    eye_height: float
    eye_slant: float
    brow_rise: float
    brow_thickness: float
    brow_slant: float
    nose_v: float  # of its tip
    nose_width: float
    nose_size: float
    mouth_v: float
    mouth_width: float
    lip_height: float
    lip_red: float
    freckles: int
    wrinkles: float
    stubble: float
    blotches: float
    texture: int  # seed of the skin's texture
    pitch_hz: float
    formant_scale: float  # shorter vocal tract, higher formants


def make_identity(rng: np.random.Generator, tone: float) -> Identity:
    """A random identity whose skin lies near this tone (0 lightest, 1 darkest)."""
    tone = float(np.clip(tone + rng.uniform(-0.1, 0.1), 0, 1)) * (len(SKIN) - 1)
    low = min(int(tone), len(SKIN) - 2)
    skin = SKIN[low] + (tone - low) * (SKIN[low + 1] - SKIN[low]) + rng.uniform(-6, 6, 3)
    dark = tone > 2.6  # light hair and eyes are rare on dark skin
    high_voice = rng.random() < 0.5
    style = HAIR_STYLES[rng.choice(len(HAIR_STYLES), p=(0.08, 0.22, 0.18, 0.18, 0.18, 0.16))]
    u = rng.uniform
    return Identity(
        skin=_colour(skin),
        hair=_jitter(rng, HAIR[rng.integers(2 if dark else len(HAIR))], 8),
        iris=_jitter(rng, IRIS[rng.integers(2 if dark else len(IRIS))], 8),
        clothes=_jitter(rng, CLOTHES[rng.integers(len(CLOTHES))], 15),
        collar=int(rng.integers(3)),
        hair_style=style,
        hairline=u(-0.72, -0.58),
        half_width=u(104, 122),
        half_height=u(144, 168),
        jaw=u(0.12, 0.36),
        squareness=u(2.0, 2.6),
        eye_u=u(0.37, 0.45),
        eye_v=u(-0.15, -0.05),
        eye_width=u(0.17, 0.23),
        eye_height=u(0.055, 0.095),
        eye_slant=u(-0.03, 0.03),
        brow_rise=u(0.15, 0.21),
        brow_thickness=u(0.02, 0.055),
        brow_slant=u(-0.05, 0.04),
        nose_v=u(0.2, 0.3),
        nose_width=u(0.13, 0.22),
        nose_size=u(0.7, 1.3),
        mouth_v=u(0.48, 0.58),
        mouth_width=u(0.28, 0.42),
        lip_height=u(0.05, 0.1),
        lip_red=u(0.1, 0.7),
        freckles=int(rng.choice((0, 0, 60, 160))),
        wrinkles=u(0, 1) ** 2,
        stubble=0.0 if high_voice else u(0, 1) ** 2,
        blotches=u(1.0, 4.0),
        texture=int(rng.integers(2**31)),
        pitch_hz=u(165, 240) if high_voice else u(85, 145),
        formant_scale=u(1.05, 1.2) if high_voice else u(0.9, 1.05),
    )


def _colour(values: npt.ArrayLike) -> Colour:
    r, g, b = np.clip(np.asarray(values, np.float64), 0, 255)
    return float(r), float(g), float(b)


def _jitter(rng: np.random.Generator, colour: Colour, by: float) -> Colour:
    return _colour(np.asarray(colour) + rng.uniform(-by, by, 3))


def locate(identity: Identity, turn: float, u: float, v: float) -> tuple[float, float]:
    """Canvas position of what lies at u, v of the face seen from the front, when the head is turned by so many radians."""
    turned = float(np.sin(np.arcsin(np.clip(u, -1, 1)) + turn))
    return CENTRE[0] + turned * identity.half_width, CENTRE[1] + v * identity.half_height
