"""The report's files."""

import csv
import json
import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from seen import HOSTILE, TURNED, Seen

from dfdc_ray.evaluate import tables
from dfdc_ray.evaluate.duplicates import Pair
from dfdc_ray.evaluate.files import scores_csv, write
from dfdc_ray.evaluate.heat import Shown, _small
from dfdc_ray.evaluate.metrics import Interval, Metrics, judge
from dfdc_ray.evaluate.mistakes import Mistake
from dfdc_ray.evaluate.report import WORST, JudgedVideo, Report, Robustness
from dfdc_ray.evaluate.tables import show
from dfdc_ray.pages import MOST_ROWS

PRIOR = 0.75
FILES = ["mistakes.json", "pr.png", "reliability.png", "report.html", "report.json", "report.md", "roc.png", "scores.csv", "scores.png"]


def _video(name: str, label: str, score: float | None, **more: object) -> JudgedVideo:
    given: dict = {
        "method": None,
        "part": None,
        "stage": None,
        "error": None,
        "status": "ok",
        "short_tracks": False,
        "lightness": None,
        "skin_tone": None,
    } | more
    counted_as = PRIOR if score is None else score
    counts = {"frames_sampled": 4, "frames_scored": 0 if score is None else 4}
    ids = {"video_id": f"c/{name}.mp4", "group_id": f"g{name[-1]}"}
    return JudgedVideo(label=label, raw_score=score, score=score, counted_as=counted_as, **ids, **counts, **given)


def _report(videos: list[JudgedVideo]) -> Report:
    scores, labels = np.array([v.counted_as for v in videos]), np.array([int(v.label == "FAKE") for v in videos])
    frames = np.repeat(scores, [v.frames_scored for v in videos]), np.repeat(labels, [v.frames_scored for v in videos])
    level = judge(scores, labels, np.array([v.group_id for v in videos]), train_prior=PRIOR)
    return Report(
        title="Evaluation of resnet34 on the test split",
        protocol={
            "split": "test",
            "split_rule": "hash:0",
            "frames_used": "core frames only",
            "checkpoint_rule": "lowest loss",
            "checkpoint_epoch": 2,
            "data_hash": "0123456789abcdef",
            "calibration": "none",
            "videos": len(videos),
            "train_prior": PRIOR,
            "versions": {"torch": "1", "numpy": "2"},
            "configuration": {"weights_sha256": "f" * 64, "faces": {"detector": "centerface"}, "train_config": {"learning_rate": 0.001}},
        },
        warnings=("GENERATED CORPUS: says nothing about real fakes",),
        video=level,
        frame=level,
        videos=tuple(videos),
        unlabelled_videos=3,
        frame_scores=frames[0],
        frame_labels=frames[1],
        rules={"mean": level.metrics, "max": level.metrics},
        rule="mean",
        robustness=(),
        near_duplicates=None,
        unit="frames",
        maps_of="",
    )


def markdown(report: Report) -> str:
    return tables.markdown(report, tables.slices(report))


@pytest.fixture
def report() -> Report:
    """Three reals (one without a face, one mistaken) and four fakes (one mistaken, one poison) in three groups."""
    return _report(
        [
            _video("real1", "REAL", 0.1),
            _video("real2", "REAL", 0.9),
            _video("real3", "REAL", None, status="no_face"),
            _video("fake1", "FAKE", 0.95, method="swap"),
            _video("fake2", "FAKE", 0.2, method="swap"),
            _video("fake3", "FAKE", 0.8, short_tracks=True),
            _video("fade1", "FAKE", None, status="poison", stage="decode", error="killed | twice"),
        ]
    )


def test_slices_are_by_video_and_by_frame(report: Report) -> None:
    """The fake of an unknown method with a face beside the reals: 3 of 4 videos have a score, of 4 frames each."""
    text = markdown(report)
    row = next(line for line in text.splitlines() if line.startswith("| not known |")).split(" | ")
    assert row[1:3] == ["3", "2"]  # videos
    assert row[-3] == "12"  # frames: of two reals and one fake
    assert row[-1].startswith("0.5000")  # 0.8 lies above the one real's 0.1 and below the other's 0.9


def test_all_files_are_written(report: Report, tmp_path: Path) -> None:
    write(report, str(tmp_path / "out"))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == FILES
    for name in ("pr.png", "reliability.png", "roc.png", "scores.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")


