"""What is said before any number."""

from types import SimpleNamespace
from typing import Any

import pytest

from dfdc_ray.config import EvaluateConfig
from dfdc_ray.evaluate.protocol import warnings_of
from dfdc_ray.evaluate.videos import SplitVideos

CONFIG = EvaluateConfig(faces="faces", checkpoint=("best",), out="out")


def _warnings(*videos: tuple[str, str, str, str]) -> tuple[str, ...]:
    """videos: name, label, family, group."""
    rows = [{"video_id": f"c/{name}", "label": label, "group_id": f"c/{group}"} for name, label, _, group in videos]
    families = {f"c/{name}": f"c/{family}" for name, _, family, _ in videos}
    scorer: Any = SimpleNamespace(faces_config={}, clips=False, config={"train_groups": ["c/part:0"]})
    manifest: Any = SimpleNamespace(config={})
    return warnings_of(CONFIG, scorer, manifest, SplitVideos(rows, 0, {}, families))


def test_groups_that_are_families_may_share_people_with_training() -> None:
    known = ("a.mp4", "REAL", "a.mp4", "family:a.mp4"), ("b.mp4", "FAKE", "a.mp4", "family:a.mp4")
    (warning,) = _warnings(*known, ("c.mp4", "REAL", "c.mp4", "part:3"))
    assert warning.startswith("PEOPLE MAY RECUR: 1 of the 2 groups are an original and its fakes")
    assert "original is not known" not in warning
    (warning,) = _warnings(*known, ("d.mp4", "FAKE", "d.mp4", "family:d.mp4"))
    assert warning.endswith("Of 1 fakes the original is not known, and may be in training itself.")


@pytest.mark.parametrize(
    ("frames", "multiplier", "leaks"),
    [(4, 1, "people and frames of the same videos"), (1, 4, "people and frames of the same videos"), (1, 1, "people")],
)
def test_a_split_that_leaks_says_so_first(frames: int, multiplier: int, leaks: str) -> None:
    scorer: Any = SimpleNamespace(faces_config={"regrouped_by": "frame"}, clips=False, config={"train_groups": ["c/a#1"]})
    manifest: Any = SimpleNamespace(config={"regrouped_by": "frame", "frames": frames, "real_multiplier": multiplier})
    videos = SplitVideos([{"video_id": "c/a#2", "label": "REAL", "group_id": "c/a#2"}], 0, {}, {"c/a#2": "c/a#2"})
    first = warnings_of(CONFIG, scorer, manifest, videos)[0]
    assert first.startswith(f"A SPLIT THAT LEAKS, to show what that does to numbers: by frame, so that the same {leaks} may be in training")


def test_groups_that_somebody_named_are_believed() -> None:
    assert _warnings(("a.mp4", "REAL", "a.mp4", "group:pair0"), ("b.mp4", "FAKE", "b.mp4", "part:3")) == ()
