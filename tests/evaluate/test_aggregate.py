"""Aggregation from faces to videos."""

import numpy as np
import pytest

from dfdc_ray.evaluate.aggregate import RULES, aggregate, aggregate_video, counted_tracks, describe


def video_score(scores: np.ndarray, track_ids: np.ndarray, sampled_frames: int, **options: str) -> float:
    return aggregate_video(track_ids, np.arange(len(scores)), scores, sampled_frames, **options).score


def test_one_track_is_a_mean() -> None:
    assert video_score(np.array([0.2, 0.4, 0.9]), np.array([7, 7, 7]), 3) == pytest.approx(0.5)


def test_the_track_with_the_higher_mean_decides() -> None:
    scores, tracks = np.array([0.1, 0.9, 0.3, 0.7]), np.array([0, 1, 0, 1])
    assert video_score(scores, tracks, 4) == pytest.approx(0.8)


@pytest.mark.parametrize(("passer_by", "expected"), [(2, 0.2), (3, 1.0)])
def test_a_track_counts_from_thirty_per_cent_on(passer_by: int, expected: float) -> None:
    """Of 10 sampled frames, 2 are 20 % and 3 are exactly 30 %."""
    tracks = np.array([0] * 10 + [1] * passer_by)
    scores = np.array([0.2] * 10 + [1.0] * passer_by)
    assert video_score(scores, tracks, 10) == pytest.approx(expected)


def test_coverage_is_of_the_sampled_frames_not_of_those_with_a_face() -> None:
    """Two faces in 32 sampled frames: neither track is long enough, so the longer one counts, and that is said."""
    result = aggregate_video(np.array([3, 3, 5]), np.array([1, 2, 9]), np.array([0.1, 0.3, 0.9]), 32)
    assert result.short
    assert result.tracks == (3,)
    assert result.score == pytest.approx(0.2)
    assert result.frames.tolist() == [1, 2]


def test_equally_long_short_tracks_all_count() -> None:
    tracks, short = counted_tracks(np.array([4, 4, 2, 2, 9]), 100)
    assert tracks.tolist() == [2, 4]
    assert short


def test_a_frame_scores_its_highest_counted_face() -> None:
    tracks = np.array([0, 0, 0, 0, 1, 1, 2])
    frames = np.array([0, 1, 2, 3, 1, 2, 3])
    scores = np.array([0.1, 0.2, 0.3, 0.4, 0.9, 0.1, 1.0])  # track 2 is on one frame of four: 25 %
    result = aggregate_video(tracks, frames, scores, 4)
    assert result.tracks == (0, 1)
    assert result.frames.tolist() == [0, 1, 2, 3]
    assert result.frame_scores.tolist() == [0.1, 0.9, 0.3, 0.4]


def test_table_of_several_videos_in_any_order() -> None:
    rng = np.random.default_rng(0)
    videos = np.array(["c/b", "c/a", "c/b", "c/a", "c/a"])
    tracks, frames, scores = np.zeros(5, int), np.array([0, 0, 1, 1, 2]), np.array([0.5, 0.1, 0.7, 0.2, 0.6])
    expected = {"c/a": 0.3, "c/b": 0.6}
    for _ in range(5):
        rows = rng.permutation(5)
        result = aggregate(videos[rows], tracks[rows], frames[rows], scores[rows], {"c/a": 3, "c/b": 2})
        assert {name: one.score for name, one in result.items()} == pytest.approx(expected)
    assert aggregate(videos[:0], tracks[:0], frames[:0], scores[:0], {}) == {}


def test_no_face_is_no_score() -> None:
    with pytest.raises(ValueError, match="no score"):
        video_score(np.array([]), np.array([]), 32)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("mean", 0.4),
        ("mean_logit", 0.4091),
        ("max", 0.9),
        ("top_quarter", 0.9),
        ("confident", 0.4),
    ],
)
def test_rules_by_hand(rule: str, expected: float) -> None:
    scores = np.array([0.2, 0.2, 0.2, 0.2, 0.2, 0.9, 0.9, 0.4])
    found = video_score(scores, np.zeros(8, int), 8, rule=rule)
    assert found == pytest.approx(expected, abs=1e-4)


def test_the_confident_rule_takes_the_sure_ones_where_there_are_many() -> None:
    tracks = np.zeros(32, int)
    many_fakes = np.array([0.9] * 13 + [0.5] * 19)
    assert video_score(many_fakes, tracks, 32, rule="confident") == pytest.approx(0.9)
    too_few = np.array([0.9] * 12 + [0.5] * 20)  # 12 of 32 are less than 40 %
    assert video_score(too_few, tracks, 32, rule="confident") == pytest.approx(too_few.mean())
    nearly_all_real = np.array([0.1] * 30 + [0.7] * 2)
    assert video_score(nearly_all_real, tracks, 32, rule="confident") == pytest.approx(0.1)


def test_the_highest_track_decides_under_every_rule() -> None:
    scores, tracks = np.array([0.1, 0.2, 0.6, 0.7]), np.array([0, 0, 1, 1])
    for rule in RULES:
        assert 0.6 <= video_score(scores, tracks, 2, rule=rule) <= 0.7, rule


def test_a_single_face_is_its_own_score_under_every_rule() -> None:
    for rule in RULES:
        assert video_score(np.array([0.3]), np.array([0]), 1, rule=rule) == pytest.approx(0.3)
        assert "over the frames of a track" in describe(rule)
