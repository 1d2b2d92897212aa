"""What an evaluation says: report.json (everything), report.md, roc.png, scores.png, reliability.png, scores.csv, tables on the console."""

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from dfdc_ray import storage
from dfdc_ray.evaluate import calibration, plots
from dfdc_ray.evaluate.metrics import THRESHOLD, Interval, Level, Metrics, binary_metrics, log_losses

FORMAT_VERSION = 1
WORST = 10

# name in Metrics, name for people, what it is counted over
_LINES = (
    ("accuracy", f"accuracy at {THRESHOLD}", "n"),
    ("balanced_accuracy", "balanced accuracy", "n"),
    ("recall_real", "recall of reals", "reals"),
    ("recall_fake", "recall of fakes", "fakes"),
    ("log_loss", "log loss (nats)", "n"),
    ("auc", "ROC AUC", "n"),
    ("pr_auc", "PR AUC (average precision)", "n"),
    ("eer", "equal error rate", "n"),
    ("recall_at_1", "recall of fakes at 1 % false positives", "fakes"),
    ("recall_at_5", "recall of fakes at 5 % false positives", "fakes"),
    ("recall_at_10", "recall of fakes at 10 % false positives", "fakes"),
)
_ON_CONSOLE = ("accuracy", "balanced_accuracy", "recall_real", "recall_fake", "log_loss", "auc", "eer")  # it has 80 columns
_OVER = {"n": "", "reals": "real", "fakes": "fake"}
_BASELINE_NAMES = {"always_fake": "always fake", "training_majority": "training majority", "constant_prior": "constant prior"}


@dataclass(frozen=True, kw_only=True)
class JudgedVideo:
    """One labelled video of the split."""

    video_id: str
    group_id: str
    label: str  # REAL or FAKE
    method: str | None
    part: int | None
    status: str  # the ledger's, or no_core_face
    stage: str | None
    error: str | None
    raw_score: float | None  # the model's; None: no face to score
    score: float | None  # calibrated, where the checkpoint is
    counted_as: float  # the score in the metrics: the model's, or the training prior
    frames_sampled: int
    frames_scored: int
    short_tracks: bool  # no track on 30 % of the sampled frames


@dataclass(frozen=True, kw_only=True)
class Report:
    """An evaluation. `protocol` holds plain JSON values; `warnings` come before any number."""

    title: str
    protocol: dict[str, Any]
    warnings: tuple[str, ...]
    video: Level
    frame: Level
    videos: tuple[JudgedVideo, ...]  # ascending video_id
    unlabelled_videos: int
    frame_scores: np.ndarray  # float64 [F], for the pictures
    frame_labels: np.ndarray  # int64 [F], 0 real, 1 fake

    @property
    def unscored(self) -> list[JudgedVideo]:
        """The videos that count at the prior."""
        return [v for v in self.videos if v.score is None]

    @property
    def worst(self) -> list[JudgedVideo]:
        """The scored videos with a wrong verdict, the surest first."""
        wrong = [v for v in self.videos if v.score is not None and (v.score > THRESHOLD) != (v.label == "FAKE")]
        return sorted(wrong, key=lambda v: (-abs(v.counted_as - THRESHOLD), v.video_id))[:WORST]


def write(report: Report, out: str) -> None:
    """Write all files into the folder or s3:// prefix `out`; report.json last, so that it is there only if the others are."""
    storage.make_dirs(out)
    scores = np.array([v.counted_as for v in report.videos])
    labels = np.array([v.label == "FAKE" for v in report.videos], dtype=np.int64)
    scored = np.array([v.score is not None for v in report.videos])
    unscored = f"; {len(report.unscored)} without a score not shown" if report.unscored else ""
    frames = report.frame_scores, report.frame_labels
    storage.write_bytes(storage.join(out, "roc.png"), plots.roc((scores, labels), frames, title=report.title))
    storage.write_bytes(storage.join(out, "scores.png"), plots.histograms(scores[scored], labels[scored], title=report.title + unscored))
    reliability = plots.reliability(
        np.array([v.raw_score for v in report.videos if v.score is not None]), scores[scored], labels[scored], title=report.title + unscored
    )
    storage.write_bytes(storage.join(out, "reliability.png"), reliability)
    storage.write_bytes(storage.join(out, "scores.csv"), scores_csv(report).encode())
    storage.write_bytes(storage.join(out, "report.md"), markdown(report).encode())
    storage.write_bytes(storage.join(out, "report.json"), (json.dumps(to_json(report), indent=2) + "\n").encode())


