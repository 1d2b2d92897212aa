"""A scored video on a terminal: verdict, faces, and a timeline of the frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console, Group
from rich.markup import escape
from rich.panel import Panel
from rich.table import Column, Table
from rich.text import Text

from dfdc_ray.console import printable
from dfdc_ray.evaluate.aggregate import MIN_COVERAGE_PERCENT
from dfdc_ray.evaluate.metrics import THRESHOLD
from dfdc_ray.pages import percent

if TYPE_CHECKING:
    from dfdc_ray.serve.judge import FrameScore, TrackScore, VideoScore

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 64  # characters of the timeline
_TRACKS = ("score", "frames", "from", "to", "first box (x y w h)", "")
# Of little to much: how far a probability must be from the threshold, and what is then said of it.
_DISTANCES = (0.0, 0.1, 0.3)
_WORDS = {
    "FAKE": ("hardly more than a guess", "leaning that way", "much like the fakes that the model knows"),
    "REAL": ("hardly more than a guess", "leaning that way", "no trace that the model knows was found"),
}
LIMITS = "A score is evidence, not proof. A low one does not say that a video is real, only that no trace that the model knows was found."
_DECIDING = 5  # frames that are named
_COLOURS = {"REAL": "green", "FAKE": "red"}


def sureness(result: VideoScore) -> str:
    """What the verdict on a scored video is worth, in words; nothing is said of a score that is no probability."""
    if result.raw_score is None or result.verdict is None:
        return "not calibrated"
    return _WORDS[result.verdict][_level(result)]


def is_guess(result: VideoScore) -> bool:
    """Whether the verdict on a scored video is hardly more than a guess."""
    return _level(result) == 0


def _level(result: VideoScore) -> int:
    """One less where the probability is rough, and where no face was there long enough."""
    distance = abs((result.score or 0.0) - THRESHOLD)
    level = max(n for n, least in enumerate(_DISTANCES) if distance >= least)
    return max(0, level - (result.caveat is not None or result.short_tracks))


def video(result: VideoScore, console: Console) -> None:
    """Print one video as a panel."""
    title = escape(printable(result.uri))
    if result.score is None or result.verdict is None:
        at = f" (at {result.stage})" if result.stage else ""
        console.print(Panel(Text(printable(f"no score: {result.error}{at}"), style="yellow"), title=title, title_align="left"))
        return
    colour = _COLOURS[result.verdict]
    seen = len({face.frame for track in result.tracks for face in track.faces})
    lines: list[Text | Table] = [
        Text.assemble((result.verdict, f"bold {colour}"), f"  score {shown(result)} (0 real, 1 fake): {sureness(result)}"),
        Text(meaning(result), style="dim"),
        Text(LIMITS, style="dim"),
        Text(f"{seen} of {result.frames_sampled} sampled {result.unit} scored, {result.width}x{result.height} pixels", style="dim"),
    ]
    if result.short_tracks:
        lines.append(Text(f"No face is in {MIN_COVERAGE_PERCENT} % of the {result.unit}: the longest one decides.", style="yellow"))
    lines += [*timeline(result.frames, result.raw_threshold, unit=result.unit), faces(result), Text(), deciding(result)]
    console.print(Panel(Group(*lines), title=title, title_align="left", border_style=colour), highlight=False)


def shown(result: VideoScore) -> str:
    """The score to three places; of a probability never 0 or 1, which none is."""
    score = result.score or 0.0
    if result.raw_score is None or 0.0005 <= score < 0.9995:
        return f"{score:.3f}"
    return "<0.001" if score < THRESHOLD else ">0.999"


def meaning(result: VideoScore) -> str:
    """What the score of a scored video says."""
    if result.raw_score is None:
        return "The score is not calibrated: no probability (dfdc-ray calibrate)."
    like = f"of videos like those of validation that get this score, {percent(result.score or 0.0, 1)} are fake"
    said = f"Calibrated: {like} (the model's own score: {result.raw_score:.3f})."
    return f"{said} As a probability it is rough: {result.caveat}." if result.caveat else said


def timeline(frames: Sequence[FrameScore], threshold: float, *, unit: str) -> list[Text]:
    """One bar per scored frame or clip (or per few, when there are many), with the first and last time below and the extremes beside.

    threshold: above which a frame's score speaks for a fake.
    """
    bars = Text()
    for some in np.array_split(np.array([frame.score for frame in frames]), min(len(frames), _WIDTH)):
        score = float(some.mean())
        bars.append(_BARS[min(int(score * len(_BARS)), len(_BARS) - 1)], style=_COLOURS["FAKE" if score > threshold else "REAL"])
    first, last = f"{frames[0].time_s:.1f} s", f"{frames[-1].time_s:.1f} s"
    below = Text(first + last.rjust(max(len(bars) - len(first), len(last) + 1)), style="dim")
    high, low = max(frames, key=lambda f: f.score), min(frames, key=lambda f: f.score)
    extremes = Text(f"highest {high.score:.3f} at {high.time_s:.1f} s, lowest {low.score:.3f} at {low.time_s:.1f} s", style="dim")
    above = "" if threshold == THRESHOLD else f"; before calibration, fake above {threshold:.3f}"
    return [Text(f"\nscores of the {unit} over time (▁ 0, █ 1{above})"), bars, below, extremes, Text()]


def faces(result: VideoScore) -> Table:
    """The faces over time."""
    table = Table(*tracks_head(result), box=None, padding=(0, 2, 0, 0))
    for row in tracks(result):
        table.add_row(*row)
    return table


def deciding(result: VideoScore) -> Table:
    """The frames of the face that decides which spoke most for the verdict."""
    face, sign = decides(result), -1 if result.verdict == "FAKE" else 1
    table = Table(f"{result.unit} that spoke most for {result.verdict}", "at", "score", box=None, padding=(0, 2, 0, 0))
    for one in sorted(face.faces, key=lambda one: sign * one.score)[:_DECIDING]:
        of = "" if result.subject == "frame" else f", face {face.track_id}"
        table.add_row(f"frame {one.frame}{of}", f"{one.time_s:.1f} s", f"{one.score:.3f}")
    return table


def decides(result: VideoScore) -> TrackScore:
    """Of the faces that count that with the highest score, which is the video's."""
    return max((track for track in result.tracks if track.counted), key=lambda track: track.score)


