"""The lines, their folders, and that the words follow the numbers."""

import io
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from seen import HOSTILE, Seen

from dfdc_ray.evaluate.tables import PICTURES, UNSCORED
from dfdc_ray.experiments.cells import IMPROVED_NAME, cells, curve
from dfdc_ray.experiments.config import ExperimentsConfig
from dfdc_ray.experiments.table import Line, Own, console_table, markdown, own_of, page, reports
from dfdc_ray.pages import MOST_ROWS, Section, Table, render

CONFIG = ExperimentsConfig(corpus=("videos",), out="out")
STEPS = {1: 10, 2: 15, 4: 20, 8: 40}  # of an epoch of so many groups


ALWAYS = {"accuracy": 0.7, "balanced_accuracy": 0.5, "recall_real": 0.0, "recall_fake": 1.0, "auc": 0.5}


def _report(accuracy: float, auc: float | None, width: float = 0.02, *, groups: int = 40, data: str = "a") -> dict[str, Any]:
    metrics = {"n": 100, "reals": 30, "fakes": 70, "accuracy": accuracy, "balanced_accuracy": accuracy, "recall_real": 0.5} | {
        "recall_fake": 0.75,
        "auc": auc,
    }
    intervals = {
        name: None if value is None else {"low": value - width, "high": value + width}
        for name, value in (("accuracy", accuracy), ("auc", auc), ("recall_real", 0.5), ("recall_fake", 0.75))
    }
    level = {"metrics": metrics, "intervals": intervals, "groups": groups, "baselines": {"always_fake": ALWAYS}}
    return {
        "frame": level,
        "video": level,
        "videos": _videos(groups, 0.3),
        "warnings": [],
        "protocol": {"split_rule": "hash:0: by group", "checkpoint_rule": "lowest loss", "data_hash": data * 64},
    }


def _videos(groups: int, shift: float) -> list[dict[str, Any]]:
    """Two of each group, a real one and a fake one, whose scores differ by `shift` on the average, drawn anew for each shift."""
    dice = random.Random(str(shift))
    return [
        {"video_id": f"{group}{label}", "group_id": str(group), "label": label, "counted_as": dice.random() * (1 - shift) + add}
        for group in range(groups)
        for label, add in (("REAL", 0.0), ("FAKE", shift))
    ]


def _lines(**changed: dict[str, Any]) -> list[Line]:
    """All cells with the same numbers, but for those named by a word of theirs."""
    lines = []
    for cell in [*cells(CONFIG), *curve(CONFIG, 8, STEPS.__getitem__)]:
        given = next((report for word, report in changed.items() if word in cell.name), _report(0.8, 0.85))
        lines.append(Line(cell, "uri", given, tuple("abcdefgh"), 1040, 600, "cpu, float32"))
    return lines


def test_the_constant_stands_beside_the_report_s_and_each_line_says_what_it_was_trained_on() -> None:
    text = markdown(CONFIG, _lines())
    rows = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert "| 0.7000 | 0.8075 | 0.7000 | 0.5000 | 0.0000 | 1.0000 | 0.5000 | 0.5000 |" in rows["always fake"]
    assert "| 1,040 videos, 8 groups |" in rows[IMPROVED_NAME]
    assert "| 1,040 frames, 8 groups |" in rows["split by frame"]
    assert "(" not in rows["split by frame"].split(" | ")[1]  # frames that belong together have no interval
    assert "(" not in rows["split by family"].split(" | ")[1]  # nor families, which share persons
    assert "(0.780-0.820)" in rows["faces, L2 for BCE"]


def test_lines_trained_in_different_precisions_are_pointed_out() -> None:
    lines = _lines()
    assert "NOT TRAINED ALIKE" not in markdown(CONFIG, lines)
    mixed = [*lines[:-1], replace(lines[-1], trained_in="cuda, bfloat16")]
    assert "cuda, bfloat16: faces, 4 of 8 training groups." in markdown(CONFIG, mixed)


def test_every_line_has_its_own_folder_and_keeps_it() -> None:
    keys = [cell.key(CONFIG, "a") for cell in [*cells(CONFIG), *curve(CONFIG, 8, STEPS.__getitem__)]]
    assert len(set(keys)) == len(keys) == 13
    assert keys == [cell.key(CONFIG, "a") for cell in [*cells(CONFIG), *curve(CONFIG, 8, STEPS.__getitem__)]]
    other = replace(CONFIG, seed=1)
    assert not set(keys) & {cell.key(other, "a") for cell in cells(other)}
    assert not set(keys) & {cell.key(CONFIG, "b") for cell in cells(CONFIG)}  # other faces
    moved = replace(CONFIG, out="elsewhere", workers=4)
    assert keys[:11] == [cell.key(moved, "a") for cell in cells(moved)]