def to_json(report: Report) -> dict[str, Any]:
    """Everything, as plain values with stable keys; an undefined number is null."""
    return _rounded(
        {
            "format": FORMAT_VERSION,
            "title": report.title,
            "warnings": list(report.warnings),
            "protocol": report.protocol,
            "video": asdict(report.video),
            "frame": asdict(report.frame),
            "videos": [asdict(v) for v in report.videos],
            "videos_without_score": [v.video_id for v in report.unscored],
            "videos_short_tracks": [v.video_id for v in report.videos if v.short_tracks],
            "videos_unlabelled": report.unlabelled_videos,
            "worst": [v.video_id for v in report.worst],
        }
    )


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")  # single precision has no more to say
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, (list, tuple)) else value


def scores_csv(report: Report) -> str:
    """One line per labelled video; `score` is empty where there was no face, `counted_as` is what the metrics took."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["video_id", "group_id", "label", "status", "score", "counted_as"])
    for v in report.videos:
        writer.writerow([v.video_id, v.group_id, v.label, v.status, "" if v.score is None else f"{v.score:.6f}", f"{v.counted_as:.6f}"])
    return buffer.getvalue()


def number(value: float | None, metrics: Metrics) -> str:
    """A metric with four decimals, or why it is undefined."""
    if value is not None:
        return f"{value:.4f}"
    if metrics.n == 0:
        return "undefined (nothing scored)"
    return "undefined (no reals)" if metrics.reals == 0 else "undefined (no fakes)"


def _interval(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.low:.4f} to {interval.high:.4f}"


def _over(metrics: Metrics, over: str, unit: str) -> str:
    if over == "n":
        return f"{metrics.n} {unit}: {metrics.reals} real, {metrics.fakes} fake"
    return f"{getattr(metrics, over)} {_OVER[over]} {unit}"


def _level_rows(level: Level, unit: str) -> list[list[str]]:
    return [
        [
            title,
            number(getattr(level.metrics, name), level.metrics),
            _interval(level.intervals.get(name)),
            *(number(getattr(baseline, name), baseline) for baseline in level.baselines.values()),
            _over(level.metrics, over, unit),
        ]
        for name, title, over in _LINES
    ]


def _header(level: Level, unit: str) -> list[str]:
    return [f"by {unit.removesuffix('s')}", "model", "95 % interval", *(_BASELINE_NAMES[name] for name in level.baselines), "over"]


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines] + [""]


def markdown(report: Report) -> str:
    """The report for people: protocol, tables beside the baselines, what could not be scored, the worst mistakes."""
    lines = [f"# {report.title}", ""]
    for warning in report.warnings:
        lines += [f"> **{warning}**", ""]
    lines += ["## Protocol", ""]
    lines += _markdown_table(["what", "value"], [[key.replace("_", " "), _plain(value)] for key, value in report.protocol.items()])
    for unit, level in (("videos", report.video), ("frames", report.frame)):
        m = level.metrics
        lines += [f"## By {unit.removesuffix('s')}", "", *_markdown_table(_header(level, unit), _level_rows(level, unit))]
        lines += [f"Intervals: {level.interval_note}.", ""]
        confusion = [["real", str(m.real_as_real), str(m.real_as_fake)], ["fake", str(m.fake_as_real), str(m.fake_as_fake)]]
        lines += _markdown_table([unit, "called real", "called fake"], confusion)
    for what, values in (("method", [v.method for v in report.videos if v.label == "FAKE"]), ("part", [v.part for v in report.videos])):
        if any(value is not None for value in values):
            lines += [f"## By {what}", "", *_markdown_table(*_slices(report.videos, what)), ""]
    lines += ["## Calibration", "", *_calibration(report)]
    lines += ["![ROC](roc.png)", "", "![Reliability](reliability.png)", "", "![Scores](scores.png)", "", "## Videos without a score", ""]
    if report.unscored:
        lines += [f"{len(report.unscored)} of {len(report.videos)} labelled videos; each counts at the training prior.", ""]
        rows = [[v.video_id, v.label, v.status, ": ".join(filter(None, (v.stage, v.error)))] for v in report.unscored]
        lines += _markdown_table(["video", "label", "status", "why"], rows)
    else:
        lines += [f"None: all {len(report.videos)} labelled videos have a score.", ""]
    short, scored = sum(v.short_tracks for v in report.videos), len(report.videos) - len(report.unscored)
    lines += [f"In {short} of the {scored} scored videos no track was long enough, so the longest counted.", ""]
    lines += [f"Videos without a label, which no split holds: {report.unlabelled_videos}.", "", "## Worst mistakes", ""]
    if report.worst:
        rows = [
            [v.video_id, v.label, v.method or "", f"{v.counted_as:.4f}", f"{v.frames_scored} of {v.frames_sampled}"] for v in report.worst
        ]
        lines += _markdown_table(["video", "label", "method", "score", "frames scored"], rows)
    else:
        lines += ["None.", ""]
    return "\n".join(lines)


def _calibration(report: Report) -> list[str]:
    """What calibration does to the scored videos of this split."""
    scored = [v for v in report.videos if v.raw_score is not None]
    labels = np.array([v.label == "FAKE" for v in scored], dtype=np.int64)
    if not scored:
        return ["No video has a score.", ""]
    before, after = np.array([v.raw_score for v in scored]), np.array([v.score for v in scored])
    rows = [
        [name, f"{log_losses(scores, labels).mean():.4f}", f"{calibration.error(scores, labels):.4f}"]
        for name, scores in (("as the model gives them", before), ("calibrated", after))
    ]
    if np.array_equal(before, after):  # not calibrated
        rows = rows[:1]
    header = [f"scores of {len(scored)} videos", "log loss", f"calibration error ({calibration.BINS} bins)"]
    return [*_markdown_table(header, rows), f"Calibration: {report.protocol['calibration']}.", ""]


def _slices(videos: Sequence[JudgedVideo], what: str) -> tuple[list[str], list[list[str]]]:
    """The table of a method's fakes, each beside all reals, or of the videos of a part; those without one last."""
    rows = []
    for value in sorted({getattr(v, what) for v in videos if what == "part" or v.label == "FAKE"}, key=lambda v: (v is None, v or 0)):
        some = [v for v in videos if getattr(v, what) == value or (what == "method" and v.label == "REAL")]
        labels = np.array([v.label == "FAKE" for v in some], dtype=np.int64)
        m = binary_metrics(np.array([v.counted_as for v in some]), labels)
        cells = [number(getattr(m, name), m) for name in ("recall_real", "recall_fake", "log_loss", "auc")]
        rows.append(["not known" if value is None else str(value), str(m.reals), str(m.fakes), *cells])
    beside = "method (its fakes and all reals)" if what == "method" else what
    return [beside, "reals", "fakes", "recall of reals", "recall of fakes", "log loss", "ROC AUC"], rows


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def show(report: Report, console: Console) -> None:
    """The tables on a console, warnings first."""
    console.print(f"\n{report.title}", style="bold", markup=False, highlight=False)
    for warning in report.warnings:
        console.print(warning, style="bold red", markup=False, highlight=False)
    for unit, level in (("videos", report.video), ("frames", report.frame)):
        m = level.metrics
        caption = (
            f"real {unit}: {m.real_as_real} called real, {m.real_as_fake} called fake\n"
            f"fake {unit}: {m.fake_as_real} called real, {m.fake_as_fake} called fake\nintervals: {level.interval_note}"
        )
        shown = ("always_fake", "constant_prior")  # the third is in the files: a terminal has 80 columns
        table = Table(box=box.SIMPLE_HEAD, padding=0, caption=caption, caption_justify="left")
        for name in (f"by {unit.removesuffix('s')}", "model", "95 % interval", *(_BASELINE_NAMES[name] for name in shown), "over"):
            table.add_column(name, no_wrap=name != "model", min_width=9 if name == "model" else None)  # "undefined"
        for name, title, over in [line for line in _LINES if line[0] in _ON_CONSOLE]:
            value = getattr(m, name)
            others = [number(getattr(level.baselines[baseline], name), m) if value is not None else "-" for baseline in shown]
            count = f"{getattr(m, over)} {_OVER[over]}"
            table.add_row(title, f"[bold]{number(value, m)}[/]", _interval(level.intervals.get(name)), *others, count)
        console.print(table, highlight=False)
    if report.unscored:
        counts = Counter(v.status for v in report.unscored)
        listed = ", ".join(f"{counts[status]} {status}" for status in sorted(counts))
        total = len(report.videos)
        console.print(f"{len(report.unscored)} of {total} videos have no score and count at the training prior: {listed}", highlight=False)
    if report.unlabelled_videos:
        console.print(f"videos without a label, left out: {report.unlabelled_videos}", highlight=False)
