"""Which frames are chosen, against positions worked out by hand."""

import itertools

import numpy as np
import pytest

from dfdc_ray.errors import UserError
from dfdc_ray.video.sampling import Sample, sample, subset


def constant(frames: int, rate: float = 30.0, start: float = 0.0) -> np.ndarray:
    return start + np.arange(frames) / rate


def core(samples: list[Sample]) -> list[int]:
    return [s.frame for s in samples if s.core]


def frames_of(samples: list[Sample]) -> list[int]:
    return [s.frame for s in samples]


@pytest.mark.parametrize("start", [0.0, -0.5, 1234.567])
@pytest.mark.parametrize("rate", [30.0, 30000 / 1001, 25.0])
def test_spread_takes_the_middle_of_equal_parts(start: float, rate: float) -> None:
    chosen = sample(constant(300, rate, start), method="spread", frames=10)
    assert chosen == [Sample(frame, True) for frame in range(15, 300, 30)]


def test_spread_is_the_same_in_any_time_base() -> None:
    coarse = np.round(constant(300) * 1000) / 1000  # Matroska's milliseconds
    assert frames_of(sample(coarse, method="spread", frames=7)) == frames_of(sample(constant(300), method="spread", frames=7))


@pytest.mark.parametrize(
    ("multiplier", "expected"),
    [
        (2, [5, 10, 15, 20, 25, 30, 35, 37]),  # core and half-way after it; the last, which would be 40, half a step back
        (3, [1, 5, 8, 11, 15, 18, 21, 25, 28, 31, 35, 38]),  # core and a third before and after
        (4, [2, 5, 7, 10, 12, 15, 17, 20, 22, 25, 27, 30, 32, 35, 37, 38]),
    ],
)
def test_multiplied_spread(multiplier: int, expected: list[int]) -> None:
    chosen = sample(constant(40), method="spread", frames=4, multiplier=multiplier)
    assert frames_of(chosen) == expected
    assert core(chosen) == [5, 15, 25, 35]


def test_spread_follows_time_not_count() -> None:
    times = np.concatenate([np.arange(10) / 10, np.arange(1.0, 11.0)])  # ten frames in the first second, then one a second
    chosen = sample(times, method="spread", frames=5)  # 1.01 s, 3.03 s, ... of 10.1 s
    assert frames_of(chosen) == [10, 12, 14, 16, 18]


def test_a_frozen_picture_is_taken_once() -> None:
    times = np.array([0.0, 0.1, 0.2, 3.0, 3.1, 3.2, 3.3])  # frame 2 stands for 2.8 s of 3.4 s
    assert frames_of(sample(times, method="spread", frames=6)) == [2, 4]


@pytest.mark.parametrize(("count", "multiplier", "expected_core"), [(6, 1, range(6)), (6, 4, range(6)), (8, 4, range(8)), (1, 4, range(1))])
def test_short_videos_give_every_frame_once(count: int, multiplier: int, expected_core: range) -> None:
    for method in ("spread", "centre"):
        chosen = sample(constant(count), method=method, frames=8, multiplier=multiplier)
        assert chosen == [Sample(frame, True) for frame in expected_core]


def test_extra_frames_of_a_short_video_are_all_the_others() -> None:
    chosen = sample(constant(20), method="spread", frames=8, multiplier=4)
    assert frames_of(chosen) == list(range(20))
    assert core(chosen) == core(sample(constant(20), method="spread", frames=8))


@pytest.mark.parametrize(
    ("count", "frames", "multiplier", "expected", "expected_core"),
    [(300, 4, 1, range(148, 152), range(148, 152)), (301, 3, 4, range(144, 156), range(149, 152)), (10, 4, 4, range(10), range(3, 7))],
)
def test_centre(count: int, frames: int, multiplier: int, expected: range, expected_core: range) -> None:
    chosen = sample(constant(count), method="centre", frames=frames, multiplier=multiplier)
    assert frames_of(chosen) == list(expected)
    assert core(chosen) == list(expected_core)


def test_per_second() -> None:
    chosen = sample(constant(300), method="per_second", frames=1)
    assert frames_of(chosen) == list(range(15, 300, 30))
    assert frames_of(sample(constant(300), method="per_second", frames=2, multiplier=2))[:5] == [7, 15, 22, 30, 37]
    assert frames_of(sample(constant(5), method="per_second", frames=1)) == [2]  # a sixth of a second: still one frame


