"""The printable page of a scored video: its numbers are the video's, nothing in it is obeyed or fetched, without a score it says why."""

import math
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from seen import HOSTILE, TURNED, Seen

from dfdc_ray.config import PreprocessConfig
from dfdc_ray.evaluate.calibration import Calibration
from dfdc_ray.evaluate.scorer import Scorer, load_scorer
from dfdc_ray.faces.crop import encode
from dfdc_ray.models import create_model
from dfdc_ray.preprocess.settings import settings_of
from dfdc_ray.serve.judge import Evidence, VideoScore, _judged
from dfdc_ray.serve.onepage import page
from dfdc_ray.serve.show import sureness
from dfdc_ray.train import checkpoint, transforms

CALIBRATION = Calibration(rule="mean", a=2.0, b=0.5, reals=11, fakes=22, frames=8, unit="frames", data_hash="d", weights="w")
SCORES = np.array([0.1, 0.9, 0.4, 0.6, 0.2, 0.8, 0.3, 0.95])  # the last is a passer-by's


def _scorer(folder: Path, model: str, calibration: Calibration | None = CALIBRATION) -> Scorer:
    torch.manual_seed(0)
    of_clips = {"sampling": "clips", "frames": 4, "clips": 2} if model != "resnet34" else {}
    settings = settings_of(PreprocessConfig(corpus=("unused",), out="unused", **of_clips))  # type: ignore[arg-type]
    config = {"model": model, "transform": transforms.recipe(64, model), "faces_config": asdict(settings)}
    known = {"split": "hash:0", "selection": "lowest loss", "data_hash": "abc123", "prior": 0.75, "versions": {"torch": HOSTILE}}
    checkpoint.save(str(folder / model), weights=create_model(model).state_dict(), config=config | known, state=None)
    scorer = load_scorer(str(folder / model))
    scorer.calibration = calibration
    return scorer


def _evidence(scorer: Scorer, uri: str = "clip.mp4") -> Evidence:
    """Seven faces of one track and one of another, in 10 frames that were looked at."""
    rng = np.random.default_rng(0)
    rows = [
        {"frame": 10 * i, "time_s": i / 2, "track_id": int(i == 7), "box": [1.0, 2.0, 3.0, 4.0], "crop": [0, 0, 80, 80]}
        | {"frame_width": 640, "frame_height": 360}
        for i in range(len(SCORES))
    ]
    length = 4 if scorer.clips else 1
    pictures = tuple(tuple(encode(rng.integers(0, 255, (80, 80, 3), dtype=np.uint8), "jpeg") for _ in range(length)) for _ in rows)
    video = replace(_judged(uri, rows, SCORES, sampled=10, scorer=scorer), unit="clips" if scorer.clips else "frames")
    return Evidence(video=video, rows=tuple(rows), pictures=pictures, scores=tuple(SCORES.tolist()))


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    return _scorer(tmp_path_factory.mktemp("best"), "resnet34")


def test_the_numbers_are_those_of_the_video(scorer: Scorer) -> None:
    evidence = _evidence(scorer)
    made = page(evidence, scorer, name="a.mp4")
    assert made == page(evidence, scorer, name="a.mp4")
    assert len(made) < 1e6
    seen, video = Seen(made), evidence.video
    seen.check()
    assert video.score == pytest.approx(scorer.probability(float(SCORES[:7].mean())))
    assert f"{video.verdict}{sureness(video)}" in seen.words
    assert f"{video.score:.3f}probability of fake" in seen.words
    assert f"{video.score:.1%} are fake" in seen.words
    assert "8 of 10sampled frames scored2 without a face" in seen.words
    assert "00.4717 (70%)0.0 s3.0 s1 2 3 4decides" in seen.words  # the track's own score
    assert "10.9501 (10%)3.5 s3.5 s1 2 3 4too short to count" in seen.words
    for words in ("abc123", "lowest loss", "hash:0", "fitted on 11 real and 22 fake", "evidence, not proof"):
        assert words in seen.words


def test_the_faces_that_spoke_loudest_are_shown_with_heat_maps(scorer: Scorer) -> None:
    html = page(_evidence(scorer), scorer, name="a.mp4").decode()
    captions = re.findall(r"<figcaption>([^<]*)</figcaption>", html)
    assert captions == [
        *("0.50 s, face 0: 0.900", "2.50 s, face 0: 0.800", "1.50 s, face 0: 0.600"),  # face 1 does not count
        *("0.00 s, face 0: 0.100", "2.00 s, face 0: 0.200", "3.00 s, face 0: 0.300"),
    ]
    assert len(Seen(html).all("img", "src")) == 2 * 6