def tracks_head(result: VideoScore) -> list[str]:
    """Above `tracks`."""
    return ["face" if result.subject == "face" else "looked at", *_TRACKS]


def tracks(result: VideoScore) -> list[list[str]]:
    """A row for each face over time; one for whole frames."""
    rows = []
    for track in result.tracks:
        first, last = track.faces[0], track.faces[-1]
        box = "whole frame" if first.box is None else " ".join(f"{value:.0f}" for value in first.box)
        share = f"{len(track.faces)} ({track.coverage:.0%})"
        note = "decides" if track is decides(result) else "" if track.counted else "too short to count"
        face = "whole frames" if result.subject == "frame" else str(track.track_id)
        rows.append([face, f"{track.score:.3f}", share, f"{first.time_s:.1f} s", f"{last.time_s:.1f} s", box, note])
    return rows


def summary(results: Sequence[VideoScore], console: Console) -> None:
    """One line per video."""
    table = Table(Column("video", overflow="fold"), "verdict", "score", "")
    for result in results:
        if result.score is None or result.verdict is None:
            table.add_row(escape(printable(result.uri)), "-", "-", escape(printable(result.error or "")))
        else:
            verdict = Text(result.verdict, style=_COLOURS[result.verdict])
            table.add_row(escape(printable(result.uri)), verdict, shown(result), sureness(result))
    console.print(table, highlight=False)
