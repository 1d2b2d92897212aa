"""The table of the experiments beside the founding report's numbers, and a paragraph that says what the numbers say and no more."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table as ConsoleTable

from dfdc_ray import __version__, pages, storage
from dfdc_ray.corpus.splits import only_family
from dfdc_ray.evaluate.metrics import FEW_GROUPS, Interval, change_of_auc
from dfdc_ray.evaluate.mistakes import Mistake, load
from dfdc_ray.evaluate.page import link, with_links
from dfdc_ray.evaluate.tables import PICTURES, UNSCORED
from dfdc_ray.experiments.cells import CENTRE_NAME, MAJORITY, SECONDS_NAME, Cell
from dfdc_ray.experiments.config import ExperimentsConfig
from dfdc_ray.pages import Section, Table

_CASES = 2  # mistakes of each line that a page shows, by one face each: beside some 230 kB of curves a line, 30 kB in a page of up to 10 MB
_TITLE = "The founding report's experiments, again"
_HEAD = (
    "what",
    "frame accuracy (95 %)",
    "report",
    "always fake",
    "balanced",
    "recall of reals",
    "recall of fakes",
    "frame AUC (95 %)",
    "video AUC",
    "frames",
    "groups",
    "trained on",
    "split",
    "data hash",
)
_ON_CONSOLE = ("what", "frame accuracy (95 %)", "report", "always fake", "frame AUC (95 %)", "frames")  # it has 80 columns


@dataclass(frozen=True)
class Own:
    """What the page shows of a line's own report: curves, PNGs and their titles; its tables by part and method, coverage, mistakes; the
    first of these as faces, with links from the page to their shards.
    """

    curves: Sequence[tuple[bytes, str]] = ()
    sections: Sequence[Section] = ()
    cases: Sequence[tuple[Mistake, Sequence[tuple[str, str | None, str]]]] = ()


@dataclass(frozen=True)
class Line:
    """One cell done: its report.json, where that is, the groups that it was trained on, how many videos those have, in how many steps, and
    on what kind of device in which precision, where that is known.
    """

    cell: Cell
    uri: str
    report: Mapping[str, Any]
    train_groups: tuple[str, ...]
    train_videos: int
    steps: int
    trained_in: str | None

    @property
    def frame(self) -> Mapping[str, Any]:
        """Metrics by frame."""
        found: Mapping[str, Any] = self.report["frame"]["metrics"]
        return found

    @property
    def groups(self) -> int:
        """That were judged."""
        return int(self.report["frame"]["groups"])

    def interval(self, name: str) -> tuple[float, float] | None:
        """None also where a split by frame or family takes for independent what belongs together."""
        if self.cell.split_by:
            return None
        found = self.report["frame"]["intervals"].get(name)
        return found and (found["low"], found["high"])


def _cells(line: Line) -> list[str]:
    m, always = line.frame, line.report["frame"]["baselines"]["always_fake"]
    return [
        line.cell.name,
        _number(m["accuracy"]) + _brackets(line.interval("accuracy")),
        "-" if line.cell.reported is None else f"{line.cell.reported:.4f}",
        _number(always["accuracy"]),
        _number(m["balanced_accuracy"]),
        _number(m["recall_real"]) + _brackets(line.interval("recall_real")),
        _number(m["recall_fake"]) + _brackets(line.interval("recall_fake")),
        _number(m["auc"]) + _brackets(line.interval("auc")),
        _number(line.report["video"]["metrics"]["auc"]),
        f"{m['n']} ({m['reals']} real)",
        str(line.groups),
        f"{line.train_videos:,} {'frames' if line.cell.split_by == 'frame' else 'videos'}, {len(line.train_groups):,} groups",
        _rule(line) if line.cell.split_by is None else f"70/15/15 % by {line.cell.split_by}",
        line.report["protocol"]["data_hash"][:12],
    ]


def _always_fake(improved: Line) -> list[str]:
    """The same of a constant, on the improved line's frames."""
    m, found = improved.report["frame"]["baselines"]["always_fake"], _cells(improved)
    known = {
        "what": "always fake",
        "frame accuracy (95 %)": _number(m["accuracy"]),
        "report": f"{MAJORITY:.4f}",
        "balanced": _number(m["balanced_accuracy"]),
        "recall of reals": _number(m["recall_real"]),
        "recall of fakes": _number(m["recall_fake"]),
        "frame AUC (95 %)": _number(m["auc"]),
        "video AUC": _number(improved.report["video"]["baselines"]["always_fake"]["auc"]),
        "trained on": "nothing",
    }
    return [known.get(name, cell) for name, cell in zip(_HEAD, found, strict=True)]


