"""Do the lips go with the sound? Two networks that look at a clip's mouth and listen to the sound around each frame.

mfcc_lstm   MFCCs and the mouth region, joined frame by frame, PCA, LSTM (Korshunov and Marcel 2018, doi:10.23919/EUSIPCO.2018.8553270)
av_sync     two streams whose likeness at each offset in time decides (after Chung and Zisserman 2016, "Out of time")
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn import functional

RATE, BANDS, COEFFICIENTS = 16_000, 40, 13  # of video/sound.py; of the spectrum
SPREADS = 3  # of the mouth's brightness: over all, along rows, along columns
_FFT, _STEP, _FRAME = 512, 160, 400  # samples: 25 ms every 10 ms
_NOW = slice(6, 11)  # of the 17 steps around a frame: 65 ms, so that syllables (3 to 7 Hz) are not averaged out
_MOVES = 6.0  # what lips change of a pixel's brightness is about 1/6
_QUIET = 1e-6  # added to energies: below 16 bits' own noise
TEMPERATURE = 0.1  # by which likenesses, from -1 to 1, are divided where they are weighed against each other
_STILL = (1.5, 0.03, 0.001)  # what noise alone moves MFCCs, pixels in 0..1 and their spreads by, as lengths
_SAME = 1e-3  # of features, which are about of unit size: a smaller spread than this is none


class _AudioVisual(nn.Module):
    """float32 [N,T,3,S,S] in 0..1 and sound float32 [N,T,3200] in -1..1 -> logits [N]."""

    PRETRAINED: Mapping[str, Any] = MappingProxyType({})
    CHANNELS = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # 0..1, as it is
    SIDE = None
    CLIPS = True
    SOUND = True


class MfccLstm(_AudioVisual):
    """PCA is fitted to training clips before the first step (`fit`), and is a part of the weights from then on."""

    HEAD = ("fc.",)
    KEPT, HIDDEN = 64, 64
    MOUTH = (12, 16)  # pixels, for want of 68 landmarks' distances
    mean: torch.Tensor
    components: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        size = 2 * (COEFFICIENTS + math.prod(self.MOUTH) + SPREADS)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("components", torch.eye(size, self.KEPT))  # until it is fitted
        self.lstm = nn.LSTM(self.KEPT, self.HIDDEN, batch_first=True)
        self.fc = nn.Linear(self.HIDDEN, 1)

    def forward(self, x: torch.Tensor, sound: torch.Tensor) -> torch.Tensor:
        kept = (self.features(x, sound) - self.mean) @ self.components
        logits: torch.Tensor = self.fc(self.lstm(kept)[0].mean(1))
        return logits[:, 0]

    def features(self, x: torch.Tensor, sound: torch.Tensor) -> torch.Tensor:
        """float32 [N,T,F]: of each frame MFCCs, the mouth region's pixels, and how far its middle is spread in brightness (lips that part
        show teeth and the dark between); each less its mean over the clip and of unit size in it, for what a voice and a face are like all
        the time says nothing of how they go together; and how all differ from the frame before.
        """
        region = mouth(x)
        pixels = functional.adaptive_avg_pool2d(region.flatten(0, 1), self.MOUTH).view(*x.shape[:2], -1)
        coefficients = mfcc(sound)[..., _NOW].mean(-1)
        parts = zip((coefficients, pixels, _spreads(region)), _STILL, strict=True)
        joined = torch.cat([_moving(part, still) for part, still in parts], dim=-1)
        before = torch.cat([joined[:, :1], joined[:, :-1]], dim=1)
        return torch.cat([joined, 2 * (joined - before)], dim=-1)

    @torch.no_grad()
    def fit(self, features: torch.Tensor) -> None:
        """The principal components of these [N,T,F]; the first has variance 1. ValueError with too few frames for so many, or where all are
        alike.
        """
        found = features.flatten(0, 1)
        if len(found) <= self.KEPT:
            raise ValueError(f"{len(found)} frames do not give {self.KEPT} principal components")
        mean = found.mean(0)
        _, sizes, directions = torch.linalg.svd(found - mean, full_matrices=False)
        if not sizes[0] > _SAME * math.sqrt(len(found)):  # what is left is rounding, and would be blown up
            raise ValueError("all clips are alike: they have no principal components")
        self.mean.copy_(mean)
        self.components.copy_(directions[: self.KEPT].T * math.sqrt(len(found) - 1) / sizes[0])


class AVSync(_AudioVisual):
    """Each stream gives an embedding for each frame; the likeness of picture i to sound i + k, averaged over i, for each offset k, decides.

    What a mouth looks like all the time says nothing of synchrony: its mean over the clip is taken away first.
    """

    HEAD = ("decide.2.",)
    OFFSETS = 3  # frames either way
    STEPS = 4  # of the 17 around a frame, after two poolings: which of them is loud is what tells one offset from another

    def __init__(self) -> None:
        super().__init__()
        self.seen = nn.Sequential(_block3d(1, 16), nn.MaxPool3d((1, 2, 2)), _block3d(16, 32), nn.MaxPool3d((1, 2, 2)), _block3d(32, 64))
        self.heard = nn.Sequential(_block2d(1, 16), nn.MaxPool2d(2), _block2d(16, 32), nn.MaxPool2d(2), _block2d(32, 64))
        self.seen_out, self.heard_out = nn.Conv1d(64, 64, 3, padding=1), nn.Conv1d(64 * self.STEPS, 64, 3, padding=1)
        self.decide = nn.Sequential(nn.Linear(2 * self.OFFSETS + 1, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x: torch.Tensor, sound: torch.Tensor) -> torch.Tensor:
        return self.verdict(self.likeness(x, sound))

    def likeness(self, x: torch.Tensor, sound: torch.Tensor) -> torch.Tensor:
        """float32 [N,T,T] in -1..1: of each frame's picture to each frame's sound."""
        n, t = x.shape[:2]
        mouths = functional.adaptive_avg_pool2d(mouth(x).flatten(0, 1), (32, 48)).view(n, 1, t, 32, 48)
        spectra = log_mel(sound)
        spectra = (spectra - spectra.mean((1, 2, 3), keepdim=True)) / 4
        seen = self.seen_out(self.seen(_MOVES * (mouths - mouths.mean(2, keepdim=True))).mean((3, 4)))
        heard = self.heard_out(self.heard(spectra.flatten(0, 1)[:, None]).mean(2).reshape(n, t, -1).transpose(1, 2))
        return functional.normalize(seen, dim=1).transpose(1, 2) @ functional.normalize(heard, dim=1)

    def verdict(self, like: torch.Tensor) -> torch.Tensor:
        """Logits [N] of `likeness`."""
        n, t = like.shape[:2]
        offsets = range(-self.OFFSETS, self.OFFSETS + 1)
        by_offset = torch.stack([like.diagonal(k, 1, 2).mean(1) if abs(k) < t else like.new_zeros(n) for k in offsets], dim=1)
        logits: torch.Tensor = self.decide((by_offset - by_offset.mean(1, keepdim=True)) / TEMPERATURE)
        return logits[:, 0]


def mouth(x: torch.Tensor) -> torch.Tensor:
    """The lower middle of face crops as grey: [N,T,3,S,S] -> [N,T,0.4 S,0.5 S]. Crops have the face in their middle, with a margin."""
    side = x.shape[-1]
    return x[..., side // 2 : round(0.9 * side), side // 4 : 3 * side // 4].mean(2)


def _moving(values: torch.Tensor, still: float) -> torch.Tensor:
    """[N,T,F]: less their mean over the clip, and of unit length on the average of its frames, or shorter where they hardly move."""
    values = values - values.mean(1, keepdim=True)
    return values / (values.square().sum(2, keepdim=True).mean(1, keepdim=True).sqrt() + still)


def _spreads(region: torch.Tensor) -> torch.Tensor:
    """Standard deviations within the middle half of [N,T,H,W], the mouth itself: [N,T,SPREADS]."""
    height, width = region.shape[-2:]
    middle = region[..., height // 4 : 3 * height // 4, width // 4 : 3 * width // 4]
    return torch.stack([middle.flatten(2).std(2), middle.std(3).mean(2), middle.std(2).mean(2)], dim=-1)


def log_mel(sound: torch.Tensor) -> torch.Tensor:
    """Logarithm of the energy in BANDS mel bands: float32 [...,samples] -> [...,BANDS,steps], a step every 10 ms."""
    window = torch.hann_window(_FRAME, device=sound.device)
    flat = sound.flatten(0, -2).float()
    spectrum = torch.stft(flat, _FFT, _STEP, _FRAME, window, center=False, return_complex=True).abs() ** 2
    return (_filters(sound.device) @ spectrum + _QUIET).log().view(*sound.shape[:-1], BANDS, -1)


def mfcc(sound: torch.Tensor) -> torch.Tensor:
    """The first COEFFICIENTS of the orthonormal cosine transform (DCT-II) of `log_mel`: [...,samples] -> [...,COEFFICIENTS,steps]."""
    k, band = torch.arange(COEFFICIENTS, device=sound.device)[:, None], torch.arange(BANDS, device=sound.device)
    basis = torch.cos(math.pi / BANDS * (band + 0.5) * k) * math.sqrt(2 / BANDS)
    basis[0] /= math.sqrt(2)
    return basis @ log_mel(sound)


def _filters(device: torch.device) -> torch.Tensor:
    """Triangles, float32 [BANDS,_FFT/2+1], evenly spaced on the mel scale of HTK: 2595 log10(1 + f/700)."""
    top = 2595 * math.log10(1 + RATE / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, BANDS + 2, device=device) / 2595) - 1)
    bins = torch.linspace(0, RATE / 2, _FFT // 2 + 1, device=device)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp(min=0)


def _block3d(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(channels, out, 3, padding=1, bias=False), nn.BatchNorm3d(out), nn.ReLU(inplace=True))


def _block2d(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True))
