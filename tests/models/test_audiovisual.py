"""Looking and listening: the features against numpy and scipy, PCA, and lips that do not go with the sound."""

from collections.abc import Callable

import numpy as np
import pytest
import scipy.fft
import torch
from torch import nn
from torchmetrics.functional.classification import binary_auroc

from dfdc_ray.config import Objective
from dfdc_ray.models import create_model
from dfdc_ray.models.audiovisual import BANDS, COEFFICIENTS, MfccLstm, log_mel, mfcc, mouth
from dfdc_ray.train.objectives import OBJECTIVES, for_training
from dfdc_ray.video.sound import RATE, WINDOW


def _mel_by_numpy(sound: np.ndarray) -> np.ndarray:
    """Framed, windowed and summed by the definition, in double precision."""
    window = np.pad(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400), 56)
    frames = np.stack([sound[at : at + 512] * window for at in range(0, len(sound) - 511, 160)])
    power = np.abs(np.fft.rfft(frames)) ** 2
    hertz = np.arange(257) * RATE / 512
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + RATE / 2 / 700), BANDS + 2) / 2595) - 1)
    bands = np.stack([np.interp(hertz, edges[n : n + 3], [0, 1, 0]) for n in range(BANDS)])
    return np.log(bands @ power.T + 1e-6)


def test_spectra_and_coefficients_are_those_of_numpy_and_scipy() -> None:
    sound = np.random.default_rng(0).normal(0, 0.1, (2, 3, WINDOW))
    expected = np.stack([[_mel_by_numpy(window) for window in clip] for clip in sound])
    found = log_mel(torch.from_numpy(sound).float())
    assert found.shape == (2, 3, BANDS, 17)
    assert np.abs(found.numpy() - expected).max() < 2e-3  # of some -3: single precision
    coefficients = scipy.fft.dct(expected, axis=2, norm="ortho")[:, :, :COEFFICIENTS]
    assert np.abs(mfcc(torch.from_numpy(sound).float()).numpy() - coefficients).max() < 5e-3


def test_the_mouth_is_in_the_lower_middle() -> None:
    x = torch.zeros(1, 1, 3, 100, 100)
    x[..., 60:80, 40:60] = 1
    found = mouth(x)
    assert found.shape == (1, 1, 40, 50)
    assert found.sum() == 20 * 20
    assert found[0, 0, 10:30, 15:35].min() == 1


def _clips(n: int, *, frames: int = 8, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Faces whose mouth is as open as the sound is loud, or (label 1) as another sound is: float32 clips, sound, labels."""
    rng = np.random.default_rng(seed)
    clips, sounds, labels = [], [], []
    time = np.arange(WINDOW + (frames - 1) * 1280)  # samples; a frame every 80 ms
    for number in range(n):
        loud, other = (0.5 + 0.5 * np.sin(2 * np.pi * rng.uniform(2, 6) * time / RATE + rng.uniform(0, 6)) for _ in range(2))
        fake = number % 2
        sound = 0.3 * loud * rng.standard_normal(len(time))
        middles = WINDOW // 2 + 1280 * np.arange(frames)
        face = rng.uniform(0.3, 0.8, (1, 3, 32, 32)) + np.zeros((frames, 1, 1, 1))
        opening = (other if fake else loud)[middles]
        face[:, :, 20:26, 12:20] *= 1 - 0.8 * opening[:, None, None, None]
        clips.append(face)
        sounds.append(np.stack([sound[m - WINDOW // 2 : m + WINDOW // 2] for m in middles]))
        labels.append(fake)
    return torch.from_numpy(np.stack(clips)).float(), torch.from_numpy(np.stack(sounds)).float(), torch.tensor(labels).float()


def _auc(model: nn.Module, score: Callable[[], torch.Tensor], labels: torch.Tensor) -> float:
    model.eval()
    with torch.inference_mode():
        return float(binary_auroc(torch.sigmoid(score()), labels.long()))


@pytest.mark.parametrize(("name", "objective", "rate", "epochs"), [("av_sync", "sync", 3e-3, 3), ("mfcc_lstm", "bce", 1e-2, 20)])
def test_lips_that_do_not_go_with_the_sound_are_told_from_those_that_do(name: str, objective: Objective, rate: float, epochs: int) -> None:
    torch.manual_seed(0)
    model = create_model(name)
    x, sound, labels = _clips(192)
    if isinstance(model, MfccLstm):
        model.fit(model.features(x, sound))
    trained = for_training(model, objective)
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    for _ in range(epochs):
        for some in torch.randperm(len(x)).split(16):
            optimizer.zero_grad()
            OBJECTIVES[objective](trained(x[some], sound[some]), labels[some]).backward()
            optimizer.step()
    new, heard, truth = _clips(128, seed=1)
    assert _auc(model, lambda: model(new, heard), truth) > 0.9
    assert _auc(model, lambda: model(new, heard.flip(0)), truth) < 0.65  # with sound that belongs to other clips there is nothing to tell


def test_a_face_that_is_still_in_a_quiet_room_does_not_count_as_moving() -> None:
    model = create_model("mfcc_lstm")
    assert isinstance(model, MfccLstm)
    rng = np.random.default_rng(0)
    still = torch.from_numpy(rng.uniform(0.2, 0.9, (8, 1, 3, 96, 96))).float().expand(8, 16, -1, -1, -1)
    camera = torch.from_numpy(rng.normal(0, 0.01, still.shape)).float()
    room = torch.from_numpy(rng.normal(0, 1e-3, (8, 16, WINDOW))).float()
    noise = model.features(((still + camera) * 255).round().clamp(0, 255) / 255, room)
    x, sound, _ = _clips(8, frames=16)
    spoken = model.features(x, sound)
    for part in (slice(0, COEFFICIENTS), slice(COEFFICIENTS, COEFFICIENTS + 192), slice(COEFFICIENTS + 192, COEFFICIENTS + 195)):
        lengths = [found[..., part].square().sum(2).mean(1).sqrt() for found in (noise, spoken)]
        assert lengths[0].max() < 0.6
        assert lengths[1].min() > 0.8
    nothing = model.features(torch.zeros(1, 4, 3, 64, 64), torch.zeros(1, 4, WINDOW))
    assert torch.equal(nothing, torch.zeros_like(nothing))


def test_pca_is_of_the_clips_it_was_fitted_to() -> None:
    model = create_model("mfcc_lstm")
    assert isinstance(model, MfccLstm)
    x, sound, _ = _clips(32)
    model.fit(model.features(x, sound))
    kept = (model.features(x, sound) - model.mean).flatten(0, 1) @ model.components
    assert torch.allclose(kept.mean(0), torch.zeros(model.KEPT), atol=1e-3)
    spread = kept.var(0)
    assert spread[0] == pytest.approx(1, abs=1e-3)
    assert (spread[1:] <= spread[:-1] + 1e-6).all()
    covariance = torch.cov(kept[:, :8].T)
    assert (covariance - torch.diag(covariance.diagonal())).abs().max() < 1e-2
    with pytest.raises(ValueError, match="64 principal components"):
        model.fit(model.features(x[:4], sound[:4]))
    with pytest.raises(ValueError, match="all clips are alike"):
        model.fit(model.features(torch.full_like(x, 0.5), torch.zeros_like(sound)))