def _rule(line: Line) -> str:
    """Without the words that say what it does."""
    return str(line.report["protocol"]["split_rule"]).partition(": ")[0]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _brackets(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f" ({interval[0]:.3f}-{interval[1]:.3f})"


def console_table(lines: Sequence[Line], console: Console) -> None:
    """The columns that fit a terminal."""
    improved = _improved(lines)
    protocol = improved.report["protocol"]
    table = ConsoleTable(
        title="by frame, on the test split",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        caption=f"{protocol['split_rule']}, but where a line is named by its split; core frames, whose number differs by line; checkpoint "
        f"of the {protocol['checkpoint_rule']}; data hash {protocol['data_hash'][:12]} ({improved.cell.name}). "
        "experiments.md has each line's.",
        caption_justify="left",
    )
    for name in _ON_CONSOLE:
        table.add_column(name, justify="left" if name == "what" else "right")
    for cells in (_always_fake(improved), *map(_cells, lines)):
        found = dict(zip(_HEAD, cells, strict=True))
        table.add_row(*(found[name] for name in _ON_CONSOLE[:-1]), found[_ON_CONSOLE[-1]].partition(" ")[0])
    console.print(table)


def markdown(config: ExperimentsConfig, lines: Sequence[Line], left_out: Mapping[str, str] = MappingProxyType({})) -> str:
    """The whole: protocol, table, what it says. left_out: lines that cannot be had, and why."""
    return pages.markdown(_TITLE, _warnings(config, lines), _sections(config, lines, left_out))


def page(
    config: ExperimentsConfig,
    lines: Sequence[Line],
    left_out: Mapping[str, str],
    own: Mapping[str, Own],
) -> bytes:
    """The same as report.html. own: by the name of a line."""
    return pages.render(
        "experiments.html",
        title=_TITLE,
        made_from=f"dfdc-ray {__version__}, faces {_improved(lines).report['protocol']['data_hash']}",
        warnings=_warnings(config, lines),
        sections=_sections(config, lines, left_out),
        pictures=[],
        reports=reports(((line.cell.name, line.uri) for line in lines), config.out, own),
    )


def reports(lines: Iterable[tuple[str, str]], out: str, own: Mapping[str, Own]) -> list[tuple[str, str | None, Own]]:
    """By name of a line where its own page is, as seen from one in `out` (None on S3), and what is shown of it here.

    lines: names, and URIs of their report.json.
    """
    return [(name, link(uri.removesuffix(".json") + ".html", out), own.get(name, Own())) for name, uri in lines]


def own_of(uri: str, report: Mapping[str, Any], out: str) -> Own:
    """Of a line, by its report.json and where that is; out: where the page is to be.

    The list of videos without a score is left to its own report: of many lines they would be most of the page.
    """
    folder = uri.rpartition("/")[0]
    curves = [(storage.read_bytes(storage.join(folder, f"{name}.png")), title) for name, title in PICTURES.items()]
    sections = [
        Section(
            one["title"],
            [part if isinstance(part, str) else Table(**part) for part in one["body"] if isinstance(part, str) or one["title"] != UNSCORED],
        )
        for one in report.get("sections", ())  # reports of before have none
    ]
    file = storage.join(folder, "mistakes.json")
    worst = load(storage.read_bytes(file))[:_CASES] if storage.exists(file) else []  # nor this
    return Own(curves, sections, with_links([replace(case, faces=case.faces[:1]) for case in worst], out))


def _improved(lines: Sequence[Line]) -> Line:
    return next(line for line in lines if line.cell.improved)


def _warnings(config: ExperimentsConfig, lines: Sequence[Line]) -> list[str]:
    return [*_improved(lines).report["warnings"], *_not_comparable(config), *_mixed(lines)]


def _mixed(lines: Sequence[Line]) -> list[str]:
    by: dict[str, list[str]] = {}
    for line in lines:
        if line.trained_in is not None:
            by.setdefault(line.trained_in, []).append(line.cell.name)
    if len(by) < 2:
        return []
    listed = "; ".join(f"{what}: {', '.join(names)}" for what, names in by.items())
    return [f"NOT TRAINED ALIKE, which a difference between lines may come from: {listed}."]


def _sections(config: ExperimentsConfig, lines: Sequence[Line], left_out: Mapping[str, str]) -> list[Section]:
    of_improved = _improved(lines).report["protocol"]
    epochs = f"{config.epochs[1]} for faces"
    if config.faces is None:
        epochs = f"{config.epochs[0]} for whole frames, {epochs}"
    protocol = (
        f"Every line is judged on core frames of the test split by its own rule ({of_improved['split_rule']}, but where the line is named "
        f"by its split), by which nothing was chosen: the checkpoint is that with the {of_improved['checkpoint_rule']}. Epochs: "
        f"{epochs}, with a share of the groups so many more that their schedule has about as many steps; learning rate "
        f"{config.learning_rate:g} and batch {config.batch_size} unless the line says otherwise. Lines differ in their frames, so their "
        f"denominators do too, and in what they were trained on. Intervals are bootstraps over groups{_caution(lines)}; splits by frame "
        "and by family, which take for independent what belongs together, have none. `report`: the founding report's frame accuracy, on "
        "the Kaggle sample, its split unstated."
    )
    missing = [f"Left out: {name}: {why}" for name, why in left_out.items()]
    rows = [_always_fake(_improved(lines)), *(_cells(line) for line in lines)]
    table = Table(_HEAD, rows, texts=[_HEAD.index("trained on"), _HEAD.index("split")])
    return [Section("The lines", [protocol, table, *missing]), Section("What the numbers say", [" ".join(_sentences(lines))])]


def _caution(lines: Sequence[Line]) -> str:
    fewest = min(line.groups for line in lines)
    return (
        f"; of fewer than {FEW_GROUPS} groups ({fewest} in the least) they are too narrow, a rough guide only"
        if fewest < FEW_GROUPS
        else ""
    )


def _not_comparable(config: ExperimentsConfig) -> list[str]:
    """What differs from the founding report, of what is known of it: weights, epochs, size of whole frames, how faces were sampled."""
    theirs = ExperimentsConfig
    differs = []
    if config.weights == "none":
        differs.append("it began from ImageNet's weights, these models did not")
    if config.epochs[1] != theirs.epochs[1] or (config.faces is None and config.epochs != theirs.epochs):
        (whole, faces), (ours_whole, ours) = theirs.epochs, config.epochs
        both = f"whole frames for {whole} epochs and faces for {faces}, these for {ours_whole} and {ours}"
        differs.append(f"it trained {both if config.faces is None else f'faces for {faces} epochs, these for {ours}'}")
    if config.faces is not None:
        differs.append("its faces were of frames spread over each video, four times as many of reals, these were made before")
    elif config.frame_size != theirs.frame_size:
        differs.append(f"its whole frames had {theirs.frame_size} pixels a side, these {config.frame_size}")
    if differs:
        return [f"NOT COMPARABLE with the founding report: {'; '.join(differs)}."]
    if config.weights == theirs.weights:
        return []
    return [f"Comparable with the founding report, which began from ImageNet's weights, if {config.weights} are those."]


def _sentences(lines: Sequence[Line]) -> list[str]:
    """What the lines say that are there."""
    there = {line.cell.name: line for line in lines}
    improved = _improved(lines)
    always = improved.report["frame"]["baselines"]["always_fake"]["accuracy"]
    said = [f"Always saying fake is right in {always:.1%} of these frames (the report's: {MAJORITY:.2%})."]
    if mvp := there.get("whole frames (MVP)"):
        said.append(_compared("Faces with four times the frames of reals", improved, "whole frames", mvp, "accuracy"))
    if l2 := there.get("faces, L2 for BCE"):
        said.append(_on_the_same("L2", l2, "binary cross-entropy", improved))
    if CENTRE_NAME in there and SECONDS_NAME in there:
        for metric in ("recall_real", "recall_fake"):
            said.append(_compared("5 frames from the middle", there[CENTRE_NAME], "10 a second", there[SECONDS_NAME], metric))
    alone = all(only_family(group) for group in improved.train_groups)
    for by in ("family", "frame"):
        if leak := there.get(f"split by {by}"):
            what = "which takes for independent what belongs together, and so leaks"
            if by == "family" and alone:
                what = "of which this corpus's groups are made, so that it is another draw"
            said.append(_compared(f"A split by {by}, {what},", leak, "the split by group", improved, "auc"))
    curve = [line for line in lines if line.cell.groups is not None]
    if curve:
        points = ", ".join(f"{_number(line.frame['auc'])} with {line.cell.groups} ({line.steps:,} steps)" for line in curve)
        groups = "families (who is in two of them is not known)" if alone else "groups"
        whole = f"{_number(improved.frame['auc'])} with all {len(improved.train_groups)} ({improved.steps:,})"
        said.append(f"Frame AUC by training {groups}, at the best epoch of about as many steps: {points}, {whole}.")
    return said


def _compared(one: str, a: Line, other: str, b: Line, metric: str) -> str:
    """Two lines judged on different frames by one metric: whether their intervals meet is all that can be said."""
    name = {"accuracy": "frame accuracy", "auc": "frame AUC", "recall_real": "recall of reals", "recall_fake": "recall of fakes"}[metric]
    x, y = a.frame[metric], b.frame[metric]
    if x is None or y is None:
        return f"{one} and {other} cannot be compared by {name}: it is not defined for both."
    first, second = a.interval(metric), b.interval(metric)
    verdict = "without intervals to judge by"
    if first and second:
        apart, fewest = first[0] > second[1] or second[0] > first[1], min(a.groups, b.groups)
        verdict = "and the intervals do not meet" if apart else "and the intervals overlap"
        if apart and fewest < FEW_GROUPS:
            verdict += f", but with {fewest} groups they are too narrow to claim a difference by"
    return f"{one} and {other}: {name} {x:.4f} and {y:.4f}, {verdict}."


def difference(report: Mapping[str, Any], beside: Mapping[str, Any]) -> Interval | None:
    """95 % interval of how much higher the video AUC of one report.json is than that of another of the same videos."""
    one, other = ({v["video_id"]: v for v in each["videos"]} for each in (beside, report))
    videos = sorted(one)
    labels = np.array([one[v]["label"] == "FAKE" for v in videos], dtype=np.int64)
    before, after = (np.array([of[v]["counted_as"] for v in videos]) for of in (one, other))
    return change_of_auc(before, after, labels, np.array([one[v]["group_id"] for v in videos]))


def _on_the_same(one: str, a: Line, other: str, b: Line) -> str:
    """Two lines that judge the same videos: their difference has an interval of its own, narrower than theirs let one think."""
    x, y = (line.report["video"]["metrics"]["auc"] for line in (a, b))
    if x is None or y is None:
        return f"{one} and {other} cannot be compared by video AUC: it is not defined for both."
    found = difference(a.report, b.report)
    said = f"{one} and {other}: video AUC {x:.4f} and {y:.4f} on the same {len(a.report['videos'])} videos"
    if found is None:
        return f"{said}, without an interval to judge by."
    verdict = "holds 0: no difference can be claimed" if found.low <= 0 <= found.high else "does not hold 0"
    if a.groups < FEW_GROUPS:
        verdict += f"; but {a.groups} groups are too few to go by it"
    return f"{said}; the difference's interval, {found.low:+.4f} to {found.high:+.4f} with the same groups drawn for both, {verdict}."
