"""A scored video on a terminal."""

import io
from dataclasses import replace
from typing import Any, Literal

import pytest
from rich.console import Console

from dfdc_ray.serve import show
from dfdc_ray.serve.judge import FaceScore, FrameScore, TrackScore, VideoScore


def _track(track_id: int, scores: list[float], *, counted: bool) -> TrackScore:
    faces = tuple(
        FaceScore(frame=10 * n, time_s=n / 2, score=score, box=(1.0, 2.0, 3.0, 4.0), crop=(0, 0, 8, 8)) for n, score in enumerate(scores)
    )
    return TrackScore(track_id=track_id, score=sum(scores) / len(scores), coverage=len(scores) / 8, counted=counted, faces=faces)


FACE = _track(0, [0.28, 0.29, 0.32, 0.3, 0.31, 0.28, 0.29, 0.3], counted=True)
VIDEO = VideoScore(
    uri="clip.mp4",
    status="ok",
    score=0.532,
    raw_score=0.296,
    raw_threshold=0.264,
    verdict="FAKE",
    width=640,
    height=360,
    frames_sampled=8,
    frames=tuple(FrameScore(frame=face.frame, time_s=face.time_s, score=face.score) for face in FACE.faces),
    tracks=(FACE, _track(1, [0.1] * 8, counted=True), _track(2, [0.99], counted=False)),
)


def _shown(video: VideoScore, *, colours: bool = False) -> str:
    console = Console(file=io.StringIO(), width=100, force_terminal=colours, color_system="standard" if colours else None)
    show.video(video, console)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_frames_are_held_against_the_threshold_before_calibration() -> None:
    said = _shown(VIDEO)
    assert "FAKE  score 0.532 (0 real, 1 fake): hardly more than a guess" in said
    assert "before calibration, fake above 0.264" in said
    bars = next(line for line in _shown(VIDEO, colours=True).splitlines() if "▃" in line)
    assert "\x1b[31m" in bars  # red: each of them speaks for a fake
    assert "\x1b[32m" not in bars


def test_the_frames_that_decided_are_named() -> None:
    lines = _shown(VIDEO).splitlines()
    first = next(n for n, line in enumerate(lines) if "frames that spoke most for FAKE" in line)
    assert lines[first + 1].strip("│ ").split() == ["frame", "20,", "face", "0", "1.0", "s", "0.320"]
    real = _shown(replace(VIDEO, verdict="REAL", unit="clips")).splitlines()
    first = next(n for n, line in enumerate(real) if "clips that spoke most for REAL" in line)
    assert float(real[first + 1].split()[-2]) < 0.32  # the lowest
    rows = [line for line in lines if line.strip("│ ").endswith(("decides", "too short to count"))]
    assert [row.strip("│ ")[0] for row in rows] == ["0", "2"]


@pytest.mark.parametrize(
    ("score", "words", "share"),
    [
        (0.9999, "like the fakes that the model knows", ">99.9%"),
        (0.0031, "no trace that the model knows", "0.3%"),
        (0.75, "leaning", "75.0%"),
        (0.3, "leaning", "30.0%"),
        (0.45, "guess", "45.0%"),
    ],
)
def test_no_score_is_called_certain(score: float, words: str, share: str) -> None:
    said = replace(VIDEO, score=score, verdict="FAKE" if score > 0.5 else "REAL")
    assert show.shown(said) == {0.9999: ">0.999"}.get(score, f"{score:.3f}")
    assert words in show.sureness(said)
    assert f"that get this score, {share} are fake" in show.meaning(said)


@pytest.mark.parametrize("weak", [{"caveat": "of 1 frame"}, {"short_tracks": True}, {"caveat": "of 1 frame", "short_tracks": True}])
@pytest.mark.parametrize(
    ("score", "verdict", "words"),
    [(0.999, "FAKE", "leaning that way"), (0.001, "REAL", "leaning that way"), (0.7, "FAKE", "guess"), (0.5, "REAL", "guess")],
)
def test_less_is_said_of_what_rests_on_little(score: float, verdict: Literal["REAL", "FAKE"], words: str, weak: dict[str, Any]) -> None:
    said = replace(VIDEO, score=score, verdict=verdict, **weak)
    assert words in show.sureness(said)
    assert show.is_guess(said) == (words == "guess")


def test_what_no_score_says_stands_below_each() -> None:
    assert "A low one does not say that a video is real" in " ".join(_shown(VIDEO).replace("│", " ").split())


def test_what_limits_a_probability_is_said_beside_it() -> None:
    said = show.meaning(replace(VIDEO, caveat="of 1 frame"))
    assert said == f"{show.meaning(VIDEO)} As a probability it is rough: of 1 frame."


def test_what_is_no_probability_is_not_called_sure() -> None:
    assert show.sureness(replace(VIDEO, score=0.99, raw_score=None)) == "not calibrated"


def test_a_name_is_shown_and_not_obeyed() -> None:
    name = "\x1b]0;pwned\x07\x1b[2Jx.mp4"
    for video in (replace(VIDEO, uri=name), VideoScore(uri=name, status="error", stage="open", error=name)):
        console = Console(file=io.StringIO(), width=200, color_system=None)
        show.video(video, console)
        show.summary([video], console)
        assert "\x1b" not in console.file.getvalue()  # type: ignore[attr-defined]