def test_other_weights_under_the_same_name_are_other_cells(tmp_path: Path) -> None:
    config = replace(CONFIG, weights=str(tmp_path / "weights.safetensors"))
    keys = []
    for content in (b"a", b"b", b"a"):
        Path(config.weights).write_bytes(content)
        keys.append(cells(config)[0].key(config, "a"))
    assert keys[0] == keys[2] != keys[1]


def test_the_learning_curve_has_whole_numbers_of_groups_below_all() -> None:
    found = [(cell.groups, cell.epochs) for cell in curve(CONFIG, 8, STEPS.__getitem__)]
    assert found == [(2, 40), (4, 30)]  # of as many steps as all: 15 x 40
    assert [cell.groups for cell in curve(CONFIG, 2, STEPS.__getitem__)] == [1]
    assert curve(CONFIG, 1, STEPS.__getitem__) == []


def test_groups_that_are_families_are_not_said_to_leak() -> None:
    lines = [replace(line, train_groups=tuple(f"c/family:{i}.mp4" for i in range(8))) for line in _lines()]
    text = markdown(CONFIG, lines)
    assert "A split by family, of which this corpus's groups are made, so that it is another draw, and the split by group: " in text
    assert (
        "Frame AUC by training families (who is in two of them is not known), at the best epoch of about as many steps: 0.8500 with 2"
        in text
    )
    assert "A split by frame, which takes for independent what belongs together, and so leaks," in text


def test_recalls_of_both_samplings_are_compared_by_their_intervals() -> None:
    lines = _lines(middle=_report(0.8, 0.8))
    text = markdown(CONFIG, lines)
    assert "5 frames from the middle and 10 a second: recall of reals 0.5000 and 0.5000, and the intervals overlap." in text


def test_lines_on_the_same_videos_are_compared_by_the_interval_of_their_difference() -> None:
    """Also where each line's own interval is wider than the difference."""
    little, much = (_report(0.8, 0.86) | {"videos": _videos(40, shift)} for shift in (0.31, 0.9))
    for report, verdict in ((little, "holds 0: no difference can be claimed."), (much, "does not hold 0.")):
        text = markdown(CONFIG, _lines(L2=report))
        assert "L2 and binary cross-entropy: video AUC 0.8600 and 0.8500 on the same 80 videos; the difference's interval, " in text
        assert f"with the same groups drawn for both, {verdict}" in text
    few, alone = (markdown(CONFIG, _lines(L2=_report(0.8, 0.86, groups=n), improved=_report(0.8, 0.85, groups=n))) for n in (3, 1))
    assert "; but 3 groups are too few to go by it." in few
    assert "on the same 2 videos, without an interval to judge by." in alone


def test_a_difference_is_not_called_one_where_intervals_overlap() -> None:
    text = markdown(CONFIG, _lines(whole=_report(0.9, 0.95)))
    assert "whole frames: frame accuracy 0.8000 and 0.9000, and the intervals do not meet." in text
    for by in ("family", "frame"):
        text = markdown(CONFIG, _lines(**{f"by {by}": _report(0.9, 0.95)}))
        assert (
            f"A split by {by}, which takes for independent what belongs together, and so leaks, and the split by group: frame AUC " in text
        )
        assert "frame AUC 0.9500 and 0.8500, without intervals to judge by." in text


def test_intervals_of_few_groups_claim_nothing() -> None:
    text = markdown(CONFIG, _lines(whole=_report(0.9, 0.95, groups=3)))
    assert "the intervals do not meet, but with 3 groups they are too narrow to claim a difference by." in text
    assert "of fewer than 20 groups (3 in the least) they are too narrow, a rough guide only" in text
    assert "rough guide" not in markdown(CONFIG, _lines())


def test_each_line_says_what_it_was_judged_on() -> None:
    text = markdown(CONFIG, _lines(family=_report(0.9, 0.95, data="b")))
    found = {line.split(" | ")[0]: line for line in text.splitlines() if line.startswith("| ")}
    assert found["| split by family"].endswith("| 70/15/15 % by family | bbbbbbbbbbbb |")
    assert found["| split by frame"].endswith("| 70/15/15 % by frame | aaaaaaaaaaaa |")
    assert found["| faces, L2 for BCE"].endswith("| hash:0 | aaaaaaaaaaaa |")


def test_lines_that_are_absent_are_not_spoken_of() -> None:
    improved = [line for line in _lines() if line.cell.name == IMPROVED_NAME]
    text = markdown(CONFIG, improved, {"whole frames (MVP)": "training diverged"})
    assert "Left out: whole frames (MVP): training diverged" in text
    assert "L2 and" not in text