def test_the_same_report_gives_the_same_bytes(report: Report, tmp_path: Path) -> None:
    write(report, str(tmp_path / "a"))
    write(report, str(tmp_path / "b"))
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_json_has_everything(report: Report, tmp_path: Path) -> None:
    write(report, str(tmp_path))
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["protocol"] == report.protocol
    assert set(found["video"]["metrics"]) == {field.name for field in fields(Metrics)}
    assert set(found["video"]["baselines"]) == {"always_fake", "training_majority", "constant_prior"}
    assert found["video"]["metrics"]["n"] == len(found["videos"]) == 7
    assert found["videos_without_score"] == ["c/real3.mp4", "c/fade1.mp4"]
    assert found["videos_short_tracks"] == ["c/fake3.mp4"]
    assert found["worst"] == ["c/real2.mp4", "c/fake2.mp4"]
    assert found["videos_unlabelled"] == 3


def test_markdown_names_denominators_failures_and_mistakes(report: Report) -> None:
    text = markdown(report)
    assert "GENERATED CORPUS" in text
    assert "7 videos: 3 real, 4 fake" in text
    assert "| recall of reals | 0.3333 |" in text  # the one without a face counts as fake
    assert "| 3 real videos |" in text
    assert "## Configuration" in text
    assert "| faces detector | centerface |" in text
    assert "| train config learning rate | 0.001 |" in text
    assert "| c/fade1.mp4 | FAKE | poison | decode: killed \\| twice |" in text
    assert "| c/fake2.mp4 | FAKE | swap | 0.2000 | 4 of 4 |" in text
    widths = {line.count(" | ") for line in text.split("## By video")[1].split("Intervals")[0].splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_each_method_is_beside_all_reals_and_each_part_by_itself() -> None:
    text = markdown(
        _report(
            [
                _video("real1", "REAL", 0.1, part=0),
                _video("real2", "REAL", 0.6, part=1),
                _video("fake1", "FAKE", 0.9, part=0, method="swap"),
                _video("fake2", "FAKE", 0.3, part=1, method="swap"),
                _video("fake3", "FAKE", 0.8, part=1),
            ]
        )
    )
    assert "| swap | 2 | 2 | 0.5000 (0.000 to 1.000) | 0.5000 (0.000 to 1.000) |" in text
    assert "| not known | 2 | 1 | 0.5000 (0.000 to 1.000) | 1.0000 (1.000 to 1.000) |" in text
    assert "| 0 | 1 | 1 | 1.0000 | 1.0000 | 0.1054 | 1.0000 |" in text
    assert "| 1 | 1 | 2 | 0.0000 (0.000 to 0.000) | 0.5000 (0.000 to 1.000) |" in text


def test_how_much_the_numbers_rest_on() -> None:
    videos = [_video("real1", "REAL", 0.1, part=0), _video("real2", "REAL", None, part=1), _video("fake1", "FAKE", 0.9, part=0)]
    videos[0] = replace(videos[0], frames_sampled=8, frames_scored=2)
    videos[1] = replace(videos[1], frames_sampled=8, frames_scored=0)
    videos[2] = replace(videos[2], frames_sampled=8, frames_scored=8)
    text = markdown(_report(videos))
    assert "| real | 2 | 1 | 50.0% | 16 | 2 | 12.5% |" in text
    assert "| part 0 | 2 | 2 | 100.0% | 16 | 10 | 62.5% |" in text
    assert "| c/real1.mp4 | REAL | 2 of 8 | 0.1000 |" in text
    assert "| c/fake1.mp4 | FAKE | 8 of 8 |" not in text


def test_no_table_of_methods_and_parts_that_nobody_knows() -> None:
    text = markdown(_report([_video("real1", "REAL", 0.1), _video("fake2", "FAKE", 0.7)]))
    assert "## By method" not in text
    assert "## By part" not in text


def test_quarters_by_lightness_and_classes_of_skin_tone() -> None:
    videos = [_video(f"real{i}", "REAL", 0.1, lightness=20.0 + 10 * i, skin_tone=60.0) for i in range(4)]
    videos += [_video(f"fake{i}", "FAKE", 0.4, lightness=21.0 + 10 * i, skin_tone=-40.0) for i in range(4)]
    text = markdown(_report(videos))
    assert "| L* 20 to 21 | 1 | 1 | 1.0000 | 0.0000 |" in text
    assert "| L* 50 to 51 | 1 | 1 |" in text
    assert "| very light | 4 | 0 | 1.0000 (1.000 to 1.000) | undefined (no fakes) |" in text
    assert "| dark | 0 | 4 |" in text


def test_robustness_and_near_duplicates_where_they_were_asked_for(report: Report) -> None:
    assert "Not measured: evaluate --robustness judges" in markdown(report)
    assert "Not looked for: evaluate --training-faces does" in markdown(report)
    worse = replace(report.video.metrics, auc=(report.video.metrics.auc or 0) - 0.125)
    changed = (
        Robustness(change="blur", video=worse, frame=report.frame.metrics, video_auc=Interval(low=-0.25, high=-0.0625, replicates=9)),
    )
    text = markdown(replace(report, robustness=changed, near_duplicates=(Pair("c/real1.mp4", "c/other.mp4", 2),)))
    assert f"| blur | {worse.auc:.4f} | -0.1250 (-0.250 to -0.062) |" in text
    assert "1 of the 5 videos with a face are within" in text
    assert "| c/real1.mp4 | c/other.mp4 | 2 |" in text


def test_one_class_is_undefined_in_words(tmp_path: Path) -> None:
    report = _report([_video("fake1", "FAKE", 0.9), _video("fake2", "FAKE", 0.7)])
    assert "undefined (no reals)" in markdown(report)
    write(report, str(tmp_path))
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["video"]["metrics"]["auc"] is None
    assert found["video"]["intervals"]["auc"] is None


def test_csv_leaves_missing_scores_empty(report: Report) -> None:
    rows = {row["video_id"]: row for row in csv.DictReader(scores_csv(report).splitlines())}
    assert len(rows) == 7
    assert rows["c/real1.mp4"]["score"] == "0.100000"
    assert (rows["c/real3.mp4"]["score"], rows["c/real3.mp4"]["counted_as"], rows["c/real3.mp4"]["status"]) == ("", "0.750000", "no_face")


def test_console_shows_both_levels(report: Report) -> None:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    show(report, console)
    text = console.export_text()
    for words in ("GENERATED CORPUS", "by video", "by frame", "always fake", "2 of 7 videos have no score", "1 no_face, 1 poison"):
        assert words in text


def _mistakes(report: Report, *, heat: bool, shard: str = "/data/faces/faces/a.parquet") -> list[Mistake]:
    """Each with three faces of noise, which no JPEG makes small."""
    noise = _small(np.random.default_rng(0).integers(0, 255, (224, 224, 3), dtype=np.uint8))
    faces = tuple((Shown(noise, noise if heat else None), f"frame {10 * i}: 0.5000") for i in range(3))
    return [Mistake(video.video_id, "REAL, called fake", faces, ((shard, "rows 0, 1, 2"),)) for video in report.worst]


def test_what_others_wrote_is_shown_on_the_page_and_not_obeyed(tmp_path: Path) -> None:
    videos = [_video(HOSTILE, "REAL", 0.9), _video(f"fake{TURNED}", "FAKE", 0.2, method=HOSTILE), _video("fake3", "FAKE", 0.7)]
    videos += [_video(f"lost{HOSTILE}", "FAKE", None, status="error", stage="decode", error=HOSTILE)]
    report = replace(_report(videos), title=HOSTILE, warnings=(HOSTILE,))
    write(report, str(tmp_path), _mistakes(report, heat=True, shard=f"/data/{HOSTILE}"))
    seen = Seen((tmp_path / "report.html").read_bytes())
    seen.check()
    assert seen.text.count(HOSTILE) >= 10
    assert f"<bdi>c/fake{TURNED}.mp4</bdi>" in seen.html
    assert not re.search(r"[<>\"]", "".join(seen.all("a", "href")))


def test_the_page_is_small_and_its_links_are_relative(report: Report, tmp_path: Path) -> None:
    mistaken = [_video(f"real{i}", "REAL", 0.9) for i in range(WORST + 5)]
    lost = [_video(f"lost{i}", "FAKE", None, status="error", error="broken " * 100) for i in range(2 * MOST_ROWS)]
    report = _report([*mistaken, *lost])
    write(report, str(tmp_path / "out"), _mistakes(report, heat=True, shard=str(tmp_path / "faces" / "a b.parquet")))
    page = (tmp_path / "out" / "report.html").read_bytes()
    assert len(page) < 10e6
    seen = Seen(page)
    assert set(seen.all("a", "href")) == {"../faces/a%20b.parquet"}
    assert "And 1,000 more lines" in seen.text
    assert seen.text.count("a b.parquet, rows 0, 1, 2") == WORST


def test_there_is_no_link_to_another_disk_and_no_heat_map_without_maps(report: Report, tmp_path: Path) -> None:
    write(report, str(tmp_path), _mistakes(report, heat=False, shard="s3://bucket/faces/a.parquet"))
    seen = Seen((tmp_path / "report.html").read_bytes())
    assert seen.all("a", "href") == []
    assert "s3://bucket/faces/a.parquet, rows 0, 1, 2" in seen.text
    assert "There are no heat maps" in seen.text
    assert len(seen.all("img", "src")) == 4 + 2 * 3


def test_warnings_come_first_on_the_page(report: Report, tmp_path: Path) -> None:
    write(report, str(tmp_path))
    words = Seen((tmp_path / "report.html").read_bytes()).words
    order = ["GENERATED CORPUS", "ROC AUC by video", "Protocol", "By video", "By frame", "Curves", "Aggregation", "Videos without a score"]
    assert sorted(order, key=words.index) == order
    assert "c/fade1.mp4FAKEpoisondecode: killed | twice" in words
