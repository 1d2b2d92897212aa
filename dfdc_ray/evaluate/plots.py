"""The report's pictures as PNG bytes: ROC and PR curves, histograms of the videos' scores, reliability. Figure objects, no global state."""

import io
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dfdc_ray.evaluate.metrics import THRESHOLD, binary_metrics, pr_curve, roc_curve

# Okabe and Ito's palette, which colour-blind readers can tell apart.
REAL, FAKE, GREY = "#0072B2", "#D55E00", "#666666"
BINS = 20


Scored = tuple[np.ndarray, np.ndarray]  # scores [N], labels [N]


def roc(video: Scored, frame: Scored, *, title: str, unit: str) -> bytes:
    """ROC curves of both levels; one with one class only is said in words."""
    figure, axes = empty_figure(5.4, 5.4)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1, label="chance")
    for name, (scores, labels), counts, style in _levels(axes, video, frame, unit):
        fpr, tpr = roc_curve(scores, labels)
        axes.plot(fpr, tpr, label=f"{name}: AUC {np.trapezoid(tpr, fpr):.4f} ({counts})", **style)
    return _square(figure, axes, title, xlabel="reals called fake", ylabel="fakes called fake", legend="lower right")


def pr(video: Scored, frame: Scored, *, title: str, unit: str) -> bytes:
    """Precision over recall of both levels, with the share of fakes, which is the precision of calling everything fake."""
    figure, axes = empty_figure(5.4, 5.4)
    for name, (scores, labels), counts, style in _levels(axes, video, frame, unit):
        recall, precision = pr_curve(scores, labels)
        average = binary_metrics(scores, labels).pr_auc
        axes.step(recall, precision, where="pre", label=f"{name}: average precision {average:.4f} ({counts})", **style)
        axes.axhline(labels.mean(), color=style["color"], linestyle=":", linewidth=1, label=f"{name}: share of fakes {labels.mean():.4f}")
    return _square(
        figure, axes, title, xlabel="fakes called fake (recall)", ylabel="fakes among those called fake (precision)", legend="lower left"
    )


def _levels(axes: Axes, video: Scored, frame: Scored, unit: str) -> Iterator[tuple[str, Scored, str, dict[str, Any]]]:
    """Name, scores, counts and style of each level with both classes; the other is named in the legend."""
    for name, (scores, labels), colour, width in ((unit, frame, FAKE, 1.2), ("videos", video, REAL, 2.2)):
        reals, fakes = int((labels == 0).sum()), int((labels == 1).sum())
        counts = f"{reals} real, {fakes} fake"
        if reals and fakes:
            yield name, (scores, labels), counts, {"color": colour, "linewidth": width}
        else:
            axes.plot([], [], color=colour, label=f"{name}: undefined ({counts})")


def _square(figure: Figure, axes: Axes, title: str, *, xlabel: str, ylabel: str, legend: Literal["lower left", "lower right"]) -> bytes:
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.set_title(title, fontsize=10, loc="left")
    axes.legend(loc=legend, fontsize=8, frameon=False)
    return png(figure)


def histograms(scores: np.ndarray, labels: np.ndarray, *, title: str, calibrated: bool) -> bytes:
    """How the scores [N] of real (0) and fake (1) videos lie, one above the other on the same axis."""
    figure = Figure(figsize=(6.4, 4.4), dpi=120, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    for axes, label, name, colour in ((upper, 0, "real", REAL), (lower, 1, "fake", FAKE)):
        of_class = scores[labels == label]
        axes.hist(of_class, bins=BINS, range=(0.0, 1.0), color=colour, edgecolor="white", linewidth=0.5)
        axes.axvline(THRESHOLD, color=GREY, linestyle=":", linewidth=1)
        wrong = int(((of_class > THRESHOLD) != bool(label)).sum())
        axes.set_ylabel(f"{name} videos")
        text = f"{len(of_class)} {name}, {wrong} on the wrong side of {THRESHOLD}" if len(of_class) else f"no {name} videos"
        axes.set_title(text, fontsize=8, loc="right", color=colour)
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.set_ylim(bottom=0, top=None if len(of_class) else 1)
        axes.spines[["top", "right"]].set_visible(False)
    lower.set(xlabel="score (calibrated probability of fake)" if calibrated else "score (0 real, 1 fake; not calibrated)", xlim=(0, 1))
    figure.align_ylabels()
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    return png(figure)


def reliability(before: np.ndarray, after: np.ndarray, labels: np.ndarray, *, title: str) -> bytes:
    """Share of fakes over the scores [N] in tenths, before calibration and after it (once, where they are the same)."""
    figure, axes = empty_figure(5.4, 5.4)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1, label="calibrated")
    ways = [("scores", after, REAL)] if np.array_equal(before, after) else [("before", before, FAKE), ("after", after, REAL)]
    for name, scores, colour in ways:
        tenth = np.minimum((scores * 10).astype(int), 9)
        filled = [i for i in range(10) if (tenth == i).any()]
        points = [(scores[tenth == i].mean(), labels[tenth == i].mean(), int((tenth == i).sum())) for i in filled]
        x, y = [p[0] for p in points], [p[1] for p in points]
        axes.plot(x, y, color=colour, marker="o", markersize=4, linewidth=1.2, label=f"{name} ({len(scores)} videos)")
        for at, share, count in points:
            axes.annotate(str(count), (at, share), xytext=(4, -9), textcoords="offset points", fontsize=7, color=colour)
    return _square(figure, axes, title, xlabel="mean score in a tenth", ylabel="share of fakes", legend="lower right")


def empty_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure of so many inches."""
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def png(figure: Figure) -> bytes:
    """The figure's bytes."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})  # the same picture gives the same bytes
    return buffer.getvalue()
