"""What `experiments models` writes: the table of all detectors, and their AUC against what they cost."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as ConsoleTable

from dfdc_ray import __version__, pages
from dfdc_ray.evaluate import plots
from dfdc_ray.evaluate.metrics import binary_metrics
from dfdc_ray.experiments.config import ModelsConfig
from dfdc_ray.experiments.models import Task
from dfdc_ray.experiments.table import Own, difference, reports
from dfdc_ray.models import takes_clips
from dfdc_ray.pages import Section, Table

_TITLE = "Detectors on the same faces"
_PLOT = "AUC against cost"
_LABEL = (-0.05, 0.35, 0.014)  # how far from a point its label covers others, which share it: decades of cost to either side, AUC
_HEAD = (
    "detector",
    "video AUC (95 %)",
    "over families",
    "log loss (95 %)",
    "accuracy",
    "recall of reals",
    "recall of fakes",
    "scored",
    "first weights",
    "parameters",
    "GMACs a video",
    "pictures/s in training",
    "minutes",
)
_ON_CONSOLE = (0, 1, 3, 10, 12)
_FRAMES, _WISH = "framediff_frames", ("framediff_only", "framediff_early", "framediff_late", "chroma")
_BASELINES = {"always_fake": "always fake", "constant_prior": "constant prior"}


@dataclass(frozen=True)
class Line:
    """A task done: its report.json, config.json of the training (None of a combination), and its cost."""

    task: Task
    report: Mapping[str, Any]
    trained: Mapping[str, Any] | None
    parameters: int
    macs: float  # multiply-adds a video

    @property
    def auc(self) -> float | None:
        found: float | None = self.report["video"]["metrics"]["auc"]
        return found

    def interval(self, name: str) -> tuple[float, float] | None:
        """Over groups."""
        found = self.report["video"]["intervals"].get(name)
        return found and (found["low"], found["high"])

    @property
    def by_family(self) -> tuple[float, float] | None:
        """Of the AUC, over families, where groups are made of those."""
        found = (self.report["video"].get("by_family") or {}).get("auc")
        return found and (found["low"], found["high"])


def console_table(lines: Sequence[Line], config: ModelsConfig, console: Console) -> None:
    """The columns that fit a terminal."""
    caption = None
    if lines:  # what is the same for all
        p = lines[0].report["protocol"]
        caption = (
            f"{p['split_rule']}; checkpoint of the {p['checkpoint_rule']}; data hash {p['data_hash'][:12]}. models.md has each line's."
        )
    table = ConsoleTable(title="by video, on the test split", caption=caption, caption_justify="left")
    for i in _ON_CONSOLE:
        table.add_column(_HEAD[i], justify="left" if i == 0 else "right")
    for row in _rows(lines, config):
        table.add_row(*(row[i] for i in _ON_CONSOLE))
    console.print(table)


def markdown(config: ModelsConfig, lines: Sequence[Line], failed: Mapping[str, str]) -> str:
    """The whole: protocol, table, plot, what is missing. failed: by line, why it could not be had."""
    picture = [f"![{_PLOT}](models.png)"] if lines else []
    return pages.markdown(_TITLE, _warnings(lines), [*_sections(config, lines, {}), *picture, *_sections(config, [], failed)])


def page(
    config: ModelsConfig,
    lines: Sequence[Line],
    failed: Mapping[str, str],
    picture: bytes,
    own: Mapping[str, Own],
) -> bytes:
    """The same as report.html. picture: of `plot`. own: by the name of a line."""
    return pages.render(
        "experiments.html",
        title=_TITLE,
        made_from=f"dfdc-ray {__version__}, faces {lines[0].report['protocol']['data_hash'] if lines else 'without a line'}",
        warnings=_warnings(lines),
        sections=_sections(config, lines, failed),
        pictures=[(picture, f"{_PLOT}; the table has the numbers", f"{_PLOT}: up is better, left is cheaper")] if lines else [],
        reports=reports(((line.task.name, line.task.report) for line in lines), config.out, own),
    )


def _warnings(lines: Sequence[Line]) -> list[str]:
    return list(lines[0].report["warnings"]) if lines else []


def _sections(config: ModelsConfig, lines: Sequence[Line], failed: Mapping[str, str]) -> list[Section]:
    """The table with its protocol, where there are lines, and what is missing, where something is."""
    sections = []
    if lines:
        report = lines[0].report
        m, protocol = report["video"]["metrics"], report["protocol"]
        faces = (
            f"{config.clips} clip{'s' if config.clips > 1 else ''} of {config.frames} frames a video, every {config.stride}. frame of it"
            if config.sampling == "clips"
            else f"{config.frames} frames a video, evenly spread"
            if config.faces is None
            else f"up to {config.frames} frames a video, made before"
        )
        note = report["video"]["interval_note"].partition("; over the ")[0]
        how = (
            f"By video, on the {m['n']} labelled videos of the test split ({m['reals']} real, {m['fakes']} fake, "
            f"{report['video']['groups']} groups; {protocol['split_rule']}), by which nothing was chosen: each checkpoint is that with the "
            f"{protocol['checkpoint_rule']}, a logistic combination is fitted on validation. Videos without a score count at the training "
            f"prior. Faces: {faces}, real videos up to {config.real_multiplier} times that in training, as far as they are long enough; "
            f"classes balanced by drawing ({config.balance}; self-blending then makes fakes of half of the reals); {config.image_size} "
            f"pixels (MesoNet 256). The budget of each: {config.epochs} epochs over the same pictures, batch {config.batch_size} (a clip "
            f"counts as its frames, and two are the least), learning rate {config.learning_rate:g}, seed {config.seed}; nothing was tuned "
            f"for any of them, and scores are not calibrated. Data hash {protocol['data_hash'][:12]}. Intervals: {note}; over families, "
            "where groups are made of those, as if no person were in two of them."
        )
        cost = f"Pictures a second and minutes are on {_machine(config)}; GMACs (multiply-adds in billions) are for a video with one face."
        sections.append(Section("The lines", [how, Table(_HEAD, _rows(lines, config)), cost, *_differences(lines), *_by_method(lines)]))
    if failed:
        sections.append(Section("Not there", [Table(["detector", "why"], [list(line) for line in sorted(failed.items())], texts=[1])]))
    return sections


def plot(lines: Sequence[Line]) -> bytes:
    """AUC with its interval against multiply-adds a video, as PNG: the points numbered from the best on, their names beside the plot. Lines
    whose AUC is not defined are left out.
    """
    shown = sorted((line for line in lines if line.auc is not None), key=lambda line: (-(line.auc or 0.0), line.macs))
    figure, axes = plots.empty_figure(10.0, max(5.6, 0.165 * len(shown)))
    axes.axhline(0.5, color=plots.GREY, linestyle=":", linewidth=1)
    numbers: dict[tuple[float, float], list[int]] = {}  # by where they stand
    points = []
    for number, line in enumerate(shown, 1):
        auc = line.auc or 0.0
        low, high = line.interval("auc") or line.by_family or (auc, auc)
        colour = plots.FAKE if line.trained is None else plots.REAL
        bar = axes.errorbar(
            line.macs / 1e9,
            auc,
            yerr=[[max(0.0, auc - low)], [max(0.0, high - auc)]],
            fmt="o",
            color=colour,
            markersize=4,
            markerfacecolor=colour if line.interval("auc") or line.by_family else "none",
            linewidth=0.8,
            capsize=2,
        )
        points.append(bar.lines[0])
        left, right, height = _LABEL
        near = (at for at in numbers if left < math.log10(line.macs / 1e9 / at[0]) < right and abs(auc - at[1]) < height)
        numbers.setdefault(next(near, (line.macs / 1e9, auc)), []).append(number)
    for at, some in numbers.items():
        axes.annotate(_runs(some), at, xytext=(5, 3), textcoords="offset points", fontsize=8)
    axes.set(xscale="log", xlabel="GMACs a video", ylabel="video ROC AUC (95 % interval)", ylim=(None, 1.02))
    axes.set_title("Blue: trained; orange: combinations; hollow: interval unknown", fontsize=9, loc="left")
    axes.margins(x=0.15)
    if shown:
        figure.legend(
            points,
            [f"{number}  {line.task.name}  {line.auc:.3f}" for number, line in enumerate(shown, 1)],
            loc="outside right upper",
            fontsize=7,
            frameon=False,
            labelspacing=0.3,
            handletextpad=0,
        )
    return plots.png(figure)


def _runs(numbers: Sequence[int]) -> str:
    """1, 2, 3, 5 -> 1-3, 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _rows(lines: Sequence[Line], config: ModelsConfig) -> list[list[str]]:
    rows = [_row(line, config) for line in lines]
    baselines = lines[0].report["video"]["baselines"] if lines else {}
    rows += [[words, *_metrics(baselines[name], None), *["-"] * 6] for name, words in _BASELINES.items() if name in baselines]
    return rows


