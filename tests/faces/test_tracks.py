"""Who is who over sampled frames."""

import math

import numpy as np
import pytest

from dfdc_ray.faces.detect import Box, Face
from dfdc_ray.faces.tracks import link, steady


def face(cx: float, cy: float, side: float, score: float = 0.9) -> Face:
    box: Box = (cx - side / 2, cy - 0.65 * side, side, 1.3 * side)
    return Face(box, score)


def test_one_person_is_one_track() -> None:
    rng = np.random.default_rng(0)
    frames = [(10 * i, [face(500 + rng.normal(0, 30), 300 + rng.normal(0, 15), 100 * rng.uniform(0.9, 1.1))]) for i in range(32)]
    assert link(frames) == [[0]] * 32


def test_two_people_side_by_side_do_not_swap() -> None:
    """They sway together by up to 0.8 of a face, stand 1.6 faces apart, and come in either order."""
    frames = []
    truth = []
    for i in range(32):
        sway = 80 * math.sin(i)
        people = [face(400 + sway, 300, 110), face(560 + sway, 300, 95)]
        order = [1, 0] if i % 3 else [0, 1]
        frames.append((10 * i, [people[j] for j in order]))
        truth.append(order)
    assert link(frames) == truth  # the larger is track 0


def test_both_move_by_more_than_half_the_distance_between_them() -> None:
    """Nearest first would give A's new box to B."""
    before = [face(400, 300, 100), face(560, 300, 100)]
    after = [face(490, 300, 100), face(650, 300, 100)]
    assert link([(0, before), (10, after)]) == [[0, 1], [0, 1]]


@pytest.mark.parametrize("side", [70, 400])
def test_a_passer_by_is_not_the_subject(side: float) -> None:
    """Passing for 5 of 32 frames behind the subject, or close to the camera and much larger; best score too."""
    frames = []
    for i in range(32):
        faces = [face(500 + 3 * i, 400, 100, 0.7)]
        if 10 <= i < 15:
            faces.insert(0, face(100 + 0.9 * side * (i - 10), 900 if side == 400 else 380, side, 0.99))
        frames.append((10 * i, faces))
    tracks = link(frames)
    assert all(ids[-1] == 0 for ids in tracks)
    assert all(ids[0] == 1 for ids in tracks[10:15])


def test_first_on_screen_is_not_first_in_rank() -> None:
    frames = [(0, [face(100, 100, 60)]), (10, [face(105, 100, 60), face(500, 300, 90)])] + [
        (10 * i, [face(500, 300, 90)]) for i in range(2, 9)
    ]
    assert link(frames) == [[1], [1, 0]] + [[0]] * 7


def test_somebody_small_in_the_background_does_not_win_by_a_frame() -> None:
    """The subject looks away three times; the man at the desk behind is always found."""
    frames = [(i, [face(900, 200, 40)] + ([face(400, 300, 160)] if i not in (3, 9, 20) else [])) for i in range(32)]
    assert all(ids == ([1, 0] if len(ids) == 2 else [1]) for ids in link(frames))


def test_gaps_do_not_cut_a_track() -> None:
    frames = [(i, [face(500, 300, 100)] if i % 5 == 0 else []) for i in range(40)]
    assert link(frames) == [[0] if i % 5 == 0 else [] for i in range(40)]


def test_a_false_box_does_not_take_the_track() -> None:
    """A hand below the chin, found while the face is not, and once beside it."""
    frames = [(i, [face(500, 300, 100)]) for i in range(10)]
    frames[4] = (4, [face(500, 700, 90)])
    frames[7] = (7, [face(500, 300, 100), face(505, 690, 90)])
    assert link(frames) == [[0]] * 4 + [[1]] + [[0]] * 2 + [[0, 1]] + [[0]] * 2


def test_far_away_or_of_another_size_is_somebody_else() -> None:
    assert link([(0, [face(100, 100, 50)]), (10, [face(900, 100, 50)])]) == [[0], [1]]
    assert link([(0, [face(100, 100, 50)]), (10, [face(100, 100, 150)])]) == [[1], [0]]


def test_people_who_cross_at_different_sizes_keep_their_tracks() -> None:
    """Told apart by size; of equal size nothing but luck would tell them."""
    frames = [(10 * i, [face(100 + 60 * i, 300, 150), face(1000 - 60 * i, 280, 70)]) for i in range(16)]
    assert link(frames) == [[0, 1]] * 16


def test_nothing() -> None:
    assert link([]) == []
    assert link([(0, []), (5, [])]) == [[], []]


def test_frames_must_ascend() -> None:
    with pytest.raises(ValueError, match="ascend"):
        link([(5, []), (5, [])])


def test_tracks_are_whole_numbers_without_holes_whatever_the_boxes() -> None:
    rng = np.random.default_rng(1)
    frames = [(i, [face(*rng.uniform((0, 0, 20), (1900, 1000, 300))) for _ in range(rng.integers(0, 6))]) for i in range(40)]
    tracks = link(frames)
    assert [len(ids) for ids in tracks] == [len(faces) for _, faces in frames]
    assert all(len(set(ids)) == len(ids) for ids in tracks)
    used = {i for ids in tracks for i in ids}
    assert used == set(range(len(used)))
    assert link(frames) == tracks


def test_a_clip_has_one_box_for_each_face() -> None:
    """Two faces of which one is missed once and looked at askew once, and someone who is there in a minority of the frames."""
    rng = np.random.default_rng(0)
    frames = []
    for i in range(9):
        faces = [face(400 + rng.normal(0, 2), 300, 110, score=0.9)]
        if i != 4:
            faces.append(face(900, 300, 100 if i != 5 else 160, score=0.8))
        if i < 4:
            faces.append(face(1500, 300, 60))
        frames.append((10 * i, faces[::-1]))
    steadied = steady(frames)
    assert [len(faces) for faces in steadied] == [2] * 9
    for number in (0, 1):
        (box,) = {faces[number].box for faces in steadied}
        found = [f for _, faces in frames for f in faces if abs(f.box[0] - box[0]) < 100]
        assert box == pytest.approx(np.median([f.box for f in found], axis=0).tolist())
    assert steadied[0][1].score == pytest.approx(0.8)


def test_landmarks_of_a_clip_are_each_frames_own() -> None:
    points = [tuple(float(10 * i + k) for k in range(10)) for i in range(3)]
    frames = [(i, [Face(face(400, 300, 100).box, 0.9, points[i])] if i != 1 else []) for i in range(3)]
    assert [[f.landmarks for f in faces] for faces in steady(frames)] == [[points[0]], [None], [points[2]]]


def test_a_clip_without_faces() -> None:
    assert steady([(0, []), (1, [])]) == [[], []]