def test_every_line_and_the_baseline_beside_the_reports_numbers() -> None:
    text = markdown(CONFIG, _lines())
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(table) == 2 + 14
    assert len({line.count(" | ") for line in table}) == 1
    improved = next(line for line in table if line.startswith(f"| {IMPROVED_NAME}"))
    assert "| 0.8000 (0.780-0.820) | 0.9400 | 0.7000 |" in improved
    assert "Always saying fake is right in 70.0% of these frames (the report's: 80.75%)." in text
    points = "0.8500 with 2 (600 steps), 0.8500 with 4 (600 steps), 0.8500 with all 8 (600)."
    assert f"Frame AUC by training groups, at the best epoch of about as many steps: {points}" in text


def test_nothing_is_cut_off_in_a_terminal_of_80_columns() -> None:
    console = Console(record=True, width=80, file=io.StringIO())
    console_table(_lines(), console)
    said = console.export_text()
    assert "\u2026" not in said
    assert said.count("(0.780-0.820)") >= 11
    assert re.search(r"always fake +0\.7000 +0\.8075 +0\.7000 +0\.5000 +100\b", said)


def test_without_imagenet_it_says_that_it_is_not_comparable() -> None:
    assert "NOT COMPARABLE" not in markdown(CONFIG, _lines())
    assert "NOT COMPARABLE" in markdown(replace(CONFIG, weights="none"), _lines())
    shorter = markdown(replace(CONFIG, epochs=(1, 2), frame_size=96), _lines())
    assert "it trained whole frames for 3 epochs and faces for 15, these for 1 and 2; its whole frames had 400 pixels" in shorter
    assert "NOT COMPARABLE with the founding report: its faces were" in markdown(replace(CONFIG, corpus=(), faces="f"), _lines())
    from_file = markdown(replace(CONFIG, weights="resnet34.pth"), _lines())
    assert "if resnet34.pth are those." in from_file
    assert "NOT COMPARABLE" not in from_file


def test_what_is_not_defined_is_said() -> None:
    text = markdown(CONFIG, _lines(L2=_report(0.8, None)))
    assert "L2 and binary cross-entropy cannot be compared by video AUC: it is not defined for both." in text


def test_what_cannot_be_had_is_said() -> None:
    why = "training has faces of one class only"
    assert f"Left out: faces, 2 of 8 training groups: {why}\n" in markdown(CONFIG, _lines()[:-2], {"faces, 2 of 8 training groups": why})


def test_the_page_says_the_same() -> None:
    left_out = {"faces, 2 of 8 training groups": HOSTILE}
    lines = _lines(L2=_report(0.8, 0.86))
    lines[2].report["warnings"].append(HOSTILE)
    own = {IMPROVED_NAME: Own([(b"\x89PNG", "ROC")], [Section("By part", [Table(["part"], [["40"]])])])}
    made = page(replace(CONFIG, weights="none"), lines, left_out, own)
    assert len(made) < 100_000
    seen = Seen(made)
    seen.check()
    assert seen.text.count(HOSTILE) == 2
    assert len(seen.all("img", "src")) == 1
    assert "NOT COMPARABLE" in seen.text
    words = markdown(CONFIG, lines, left_out).split("What the numbers say")[1].strip()
    assert words in seen.words
    assert f"{IMPROVED_NAME}0.8000 (0.780-0.820)0.94000.7000" in seen.words
    assert len(seen.all("a", "href")) == len(lines)
    there = (("a", "/out/cells/x y/report/report.json"), ("b", "s3://bucket/report.json"))
    assert reports(there, "/out", {}) == [("a", "cells/x%20y/report/report.html", Own()), ("b", None, Own())]
    assert len([tag for tag, _ in seen.tags if tag == "tr"]) == 1 + 14 + 2


def test_many_lines_with_many_videos_without_a_score_stay_below_10_mb(tmp_path: Path) -> None:
    for name in PICTURES:
        (tmp_path / f"{name}.png").write_bytes(b"\x89PNG" + bytes(40_000))
    lost = {"header": ["video", "why"], "rows": [[f"dfdc/{n:04}.mp4", "open: " + 100 * "x"] for n in range(MOST_ROWS)]}
    sections = [
        {"title": UNSCORED, "body": [f"{MOST_ROWS} of 5000.", lost]},
        {"title": "By part", "body": [{"header": ["part"], "rows": [["p40"]]}]},
    ]
    own = own_of(str(tmp_path / "report.json"), {"sections": sections}, str(tmp_path))
    lines = [(str(n), None, own) for n in range(34)]
    made = render("experiments.html", title="", made_from="", warnings=[], sections=[], pictures=[], reports=lines)
    assert 5e6 < len(made) < 1e7
    for words in (f"{MOST_ROWS} of 5000.".encode(), b"p40"):
        assert made.count(words) == 34
