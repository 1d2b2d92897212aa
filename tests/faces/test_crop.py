"""Where crops lie and what is kept of their pixels."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from dfdc_ray.faces.crop import crop_rect, cut, encode


def decoded(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]


def smooth(height: int, width: int) -> np.ndarray:
    """A picture as a camera gives it: all colours, nothing as sharp as a pixel."""
    noise = np.random.default_rng(0).integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def test_square_around_the_centre() -> None:
    assert crop_rect((100.0, 200.0, 60.0, 90.0), 1920, 1080, margin=1 / 3) == (55, 170, 150, 150)
    assert crop_rect((100.0, 200.0, 60.0, 60.0), 1920, 1080, margin=0) == (100, 200, 60, 60)


@pytest.mark.parametrize(
    ("box", "rect"),
    [
        ((0, 0, 90, 90), (0, 0, 150, 150)),
        ((1840, 1000, 80, 80), (1787, 947, 133, 133)),
        ((1000, 1070, 10, 10), (996, 1063, 17, 17)),
    ],
)
def test_shifted_at_the_edges(box: tuple[float, float, float, float], rect: tuple[int, ...]) -> None:
    assert crop_rect(box, 1920, 1080, margin=1 / 3) == rect


def test_clipped_where_the_frame_is_smaller() -> None:
    assert crop_rect((500, 100, 700, 900), 1920, 1080, margin=1 / 3) == (100, 0, 1500, 1080)
    assert crop_rect((0, 0, 30, 40), 30, 40, margin=1 / 3) == (0, 0, 30, 40)


def test_always_whole_pixels_inside_the_frame() -> None:
    rng = np.random.default_rng(0)
    for _ in range(3000):
        width, height = (int(v) for v in rng.integers(1, 400, 2))
        x, y, w, h = (float(v) for v in rng.uniform((-50, -50, 0.01, 0.01), (450, 450, 500, 500)))
        rect = crop_rect((x, y, w, h), width, height, margin=float(rng.uniform(0, 1)))
        assert all(type(v) is int for v in rect)
        assert 0 <= rect[0] < rect[0] + rect[2] <= width
        assert 0 <= rect[1] < rect[1] + rect[3] <= height
        if max(rect[2:]) <= min(width, height):
            assert rect[2] == rect[3]


@pytest.mark.parametrize("box", [(0, 0, 0, 5), (0, 0, 5, -1), (float("nan"), 0, 5, 5), (0, 0, float("inf"), 5)])
def test_refuses_a_box_without_area(box: tuple[float, float, float, float]) -> None:
    with pytest.raises(ValueError, match="no crop"):
        crop_rect(box, 100, 100, margin=0)


def test_cut_copies_small_crops_as_they_are() -> None:
    frame = smooth(100, 200)
    picture = cut(frame, (20, 10, 64, 48), max_side=64)
    np.testing.assert_array_equal(picture, frame[10:58, 20:84])
    picture[:] = 0
    assert frame[10:58, 20:84].any()


def test_cut_averages_large_crops_down() -> None:
    frame = smooth(300, 400)
    picture = cut(frame, (8, 4, 256, 128), max_side=64)
    blocks = frame[4:132, 8:264].reshape(32, 4, 64, 4, 3).mean((1, 3))
    assert picture.shape == (32, 64, 3)
    assert np.abs(picture - blocks).max() <= 0.5  # rounding alone
    assert cut(frame, (0, 0, 400, 1), max_side=50).shape == (1, 50, 3)


def test_png_is_lossless() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (31, 57, 3), dtype=np.uint8)
    data = encode(picture, "png")
    assert data.startswith(b"\x89PNG")
    np.testing.assert_array_equal(decoded(data), picture)


def test_jpeg_keeps_colours_and_their_sharpness() -> None:
    picture = smooth(160, 200)
    data = encode(picture, "jpeg")
    error = np.abs(decoded(data).astype(int) - picture)
    assert error.mean() < 2
    assert error.max() < 24
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = (200, 60, 60)
    stripes[:, 1::2] = (60, 60, 200)
    assert np.abs(decoded(encode(stripes, "jpeg")).astype(int) - stripes).mean() < 8  # 4:2:0 would leave about 60


def test_jpeg_is_444_quality_95() -> None:
    opened = Image.open(io.BytesIO(encode(smooth(64, 64), "jpeg")))
    assert {(h, v) for _, h, v, _ in opened.layer} == {(1, 1)}
    assert opened.quantization[0][0] == 2  # 16 in the standard's table, at quality 95


def test_bytes_are_the_same_each_time() -> None:
    picture = smooth(90, 90)
    for fmt in ("jpeg", "png"):
        assert encode(picture, fmt) == encode(picture.copy(), fmt)  # type: ignore[arg-type]