def test_the_timeline_has_each_face_at_its_time_and_score(scorer: Scorer) -> None:
    seen = Seen(page(_evidence(scorer), scorer, name="a.mp4"))
    at = [(float(x), float(y)) for x, y in zip(seen.all("circle", "cx"), seen.all("circle", "cy"), strict=True)]
    assert at == [(pytest.approx(700 * i / 7, abs=0.1), pytest.approx(110 * (1 - score), abs=0.1)) for i, score in enumerate(SCORES)]
    heights = dict(zip(seen.all("line", "class"), map(float, seen.all("line", "y1")), strict=True))
    assert heights["threshold"] == pytest.approx(110 * (1 - 1 / (1 + math.exp(0.25))))  # b / a: where calibration gives 0.5
    assert "0.0 s0.7 s1.4 s2.1 s2.8 s3.5 s" in seen.words


def test_each_face_has_a_lane_of_its_own_with_its_name(scorer: Scorer) -> None:
    """Colours alone tell nobody apart who prints without them; and there may be more faces than colours."""
    whole = _evidence(scorer)
    rows = [row | {"track_id": n % 4} for n, row in enumerate(whole.rows * 2)]
    video = _judged("a", rows, np.tile(SCORES, 2), sampled=10, scorer=scorer)
    seen = Seen(page(replace(whole, video=video), scorer, name="a.mp4"))
    lanes = [attributes["class"] for tag, attributes in seen.tags if tag == "svg"]
    assert lanes == ["timeline"] * 4
    assert seen.all("svg", "aria-label") == [
        f"The scores of face {n} over time; predict --json and the JSON result have them in numbers" for n in range(4)
    ]
    assert len(seen.all("polyline", "points")) == 4
    seen = Seen(page(whole, scorer, name="a.mp4"))
    assert [attributes["class"] for tag, attributes in seen.tags if tag == "svg"] == ["timeline", "timeline short"]
    assert "face 1, too short to count" in seen.words


def test_what_others_wrote_is_shown_and_not_obeyed(scorer: Scorer) -> None:
    lost = Evidence(video=VideoScore(uri=HOSTILE, status="error", stage="probe", error=HOSTILE))
    for evidence in (_evidence(scorer, HOSTILE), lost):
        seen = Seen(page(evidence, scorer, name=HOSTILE))
        seen.check()
        assert seen.text.count(HOSTILE) >= 3  # title, heading, versions
    assert f"<h1><bdi>{TURNED}</bdi></h1>" in page(lost, scorer, name=TURNED).decode()


def test_without_a_score_it_says_why(scorer: Scorer) -> None:
    video = VideoScore(uri="a", status="no_face", stage="detect", error="no face in 10 sampled frames", frames_sampled=10)
    seen = Seen(page(Evidence(video=video), scorer, name="a.mp4"))
    seen.check()
    assert "no scoreno face in 10 sampled frames (at detect)" in seen.words
    assert "nothing is said of whether this video is a fake" in seen.words
    assert "REAL" not in seen.words
    assert "abc123" in seen.words


def test_one_face_alone_and_no_calibration(scorer: Scorer, tmp_path: Path) -> None:
    plain = _scorer(tmp_path, "resnet34", None)
    whole = _evidence(plain)
    one = whole.rows[0] | {"box": None, "track_id": None}
    video = _judged("a", [one], SCORES[:1], sampled=1, scorer=plain)
    seen = Seen(page(Evidence(video=video, rows=(one,), pictures=whole.pictures[:1], scores=(0.1,)), plain, name="a.mp4"))
    seen.check()
    assert "0.100score, 0 real to 1 fake" in seen.words
    assert "The score is not calibrated" in seen.words
    assert "whole frame" in seen.words
    assert "The lowest scores" not in seen.words  # it is shown already
    assert seen.all("circle", "cx") == ["0.0"]


@pytest.mark.parametrize(("model", "heat"), [("r3d_18", True), ("av_sync", False)])
def test_of_clips_a_few_frames_of_two(model: str, heat: bool, tmp_path: Path) -> None:
    scorer = _scorer(tmp_path, model)
    seen = Seen(page(_evidence(scorer), scorer, name="a.mp4"))
    seen.check()
    assert "8 of 10sampled clips scored" in seen.words
    assert len(seen.all("img", "src")) == 2 * 3 * (2 if heat else 1)
    assert "1. frame of the clip from 0.50 s, face 0: 0.900" in seen.words
    assert ("There are no heat maps" in seen.words) != heat


def test_the_longest_of_short_tracks_is_pointed_out(scorer: Scorer) -> None:
    evidence = _evidence(scorer)
    short = replace(evidence, video=replace(evidence.video, short_tracks=True))
    assert "No face is in 30 % of the frames: the longest one decides." in Seen(page(short, scorer, name="a")).words
