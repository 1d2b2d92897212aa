"""A head that moves is laid over itself; what changes in the face stays."""

import cv2
import numpy as np
import pytest
import torch
from skimage.data import astronaut

from dfdc_ray.train.stabilise import Stabilise


def _clip(*, width: int = 160, height: int = 160, spot: bool = False) -> torch.Tensor:
    """uint8 [5,3,H,W]: a face that drifts by 2 pixels and turns by 1 degree a frame."""
    face, frames = astronaut(), []
    for n in range(5):
        matrix = cv2.getRotationMatrix2D((225.0, 110.0), 1.0 * (n - 2), 1.0)
        matrix[:, 2] += (2.0 * (n - 2) - 225 + width / 2, 1.0 * (n - 2) - 110 + height / 2)
        frame = cv2.warpAffine(face, matrix, (width, height))
        if spot and n == 3:
            cv2.circle(frame, (80, 95), 5, (255, 255, 255), -1)
        frames.append(frame)
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


def _changes(clip: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference from the middle frame within the face, by frame."""
    height, width = clip.shape[-2:]
    inner = clip[:, :, height // 4 : 3 * height // 4, round(0.28 * width) : round(0.72 * width)].float()
    return (inner - inner[len(clip) // 2]).abs().mean((1, 2, 3))


@pytest.mark.parametrize(("width", "height"), [(160, 160), (100, 200), (200, 100)])
def test_a_moving_head_stands_still(width: int, height: int) -> None:
    clip = _clip(width=width, height=height)
    before, after = _changes(clip), _changes(Stabilise()(clip))
    assert (before[[0, 1, 3, 4]] > 8).all()
    assert (after < 0.35 * before.clamp(min=1)).all()
    assert torch.equal(Stabilise()(clip)[2], clip[2])


def test_what_changes_in_the_face_is_still_seen() -> None:
    without, spotted = (_changes(Stabilise()(_clip(spot=spot))) for spot in (False, True))
    assert spotted[3] > without[3] + 0.5
    assert torch.allclose(spotted[:2], without[:2])


@pytest.mark.parametrize(("step", "width", "grey"), [(25, 60, 200), (25, 60, 20), (25, 90, 120)])
def test_what_passes_before_a_still_face_does_not_move_it(step: int, width: int, grey: int) -> None:
    """Step and width in pixels of 224."""
    face = cv2.resize(astronaut()[30:190, 145:305], (224, 224))
    frames = np.stack([face] * 8)
    for n, frame in enumerate(frames):
        frame[60:200, n * step : n * step + width] = grey
    clip = torch.from_numpy(frames).permute(0, 3, 1, 2)
    assert torch.equal(Stabilise()(clip), clip)


def test_no_jump_comes_in_that_was_not_there() -> None:
    """A head that goes too far to be followed: the frames after that go with the last one that was."""
    face, frames = astronaut(), []
    for n in range(16):
        matrix = np.float32([[1, 0, -225 + 112 + 6 * (n - 8)], [0, 1, -110 + 112]])
        frames.append(cv2.warpAffine(face, matrix, (224, 224), borderMode=cv2.BORDER_REPLICATE))
    clip = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)

    def steps(frames: torch.Tensor) -> torch.Tensor:
        inner = frames[:, :, 56:168, 63:161].float()
        return (inner[1:] - inner[:-1]).abs().mean((1, 2, 3))

    before, after = steps(clip), steps(Stabilise()(clip))
    assert after.max() < 1.1 * before.max()
    assert after.median() < 0.3 * before.median()


@pytest.mark.parametrize("found", [True, False])
def test_a_head_that_goes_and_comes_back_is_where_it_was(found: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame that lies well as it is is not moved as its neighbour is, also where the search from there does not converge."""
    search = cv2.findTransformECC

    def lost(middle: np.ndarray, frame: np.ndarray, start: np.ndarray, *options: object) -> object:
        if np.abs(start - np.eye(2, 3)).max() > 0.5 and not found:
            raise cv2.error("it does not converge")
        return search(middle, frame, start, *options)

    monkeypatch.setattr(cv2, "findTransformECC", lost)
    still = cv2.resize(astronaut()[30:190, 145:305], (224, 224))
    away = cv2.warpAffine(still, np.float32([[1, 0, 12], [0, 1, 5]]), (224, 224), borderMode=cv2.BORDER_REPLICATE)
    clip = torch.from_numpy(np.stack([still, still, away, still])).permute(0, 3, 1, 2)
    clip = torch.cat([clip.flip(0), clip[1:]])  # the middle one is still
    assert (_changes(Stabilise()(clip))[[0, 1, 2, 4, 5]] < 1).all()


def test_moved_frames_are_as_sharp_as_the_one_that_is_not() -> None:
    rng = np.random.default_rng(0)
    face = cv2.resize(astronaut()[30:190, 145:305], (224, 224)).astype(np.float32)
    frames = []
    for n in range(5):
        matrix = np.float32([[1, 0, 2.4 * (n - 2)], [0, 1, 1.3 * (n - 2)]])
        moved = cv2.warpAffine(face, matrix, (224, 224), borderMode=cv2.BORDER_REPLICATE)
        frames.append(np.clip(moved + rng.normal(0, 6, moved.shape), 0, 255).astype(np.uint8))
    clip = Stabilise()(torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2))
    sharp = [cv2.Laplacian(frame.permute(1, 2, 0).numpy(), cv2.CV_32F)[56:168, 63:161].std() for frame in clip]
    assert min(sharp) > 0.65 * sharp[2]  # bilinear: 0.4


def test_what_cannot_be_followed_stays_as_it_is() -> None:
    plain = torch.full((3, 3, 60, 50), 127, dtype=torch.uint8)
    assert torch.equal(Stabilise()(plain), plain)