def _differences(lines: Sequence[Line]) -> list[str | Table]:
    """Of each line that is another one with something added, by how much its AUC is the higher: the videos are the same, so the interval of
    the difference says more than both lines' own. Empty where there is no such pair.
    """
    there = {line.task.name: line for line in lines if line.auc is not None}
    rows = []
    for name, line in there.items():
        beside = there.get(_without(line, there))
        if beside is None:
            continue
        found = difference(line.report, beside.report)
        between = f" ({found.low:+.3f} to {found.high:+.3f})" if found else ""
        rows.append([name, beside.task.name, f"{(line.auc or 0.0) - (beside.auc or 0.0):+.3f}{between}"])
    if not rows:
        return []
    said = (
        "What an addition changes, on the same videos (95 %, the same groups drawn for both); a combination beside the best of its "
        "members, which was known only afterwards:"
    )
    return [said, Table(["detector", "beside", "difference of video AUC"], rows)]


def _without(line: Line, there: Mapping[str, Line]) -> str:
    """The name of the line that this one is compared with; of no line where there is none."""
    if line.trained is None:
        members = [there[detector.name] for detector in line.task.detectors if detector.name in there]
        return max(members, key=lambda member: member.auc or 0.0).task.name if members else ""
    detector = line.task.detectors[0]
    if detector.name != detector.model:  # trained in another way
        return detector.model
    return _FRAMES if detector.model in _WISH else ""


