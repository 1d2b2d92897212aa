"""The tables of a report, as sections of a page or of Markdown, and on the console."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table as ConsoleTable

from dfdc_ray import pages
from dfdc_ray.evaluate import calibration
from dfdc_ray.evaluate.appearance import SKIN_TONES, skin_tone_class
from dfdc_ray.evaluate.duplicates import CLOSE
from dfdc_ray.evaluate.metrics import FEW_GROUPS, THRESHOLD, Interval, Level, Metrics, binary_metrics, bootstrap, log_losses
from dfdc_ray.evaluate.protocol import in_short
from dfdc_ray.evaluate.report import WORST, JudgedVideo, Report
from dfdc_ray.pages import Section, Table

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
PICTURES = {"roc": "ROC", "pr": "Precision and recall", "reliability": "Reliability", "scores": "Scores"}  # NAME.png
UNSCORED = "Videos without a score"  # the title of their section
_BASELINE_NAMES = {"always_fake": "always fake", "training_majority": "training majority", "constant_prior": "constant prior"}


def number(value: float | None, metrics: Metrics) -> str:
    """A metric with four decimals, or why it is undefined."""
    if value is not None:
        return f"{value:.4f}"
    if metrics.n == 0:
        return "undefined (nothing scored)"
    return "undefined (no reals)" if metrics.reals == 0 else "undefined (no fakes)"


def between(interval: Interval | None, *, digits: int = 4) -> str:
    """Its ends; nothing for none."""
    return "" if interval is None else f"{interval.low:.{digits}f} to {interval.high:.{digits}f}"


def _brackets(interval: Interval | None) -> str:
    return "" if interval is None else f" ({between(interval, digits=3)})"


def _over(metrics: Metrics, over: str, unit: str) -> str:
    if over == "n":
        return f"{metrics.n} {unit}: {metrics.reals} real, {metrics.fakes} fake"
    return f"{getattr(metrics, over)} {_OVER[over]} {unit}"


def _level_rows(level: Level, unit: str) -> list[list[str]]:
    return [
        [
            title,
            number(getattr(level.metrics, name), level.metrics),
            between(level.intervals.get(name)),
            *(number(getattr(baseline, name), baseline) for baseline in level.baselines.values()),
            _over(level.metrics, over, unit),
        ]
        for name, title, over in _LINES
    ]


def _level(level: Level, unit: str) -> Section:
    m = level.metrics
    header = [f"by {unit.removesuffix('s')}", "model", "95 % interval", *(_BASELINE_NAMES[name] for name in level.baselines), "over"]
    confusion = [["real", str(m.real_as_real), str(m.real_as_fake)], ["fake", str(m.fake_as_real), str(m.fake_as_fake)]]
    return Section(
        f"By {unit.removesuffix('s')}",
        [
            Table(header, _level_rows(level, unit)),
            f"Intervals: {level.interval_note}.",
            Table([unit, "called real", "called fake"], confusion),
        ],
    )


def markdown(report: Report, by: Sequence[Section]) -> str:
    """The report for people: protocol, tables beside the baselines, what could not be scored, the worst mistakes. by: `slices`."""
    pictures = [f"![{title}]({name}.png)" for name, title in PICTURES.items()]
    return pages.markdown(
        report.title,
        report.warnings,
        [*numbers(report), *by, *pictures, coverage(report), *losses(report), configuration(report)],
    )


def numbers(report: Report) -> list[Section]:
    """What the numbers were taken on, and the metrics beside those of the baselines."""
    rows = [[key.replace("_", " "), _plain(value)] for key, value in report.protocol.items() if key != "configuration"]
    protocol = Section("Protocol", [Table(["what", "value"], rows, names=[1], texts=[1])])
    return [protocol, _level(report.video, "videos"), _level(report.frame, report.unit)]


def configuration(report: Report) -> Section:
    """How the faces were made and the model was trained: every setting."""
    rows = []
    for what, settings in report.protocol["configuration"].items():
        if isinstance(settings, dict):
            rows += [[f"{what} {name}".replace("_", " "), _plain(value)] for name, value in settings.items()]
        else:
            rows.append([what.replace("_", " "), _plain(settings)])
    return Section("Configuration", [Table(["what", "value"], rows, names=[1], texts=[1])])


def slices(report: Report) -> list[Section]:
    """The metrics by what is known of the videos, by other rules, after changes, and before calibration."""
    few = f"In brackets 95 % intervals over the groups of each line; of fewer than {FEW_GROUPS} they are too narrow, of one there is none."
    ends = np.cumsum([v.frames_scored for v in report.videos])
    frames = {v.video_id: scores for v, scores in zip(report.videos, np.split(report.frame_scores, ends[:-1]), strict=True)}
    found = [
        Section(f"By {title}", [_slice_table(beside, some, frames, report.unit), few]) for title, beside, some in _slices(report.videos)
    ]
    if any(v.lightness is not None for v in report.videos):
        note = "Lightness (CIELAB) and skin tone are of the pictures' middles, lamps and cameras included; medians over the frames."
        found[-1] = Section(found[-1].title, [*found[-1].body, note])
    return [*found, _rules(report), _robustness(report), _near_duplicates(report), _calibration(report)]


def coverage(report: Report) -> Section:
    """How much of the videos the numbers rest on, and the videos with the least."""
    kinds = [(label.lower(), [v for v in report.videos if v.label == label]) for label in ("REAL", "FAKE")]
    parts = sorted({v.part for v in report.videos if v.part is not None})
    kinds += [(f"part {part}", [v for v in report.videos if v.part == part]) for part in parts]
    rows = []
    for name, some in kinds:
        scored, sampled = sum(v.score is not None for v in some), sum(v.frames_sampled for v in some)
        frames = sum(v.frames_scored for v in some)
        shares = [pages.percent(scored, len(some)), str(sampled), str(frames), pages.percent(frames, sampled)]
        rows.append([name, str(len(some)), str(scored), *shares])
    head = ["videos", "all", "with a score", "share", f"{report.unit} sampled", "with a face that was scored", "share"]
    body: list[str | Table] = [Table(head, rows)]
    least = sorted((v for v in report.videos if 0 < v.frames_scored < v.frames_sampled), key=lambda v: v.frames_scored / v.frames_sampled)
    if least:
        body.append(f"The scored videos with the smallest share of their {report.unit} scored:")
        cells = [[v.video_id, v.label, f"{v.frames_scored} of {v.frames_sampled}", f"{v.counted_as:.4f}"] for v in least[:WORST]]
        body.append(Table(["video", "label", f"{report.unit} scored", "score"], cells))
    return Section("Coverage", body)


def losses(report: Report) -> tuple[Section, Section]:
    """The videos without a score, and the worst mistakes."""
    body: list[str | Table] = [f"None: all {len(report.videos)} labelled videos have a score."]
    if report.unscored:
        rows = [[v.video_id, v.label, v.status, ": ".join(filter(None, (v.stage, v.error)))] for v in report.unscored]
        body = [f"{len(report.unscored)} of {len(report.videos)} labelled videos; each counts at the training prior."]
        body.append(Table(["video", "label", "status", "why"], rows, texts=[3]))
    short, scored = sum(v.short_tracks for v in report.videos), len(report.videos) - len(report.unscored)
    body.append(f"In {short} of the {scored} scored videos no track was long enough, so the longest counted.")
    body.append(f"Videos without a label, which no split holds: {report.unlabelled_videos}.")
    rows = [[v.video_id, v.label, v.method or "", f"{v.counted_as:.4f}", f"{v.frames_scored} of {v.frames_sampled}"] for v in report.worst]
    worst = Table(["video", "label", "method", "score", f"{report.unit} scored"], rows, names=[2])
    return Section(UNSCORED, body), Section("Worst mistakes", [worst] if rows else ["None."])


def _calibration(report: Report) -> Section:
    """What calibration does to the scored videos of this split."""
    scored = [v for v in report.videos if v.raw_score is not None]
    labels = np.array([v.label == "FAKE" for v in scored], dtype=np.int64)
    if not scored:
        return Section("Calibration", ["No video has a score."])
    before, after = np.array([v.raw_score for v in scored]), np.array([v.score for v in scored])
    rows = [
        [name, f"{log_losses(scores, labels).mean():.4f}", f"{calibration.error(scores, labels):.4f}"]
        for name, scores in (("as the model gives them", before), ("calibrated", after))
    ]
    if np.array_equal(before, after):  # not calibrated
        rows = rows[:1]
    header = [f"scores of {len(scored)} videos", "log loss", f"calibration error ({calibration.BINS} bins)"]
    return Section("Calibration", [Table(header, rows), f"Calibration: {report.protocol['calibration']}."])


Slice = tuple[str, list[JudgedVideo]]


def _slices(videos: Sequence[JudgedVideo]) -> list[tuple[str, str, list[Slice]]]:
    """The tables by what is known of the videos: title, head of the first column, and the videos of each line."""
    reals, fakes = ([v for v in videos if v.label == label] for label in ("REAL", "FAKE"))
    found: list[tuple[str, str, list[Slice]]] = []
    if any(v.method is not None for v in fakes):
        methods = sorted({v.method for v in fakes}, key=lambda method: (method is None, method or ""))
        of_methods = [(method or "not known", [v for v in fakes if v.method == method] + reals) for method in methods]
        found.append(("method", "method (its fakes and all reals)", of_methods))
    if any(v.part is not None for v in videos):
        parts = sorted({v.part for v in videos}, key=lambda part: (part is None, part or 0))
        found.append(("part", "part", [("not known" if p is None else str(p), [v for v in videos if v.part == p]) for p in parts]))
    seen = [v for v in videos if v.lightness is not None and v.skin_tone is not None]
    if seen:
        quarters = np.array_split(sorted(seen, key=lambda v: (v.lightness, v.video_id)), 4)
        light = [(f"L* {some[0].lightness:.0f} to {some[-1].lightness:.0f}", list(some)) for some in quarters if len(some)]
        found.append(("lightness of the face", "quarter, dark to light", light))
        tones = [(name, [v for v in seen if skin_tone_class(v.skin_tone or 0) == name]) for name, _ in SKIN_TONES]
        found.append(("skin tone", "individual typology angle", [(name, some) for name, some in tones if some]))
    return found


def _slice_table(beside: str, some: list[Slice], frames: Mapping[str, np.ndarray], unit: str) -> Table:
    """frames: by video_id the scores of its frames (or clips, which is then the unit)."""
    rows = []
    for name, videos in some:
        labels = np.array([v.label == "FAKE" for v in videos], dtype=np.int64)
        scores = np.array([v.counted_as for v in videos])
        m, intervals = binary_metrics(scores, labels), bootstrap(scores, labels, np.array([v.group_id for v in videos]))
        metrics = ("recall_real", "recall_fake", "log_loss", "auc")
        cells = [number(getattr(m, metric), m) + _brackets(intervals[metric]) for metric in metrics]
        of_frames = [frames[v.video_id] for v in videos]
        f = binary_metrics(np.concatenate(of_frames), np.repeat(labels, [len(scores) for scores in of_frames]))
        rows.append([name, str(m.reals), str(m.fakes), *cells, str(f.n), number(f.log_loss, f), number(f.auc, f)])
    of_videos = ["recall of reals", "recall of fakes", "log loss", "ROC AUC"]
    one = unit.removesuffix("s")
    return Table([beside, "reals", "fakes", *of_videos, unit, f"{one} log loss", f"{one} ROC AUC"], rows)


def _rules(report: Report) -> Section:
    """Each rule on the same videos; the one in use was chosen on others."""
    rows = [
        [f"{rule} (in use)" if rule == report.rule else rule, number(m.log_loss, m), number(m.auc, m), number(m.accuracy, m)]
        for rule, m in report.rules.items()
    ]
    note = f"Over the {len(report.videos)} videos, scores as the model gives them. `dfdc-ray calibrate` chooses the rule, on validation."
    return Section("Aggregation", [Table(["frames to video by", "log loss", "ROC AUC", f"accuracy at {THRESHOLD}"], rows), note])


def _robustness(report: Report) -> Section:
    """The metrics after each change, beside those without."""
    if not report.robustness:
        return Section("Robustness", ["Not measured: evaluate --robustness judges the same faces again, compressed and otherwise changed."])
    video, frame = report.video.metrics, report.frame.metrics
    rows = [["none", number(video.auc, video), "", number(video.log_loss, video), number(frame.auc, frame), number(frame.log_loss, frame)]]
    for r in report.robustness:
        change = "" if r.video.auc is None or video.auc is None else f"{r.video.auc - video.auc:+.4f}"
        of_frames = [number(r.frame.auc, r.frame), number(r.frame.log_loss, r.frame)]
        rows.append(
            [r.change, number(r.video.auc, r.video), change + _brackets(r.video_auc), number(r.video.log_loss, r.video), *of_frames]
        )
    one = report.unit.removesuffix("s")
    head = ["every face changed by", "video ROC AUC", "its change", "video log loss", f"{one} ROC AUC", f"{one} log loss"]
    note = (
        f"Over the same {len(report.videos)} videos; intervals of the change are of the same groups drawn with both. Calibration, where "
        "there is one, is of the videos' scores."
    )
    return Section("Robustness", [Table(head, rows), note])


def _near_duplicates(report: Report) -> Section:
    title = "Near-duplicates of what the model has seen"
    if report.near_duplicates is None:
        return Section(title, ["Not looked for: evaluate --training-faces does, with the faces of the training."])
    pairs, looked_at = report.near_duplicates, sum(v.frames_scored > 0 for v in report.videos)
    body: list[str | Table] = [
        f"{len(pairs)} of the {looked_at} videos with a face are within {CLOSE} of 64 bits of a video of training or "
        "validation (pHash of the middle face)."
    ]
    if pairs:
        rows = [[pair.video_id, pair.training_video_id, str(pair.bits)] for pair in pairs[:20]]
        body.append(Table(["video", "nearest of those", "bits apart"], rows, names=[1]))
    return Section(title, body)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def show(report: Report, console: Console) -> None:
    """The tables on a console, warnings first."""
    console.print(f"\n{report.title}", style="bold", markup=False, highlight=False)
    for warning in report.warnings:
        console.print(warning, style="bold red", markup=False, highlight=False)
    for unit, level in (("videos", report.video), (report.unit, report.frame)):
        m = level.metrics
        caption = (
            f"real {unit}: {m.real_as_real} called real, {m.real_as_fake} called fake\n"
            f"fake {unit}: {m.fake_as_real} called real, {m.fake_as_fake} called fake\nintervals: {level.interval_note}"
        )
        shown = ("always_fake", "constant_prior")  # the third is in the files: a terminal has 80 columns
        table = ConsoleTable(box=box.SIMPLE_HEAD, padding=0, caption=caption, caption_justify="left")
        for name in (f"by {unit.removesuffix('s')}", "model", "95 % interval", *(_BASELINE_NAMES[name] for name in shown), "over"):
            table.add_column(name, no_wrap=name != "model", min_width=9 if name == "model" else None)  # "undefined"
        for name, title, over in [line for line in _LINES if line[0] in _ON_CONSOLE]:
            value = getattr(m, name)
            others = [number(getattr(level.baselines[baseline], name), m) if value is not None else "-" for baseline in shown]
            count = f"{getattr(m, over)} {_OVER[over]}"
            interval = between(level.intervals.get(name), digits=3)  # so that 80 columns hold it
            table.add_row(title, f"[bold]{number(value, m)}[/]", interval, *others, count)
        console.print(table, highlight=False)
    console.print(in_short(report.protocol), markup=False, highlight=False)
    if report.unscored:
        counts = Counter(v.status for v in report.unscored)
        listed = ", ".join(f"{counts[status]} {status}" for status in sorted(counts))
        total = len(report.videos)
        console.print(f"{len(report.unscored)} of {total} videos have no score and count at the training prior: {listed}", highlight=False)
    if report.unlabelled_videos:
        console.print(f"videos without a label, left out: {report.unlabelled_videos}", highlight=False)
