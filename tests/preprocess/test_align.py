"""The alignment check on moving pictures whose truth is known."""

import cv2
import numpy as np
import pytest

from dfdc_ray.preprocess.align import Alignment, check, thumbnail

WIDTH, HEIGHT = 640, 360


def scene(n: int, *, seed: int = 0, shift: int = 0, face_seed: int = 1) -> tuple[dict[int, np.ndarray], dict[int, list]]:
    """Thumbnails of a textured head that swings over a textured background, and its boxes; `shift` frames late."""
    background = cv2.resize(np.random.default_rng(seed).integers(0, 255, (18, 32, 3), dtype=np.uint8), (WIDTH, HEIGHT))
    hair = cv2.resize(np.random.default_rng(seed + 100).integers(0, 255, (8, 8, 3), dtype=np.uint8), (200, 240))
    face = cv2.resize(np.random.default_rng(face_seed).integers(0, 255, (6, 6, 3), dtype=np.uint8), (100, 120))
    frames, boxes = {}, {}
    for i in range(n):
        x = int(200 + 80 * np.sin((i - shift) / 3))
        picture = background.copy()
        picture[80:320, x : x + 200] = hair
        picture[140:260, x + 50 : x + 150] = face
        frames[i], boxes[i] = thumbnail(picture), [(x + 50.0, 140.0, 100.0, 120.0)]
    return frames, boxes


@pytest.fixture(scope="module")
def original() -> tuple[dict[int, np.ndarray], dict[int, list]]:
    return scene(16)


def test_another_face_in_the_same_scene_holds(original):
    fake, _ = scene(16, face_seed=7)
    alignment = check(original[0], fake, original[1], width=WIDTH, height=HEIGHT)
    assert alignment.holds
    assert alignment.scene > 0.99
    assert alignment.motion is not None
    assert alignment.motion > 0.95


def test_a_shorter_and_smaller_fake_holds(original):
    fake, _ = scene(9, face_seed=7)
    smaller = {i: cv2.resize(f, (80, 45), interpolation=cv2.INTER_AREA) for i, f in fake.items()}
    assert check(original[0], smaller, original[1], width=WIDTH, height=HEIGHT).holds


def test_a_late_fake_does_not_hold_though_its_background_fits(original):
    late, _ = scene(16, shift=4, face_seed=7)
    alignment = check(original[0], late, original[1], width=WIDTH, height=HEIGHT)
    assert not alignment.holds


def test_another_scene_does_not_hold(original):
    other, _ = scene(16, seed=3)
    assert not check(original[0], other, original[1], width=WIDTH, height=HEIGHT).holds


def test_a_still_picture_is_judged_by_its_scene_alone():
    frames, boxes = scene(1)
    still = dict.fromkeys(range(5), frames[0])
    alignment = check(still, still, dict.fromkeys(range(5), boxes[0]), width=WIDTH, height=HEIGHT)
    assert alignment.motion is None
    assert alignment.holds


def test_no_common_frame_does_not_hold(original):
    assert check(original[0], {}, original[1], width=WIDTH, height=HEIGHT) == Alignment(scene=0.0, motion=None)
