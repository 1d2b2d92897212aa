"""Detectors on a real face (skimage's astronaut), against DeepFace's own answers."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data

from dfdc_ray.errors import UserError
from dfdc_ray.faces.detect import Detector, load_detector, resolve

NAMES = ("centerface", "ssd", "ssd-stock", "opencv")
FACE = (181, 60, 88, 118)  # x y w h of the astronaut's face, by eye


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    return np.ascontiguousarray(skimage.data.astronaut())  # 512x512 RGB


@pytest.fixture(scope="module")
def detectors() -> dict[str, Detector]:
    return {name: load_detector(name) for name in NAMES}


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    inter = max(0.0, w) * max(0.0, h)
    return inter / (a[2] * a[3] + b[2] * b[3] - inter)


def wide(rgb: np.ndarray) -> np.ndarray:
    """The picture in the middle of a 1920x1080 frame, larger than any detector takes: it must be scaled."""
    frame = np.full((1080, 1920, 3), 90, np.uint8)
    frame[28:1052, 448:1472] = cv2.resize(rgb, (1024, 1024), interpolation=cv2.INTER_CUBIC)
    return frame


@pytest.mark.parametrize("name", NAMES)
def test_finds_the_face(name: str, astronaut: np.ndarray, detectors: dict[str, Detector]) -> None:
    faces = detectors[name].detect(astronaut)
    assert faces
    assert overlap(faces[0].box, FACE) > 0.5
    assert [f.score for f in faces] == sorted((f.score for f in faces), reverse=True)


@pytest.mark.parametrize("name", ["centerface", "ssd", "opencv"])
def test_boxes_are_in_pixels_of_the_frame(name: str, astronaut: np.ndarray, detectors: dict[str, Detector]) -> None:
    faces = detectors[name].detect(wide(astronaut))
    assert overlap(faces[0].box, (448 + 2 * FACE[0], 28 + 2 * FACE[1], 2 * FACE[2], 2 * FACE[3])) > 0.5


@pytest.mark.parametrize("name", NAMES)
def test_nothing_in_an_empty_frame(name: str, detectors: dict[str, Detector]) -> None:
    assert detectors[name].detect(np.full((360, 640, 3), 90, np.uint8)) == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 2000, 3), (700, 5, 3), (17, 31, 3)])
def test_tiny_and_thin_frames_are_no_trouble(name: str, shape: tuple[int, ...], detectors: dict[str, Detector]) -> None:
    assert detectors[name].detect(np.full(shape, 90, np.uint8)) == []


@pytest.mark.parametrize("name", NAMES)
def test_refuses_what_is_no_frame(name: str, detectors: dict[str, Detector]) -> None:
    for frame in (
        np.full((64, 64, 3), np.nan),
        np.zeros((64, 64, 3), np.float32),
        np.zeros((0, 64, 3), np.uint8),
        np.zeros((64, 64), np.uint8),
    ):
        with pytest.raises(ValueError, match="a frame is a uint8 array"):
            detectors[name].detect(frame)


def test_boxes_stay_in_the_frame(astronaut: np.ndarray, detectors: dict[str, Detector]) -> None:
    half = np.ascontiguousarray(astronaut[90:, 200:])  # an edge through the face
    for name in ("centerface", "ssd"):
        faces = detectors[name].detect(half)
        assert faces, name
        for x, y, w, h in (f.box for f in faces):
            assert 0 <= x <= x + w - 1 < half.shape[1]
            assert 0 <= y <= y + h - 1 < half.shape[0]


def test_landmarks_are_eyes_nose_and_corners_of_the_mouth(astronaut: np.ndarray, detectors: dict[str, Detector]) -> None:
    found = detectors["centerface"].detect(astronaut)[0].landmarks
    assert found is not None
    by_eye = [(203, 102), (246, 103), (223, 125), (204, 140), (244, 142)]
    assert np.abs(np.reshape(found, (5, 2)) - by_eye).max() < 6
    for name in ("ssd", "ssd-stock", "opencv"):
        assert detectors[name].detect(astronaut)[0].landmarks is None


def test_centerface_equals_deepface_fresh_whatever_sizes_came_before(astronaut: np.ndarray) -> None:
    """DeepFace loads the network for every frame; ours is held, and must give the same numbers exactly."""
    from deepface.modules import modeling

    held = load_detector("centerface")
    client = modeling.build_model(task="face_detector", model_name="centerface")
    sizes = [(180, 320), (320, 180), (180, 320), (320, 320), (320, 180), (180, 320)]
    for i, (height, width) in enumerate(sizes):
        frame = np.full((height, width, 3), 60 + i, np.uint8)
        frame[:180, :180] = astronaut[20:200, 130:310]
        boxes, landmarks = client.build_model().forward(frame[:, :, ::-1].copy(), height, width, threshold=held.threshold)
        faces = held.detect(frame)
        assert len(faces) == len(boxes) == 1
        x0, y0, x1, y1, score = boxes[0].tolist()
        assert faces[0].box == (x0, y0, x1 - x0, y1 - y0)
        assert faces[0].score == score
        assert faces[0].landmarks == tuple(landmarks[0].tolist())


def test_centerface_on_a_large_frame_equals_deepface_on_the_scaled_one(astronaut: np.ndarray, detectors: dict[str, Detector]) -> None:
    from deepface.modules import modeling

    frame = wide(astronaut)
    small = cv2.resize(frame, (640, 360), interpolation=cv2.INTER_AREA)[:, :, ::-1].copy()
    area = modeling.build_model(task="face_detector", model_name="centerface").detect_faces(small)[0]
    face = detectors["centerface"].detect(frame)[0]
    assert [int(v / 3) for v in face.box] == [area.x, area.y, area.w, area.h]  # DeepFace drops the fraction
    assert face.score == area.confidence


def test_ssd_stock_equals_deepface(astronaut: np.ndarray, detectors: dict[str, Detector]) -> None:
    from deepface import DeepFace

    [found] = DeepFace.extract_faces(astronaut[:, :, ::-1].copy(), detector_backend="ssd", enforce_detection=False)
    [face] = detectors["ssd-stock"].detect(astronaut)
    assert face.box == tuple(float(found["facial_area"][k]) for k in "xywh")
    assert face.score == found["confidence"]


def test_ssd_finds_what_deepface_misses(astronaut: np.ndarray, detectors: dict[str, Detector]) -> None:
    """What the right preprocessing is for: a face that is small in a wide frame."""
    frame = np.full((1080, 1920, 3), 90, np.uint8)
    frame[300:812, 600:1112] = astronaut
    assert overlap(detectors["ssd"].detect(frame)[0].box, (600 + FACE[0], 300 + FACE[1], *FACE[2:])) > 0.5
    assert detectors["ssd-stock"].detect(frame) == []


@pytest.mark.parametrize("name", NAMES)
def test_the_same_frame_gives_the_same_faces(name: str, astronaut: np.ndarray, detectors: dict[str, Detector]) -> None:
    first = detectors[name].detect(astronaut)
    detectors[name].detect(wide(astronaut))
    assert detectors[name].detect(astronaut) == first == load_detector(name).detect(astronaut)


def test_threshold_keeps_the_surer_faces(astronaut: np.ndarray) -> None:
    frame = np.full((360, 640, 3), 90, np.uint8)
    frame[:300, 20:320] = astronaut[:300, 60:360]
    frame[100:300, 400:600] = cv2.GaussianBlur(astronaut[30:230, 110:310], (0, 0), 5) // 3  # a second face, dark and out of focus
    for name in ("centerface", "ssd"):
        many = load_detector(name, threshold=0.05).detect(frame)
        some = load_detector(name, threshold=0.85).detect(frame)
        assert len(many) > len(some) == 1
        assert [f for f in many if f.score >= 0.85] == some
    weight = load_detector("opencv").detect(astronaut)[0].score
    assert load_detector("opencv", threshold=weight + 1).detect(astronaut) == []


def test_long_side_is_what_the_frame_is_scaled_to(astronaut: np.ndarray) -> None:
    small = load_detector("centerface", long_side=128)
    area = cv2.resize(astronaut, (128, 128), interpolation=cv2.INTER_AREA)
    [a], [b] = small.detect(astronaut), small.detect(area)
    assert a.box == tuple(4 * v for v in b.box)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("retinaface", {}),
        ("centerface", {"threshold": 0.0}),
        ("ssd", {"threshold": 1.5}),
        ("centerface", {"long_side": 3}),
        ("ssd-stock", {"threshold": 0.5}),
        ("ssd-stock", {"long_side": 480}),
    ],
)
def test_refuses_what_it_cannot_do(name: str, options: dict[str, float]) -> None:
    with pytest.raises(UserError):
        resolve(name, **options)  # type: ignore[arg-type]
    with pytest.raises(UserError):
        load_detector(name, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_what_was_resolved_is_taken_back(name: str, detectors: dict[str, Detector]) -> None:
    """As when the recorded settings of an output are used again."""
    threshold, long_side = resolve(name)
    assert (detectors[name].threshold, detectors[name].long_side) == (threshold, long_side)
    assert resolve(name, threshold=threshold, long_side=long_side) == (threshold, long_side)


@pytest.mark.slow
def test_covers_real_videos(shared: Path) -> None:
    """The dark clip and the profile included."""
    from dfdc_ray.video.decode import decode_frames, probe
    from dfdc_ray.video.sampling import sample

    detector = load_detector("centerface")
    found: dict[str, list[bool]] = {}
    for path in sorted((shared / "data" / "dfdc_clips").glob("*.mp4")):
        with path.open("rb") as file:
            info = probe(file)
            wanted = [s.frame for s in sample(info.times, method="spread", frames=8)]
            found[path.stem] = [bool(detector.detect(rgb)) for _, rgb in decode_frames(file, info, wanted)]
    assert len(found) == 4
    assert all(len(frames) == 8 for frames in found.values())
    assert sum(map(sum, found.values())) >= 0.97 * 8 * len(found), found