@pytest.mark.parametrize("method", ["spread", "centre", "per_second"])
def test_promises_on_random_times(method: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        times = np.cumsum(rng.exponential(1 / 30, rng.integers(1, 400))) + rng.uniform(-1, 1)
        frames = int(rng.integers(1, 40))
        plain = sample(times, method=method, frames=frames)
        for multiplier in (1, 2, 3, 4, 5):
            chosen = sample(times, method=method, frames=frames, multiplier=multiplier)
            assert chosen == sample(times.copy(), method=method, frames=frames, multiplier=multiplier)
            assert frames_of(chosen) == sorted(set(frames_of(chosen)))
            assert chosen[0].frame >= 0
            assert chosen[-1].frame < len(times)
            assert core(chosen) == frames_of(plain)
            if method != "per_second":
                assert len(chosen) <= multiplier * frames
                assert len(chosen) == len(times) or len(times) > multiplier * frames


def test_a_fake_takes_the_core_samples_that_it_has() -> None:
    chosen = sample(constant(300), method="spread", frames=10, multiplier=4)
    assert frames_of(subset(chosen, 300)) == list(range(15, 300, 30))
    assert frames_of(subset(chosen, 106)) == [15, 45, 75, 105]
    assert frames_of(subset(chosen, 105)) == [15, 45, 75]
    assert subset(chosen, 10) == []


def test_clips() -> None:
    """Two parts of 150 frames; clips of 4 frames, every third, span 10: in the middle of each part, extra ones right after and before."""
    chosen = sample(constant(300), method="clips", frames=4, clips=2, stride=3)
    assert [(s.frame, s.clip, s.position) for s in chosen] == [
        *((70 + 3 * p, 0, p) for p in range(4)),
        *((220 + 3 * p, 1, p) for p in range(4)),
    ]
    more = sample(constant(300), method="clips", frames=4, clips=2, stride=3, multiplier=3)
    assert {s.clip: s.frame for s in more if s.position == 0} == {0: 70, 1: 220, 2: 80, 3: 60, 4: 230, 5: 210}
    assert {s.clip for s in more if s.core} == {0, 1}


def test_clips_of_short_videos() -> None:
    """As many as there is room for, and none where one does not fit."""
    starts = [s.frame for s in sample(constant(25), method="clips", frames=10, clips=4, multiplier=4) if s.position == 0]
    assert starts == [1, 13]
    assert frames_of(sample(constant(10), method="clips", frames=10, clips=4)) == list(range(10))
    assert sample(constant(9), method="clips", frames=10, clips=4) == []


def test_a_fake_takes_whole_clips() -> None:
    chosen = sample(constant(300), method="clips", frames=4, clips=2, stride=3, multiplier=2)
    assert {s.clip for s in subset(chosen, 230)} == {0, 1}
    assert {s.clip for s in subset(chosen, 229)} == {0}


def test_clips_of_random_videos_never_overlap() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        total, frames, stride, clips, multiplier = (int(rng.integers(1, most)) for most in (400, 20, 5, 9, 5))
        chosen = sample(constant(total), method="clips", frames=frames, clips=clips, stride=stride, multiplier=multiplier)
        assert len(set(frames_of(chosen))) == len(chosen) <= multiplier * clips * frames
        assert [s for s in chosen if s.core] == sample(constant(total), method="clips", frames=frames, clips=clips, stride=stride)
        spans = []
        for clip in {s.clip for s in chosen}:
            found = [s for s in chosen if s.clip == clip]
            assert [s.position for s in found] == list(range(frames))
            assert set(np.diff(frames_of(found)).tolist()) <= {stride}
            spans.append((found[0].frame, found[-1].frame))
        assert all(a[1] < b[0] for a, b in itertools.pairwise(sorted(spans)))
        assert chosen == [] or chosen[-1].frame < total


def test_bad_arguments() -> None:
    with pytest.raises(UserError, match="at least 1"):
        sample(constant(10), method="spread", frames=0)
    with pytest.raises(UserError, match="at least 1"):
        sample(constant(10), method="spread", frames=1, multiplier=0)
    with pytest.raises(ValueError, match="without frames"):
        sample(np.array([]), method="spread", frames=1)
