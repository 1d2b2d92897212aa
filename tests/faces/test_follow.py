"""Follower: when it takes a smaller look, and that this loses nothing. A scripted detector tells at which size it was asked."""

import numpy as np
import pytest
import skimage.data

from dfdc_ray.faces.detect import Face, load_detector
from dfdc_ray.faces.follow import Follower

FRAME = np.zeros((360, 640, 3), np.uint8)


class Scripted:
    """Sees faces of the given widths (at 640 pixels) where they are at least 16 pixels wide at the size of the look."""

    name = "centerface"
    threshold = 0.4
    long_side = 640

    def __init__(self) -> None:
        self.widths: list[float] = []
        self.looks: list[int] = []

    def detect(self, rgb: np.ndarray, *, long_side: int | None = None) -> list[Face]:
        side = min(long_side or self.long_side, max(rgb.shape[:2]))
        self.looks.append(side)
        return [Face((10.0 * i, 0.0, w, w), 0.9) for i, w in enumerate(self.widths) if w * side / 640 >= 16]


@pytest.mark.parametrize(("width", "side"), [(100.0, 320), (32.0, 320), (31.0, 480), (22.0, 480), (20.0, 640)])
def test_the_smallest_look_at_which_all_known_faces_are_wide_enough(width: float, side: int) -> None:
    detector = Scripted()
    detector.widths = [200.0, width]
    follower = Follower(detector, (320, 480))
    for i in range(3):
        assert len(follower.detect(FRAME, i * 0.3)) == 2
    assert detector.looks == [640, side, side]


def test_a_smaller_look_that_misses_a_face_is_followed_by_a_full_one() -> None:
    detector = Scripted()
    detector.widths = [100.0, 90.0]
    follower = Follower(detector, (320, 480))
    follower.detect(FRAME, 0.0)
    detector.widths = [100.0, 25.0]  # too small for 320 now, but there
    assert len(follower.detect(FRAME, 0.3)) == 2
    assert detector.looks == [640, 320, 640]


def test_a_face_that_only_a_smaller_look_sees_is_not_believed() -> None:
    class Fooled(Scripted):
        def detect(self, rgb: np.ndarray, *, long_side: int | None = None) -> list[Face]:
            faces = super().detect(rgb, long_side=long_side)
            return [*faces, Face((300.0, 0.0, 90.0, 90.0), 0.5)] if long_side else faces

    detector = Fooled()
    detector.widths = [100.0]
    follower = Follower(detector, (320, 480))
    assert [len(follower.detect(FRAME, t)) for t in (0.0, 0.3, 0.6)] == [1, 1, 1]
    assert detector.looks == [640, 320, 640, 320, 640]


def test_who_comes_in_small_is_seen_within_two_and_a_half_seconds() -> None:
    detector = Scripted()
    detector.widths = [100.0]
    follower = Follower(detector, (320, 480))
    follower.detect(FRAME, 5.0)
    detector.widths = [100.0, 20.0]
    assert [len(follower.detect(FRAME, t)) for t in (6.0, 7.0, 7.5)] == [1, 1, 2]


def test_without_a_known_face_every_look_is_a_full_one() -> None:
    detector = Scripted()
    follower = Follower(detector, (320, 480))
    for t in (0.0, 0.1, 0.2):
        assert follower.detect(FRAME, t) == []
    assert detector.looks == [640] * 3


def test_no_smaller_look_in_a_frame_that_is_no_larger() -> None:
    detector = Scripted()
    detector.widths = [300.0]
    follower = Follower(detector, (320, 480))
    small = FRAME[:, :320]
    follower.detect(small[:180], 0.0)
    follower.detect(small[:180], 0.1)
    assert detector.looks == [320, 320]  # its own size, both in full


def test_a_real_detector_finds_the_same_face_at_each_size() -> None:
    frame = np.full((1080, 1920, 3), 90, np.uint8)
    frame[:1024, 700:1724] = skimage.data.astronaut().repeat(2, axis=0).repeat(2, axis=1)  # the face is some 170 pixels wide
    detector = load_detector("centerface")
    (full,) = detector.detect(frame)
    for side in (320, 480):
        (face,) = detector.detect(frame, long_side=side)
        assert np.abs(np.array(face.box) - full.box).max() < 0.15 * full.box[2]  # pixels; the boxes of two sizes differ by a few percent