def _by_method(lines: Sequence[Line]) -> list[str | Table]:
    """AUC of each method's fakes against all reals: what a detector is made for, and what it cannot see. None where no method is known."""
    videos = lines[0].report["videos"]
    counts = Counter(v["method"] for v in videos if v["label"] == "FAKE" and v["method"])
    if not counts:
        return []
    methods = sorted(counts)
    head = ["detector", *(f"{method} ({counts[method]})" for method in methods)]
    rows = [[line.task.name, *(_auc(line.report["videos"], method) for method in methods)] for line in lines]
    return ["AUC by method of the fakes, each against all reals:", Table(head, rows)]


def _auc(videos: Sequence[Mapping[str, Any]], method: str) -> str:
    some = [v for v in videos if v["label"] == "REAL" or v["method"] == method]
    labels = np.array([v["label"] == "FAKE" for v in some], dtype=np.int64)
    auc = binary_metrics(np.array([v["counted_as"] for v in some]), labels).auc
    return "-" if auc is None else f"{auc:.3f}"


def _row(line: Line, config: ModelsConfig) -> list[str]:
    weights, speed, minutes = "-", "-", "-"
    if line.trained is not None:
        history, training = line.trained["history"], line.trained["train_config"]
        pictures = config.frames if takes_clips(training["model"]) else 1  # a sample
        weights = training["weights"]
        speed = f"{max(entry['images_per_s'] for entry in history) * pictures:.1f}"
        minutes = f"{sum(entry['seconds'] for entry in history) / 60:.1f}"
    return [
        line.task.name,
        *_metrics(line.report["video"]["metrics"], line),
        f"{line.report['protocol']['videos_scored']} of {line.report['video']['metrics']['n']}",
        weights,
        f"{line.parameters:,}",
        f"{line.macs / 1e9:.3g}",
        speed,
        minutes,
    ]


def _metrics(m: Mapping[str, Any], line: Line | None) -> list[str]:
    cells = []
    for name in ("auc", "log_loss", "accuracy", "recall_real", "recall_fake"):
        interval = line.interval(name) if line and name in ("auc", "log_loss") else None
        between = f" ({interval[0]:.3f}-{interval[1]:.3f})" if interval else ""
        cells.append("-" if m[name] is None else f"{m[name]:.3f}{between}")
    families = line and line.by_family
    return [cells[0], f"{families[0]:.3f}-{families[1]:.3f}" if families else "-", *cells[1:]]


def _machine(config: ModelsConfig) -> str:
    return "one GPU each" if config.gpu else f"{config.cpus_per_worker} CPU core{'s' if config.cpus_per_worker > 1 else ''} each"
