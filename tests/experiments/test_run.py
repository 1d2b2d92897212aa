"""All experiments in miniature, on a generated corpus; then again, when there is nothing left to do."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from browser import NEEDS_CHROMIUM, check_file
from helpers import import_noise, preprocess_here, write_face_shards, write_manifest
from seen import Seen
from torch import nn

from dfdc_ray.config import TrainConfig
from dfdc_ray.demo.corpus import demo_split, write_corpus
from dfdc_ray.errors import UserError
from dfdc_ray.experiments import run
from dfdc_ray.experiments.cells import IMPROVED_NAME, Cell, cells
from dfdc_ray.experiments.config import ExperimentsConfig, ModelsConfig
from dfdc_ray.experiments.table import Line
from dfdc_ray.shards.manifest import read_ledger, read_manifest
from dfdc_ray.train.loop import train_loop
from dfdc_ray.train.plan import prepare

pytestmark = [
    pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning"),  # torchvision's own v2.JPEG
]

FAMILIES = 8
SMALL = {"split": demo_split(FAMILIES), "weights": "none", "frames": 2, "image_size": 64, "frame_size": 64, "batch_size": 8}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "corpus"
    write_corpus(folder, families=FAMILIES, seed=2, seconds=1.0, test_families=0)
    return folder


class Small(nn.Module):
    """A model of a millisecond; the network itself is in the slow test."""

    HEAD = ("fc.",)
    CHANNELS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    SIDE = None
    CLIPS = False

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.body(x).mean((2, 3)))
        return logits[:, 0]


def _train_here(config: TrainConfig) -> None:
    """The training loop without Ray Train, whose workers take half a minute each to start on two cores."""
    train_loop(config, prepare(config))


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> ExperimentsConfig:
    """A report with all lines, and what it was asked for."""
    config = ExperimentsConfig(corpus=(str(corpus),), out=str(tmp_path_factory.mktemp("whole") / "out"), epochs=(1, 1), **SMALL)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dfdc_ray.models.resnet34.ResNet34", Small)
        patch.setattr(run, "train", _train_here)
        patch.setattr(run, "preprocess", preprocess_here)
        run.report(config)
    return config


def test_the_whole_table_in_miniature(whole: ExperimentsConfig) -> None:
    out = Path(whole.out)
    text = (out / "experiments.md").read_text()
    for words in ("What the numbers say", "NOT COMPARABLE", "GENERATED CORPUS", "| split by frame |"):
        assert words in text
    lines = json.loads((out / "experiments.json").read_text())["lines"]
    assert len(lines) == 12  # 11, and one of two groups
    reports = [json.loads(Path(line["report"]).read_text()) for line in lines]
    assert all(report["frame"]["metrics"]["n"] > 0 for report in reports)

    made = (out / "report.html").read_bytes()
    assert len(made) < 10e6
    seen = Seen(made)
    mistakes = [json.loads(Path(line["report"]).with_name("mistakes.json").read_text())[:2] for line in lines]
    pictures = [face for of_line in mistakes for case in of_line for face, _ in case["faces"][:1]]
    assert pictures
    assert len(seen.all("img", "src")) == 4 * len(lines) + len(pictures)  # each line's curves; faces, of which Small has no heat maps
    shards = [link for link in seen.all("a", "href") if link.endswith(".parquet")]
    assert shards
    assert all((out / unquote(link)).exists() for link in shards)
    assert seen.words.count("Worst mistakes") == len(lines)
    assert seen.words.count("quarter, dark to light") == len(lines) - 2  # of faces, not of whole frames


@pytest.mark.browser
@NEEDS_CHROMIUM
def test_everybody_can_read_the_page(whole: ExperimentsConfig) -> None:
    check_file(Path(whole.out) / "report.html")


def test_what_is_done_is_not_done_again(whole: ExperimentsConfig, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (Path(whole.out) / "cells").rglob("*") if path.is_file()}
    run.report(whole)
    assert not ray.is_initialized()
    assert {path: path.stat().st_mtime_ns for path in (Path(whole.out) / "cells").rglob("*") if path.is_file()} == before
    assert "epoch 1 of 1" not in capsys.readouterr().out


def test_of_faces_made_before_the_lines_that_can_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_noise(tmp_path / "faces", families=8)
    _without(monkeypatch)
    config = ExperimentsConfig(faces=str(tmp_path / "faces"), out=str(tmp_path / "out"), weights="none")
    run.report(config)
    found = json.loads((tmp_path / "out" / "experiments.json").read_text())
    assert [line["cell"]["name"] for line in found["lines"]] == [
        "faces, reals drawn more often (improved)",
        "faces, the report's settings, 1e-06",
        "faces, the report's settings, 1e-07",
        "faces, L2 for BCE",
        "faces, reals not multiplied",
        "split by family",
        "split by frame",
        "faces, 1 of 4 training groups",
        "faces, 2 of 4 training groups",
    ]
    assert [line["cell"]["balance"] for line in found["lines"]] == ["sample"] * 4 + ["none"] + ["sample"] * 4
    assert set(found["left_out"]) == {
        "whole frames (MVP)",
        "whole frames, the report's settings",
        "faces, 5 frames from the middle",
        "faces, 10 frames a second",
    }
    text = (tmp_path / "out" / "experiments.md").read_text()
    assert "Left out: faces, 10 frames a second: wants other frames of the videos than --faces holds" in text
    assert "whole frames, 15" not in text


def test_faces_made_before_are_regrouped_in_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "preprocess", lambda config: pytest.fail("preprocessing began"))
    import_noise(tmp_path / "faces", families=8)
    before = set((tmp_path / "faces").rglob("*"))
    config = ExperimentsConfig(faces=str(tmp_path / "faces"), out=str(tmp_path / "out"))
    of = {cell.split_by: run._faces(config, cell, set()) for cell in cells(config)}
    assert of[None] == (str(tmp_path / "faces"), "hash:0")
    assert {Path(faces).parent for faces, _ in (of["family"], of["frame"])} == {tmp_path / "out" / "faces"}
    assert len(read_ledger(of["frame"][0])) == 24
    assert set((tmp_path / "faces").rglob("*")) == before


def test_robustness_is_judged_later_without_training_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfdc_ray.models.resnet34.ResNet34", Small)
    monkeypatch.setattr(run, "train", _train_here)
    import_noise(tmp_path / "faces", families=8)
    config = ExperimentsConfig(
        faces=str(tmp_path / "faces"), out=str(tmp_path / "out"), epochs=(1, 1), **SMALL | {"split": "parts:0-3/4-5/6-7"}
    )  # type: ignore[arg-type]
    cell = cells(config)[0]
    first = run._line(config, cell, set())
    trained = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("train/**/*") if path.is_file()}
    assert trained
    again = run._line(replace(config, robustness=True), cell, set())
    assert again.uri != first.uri
    assert {path: path.stat().st_mtime_ns for path in trained} == trained
    of = [{section["title"]: section["body"] for section in line.report["sections"]} for line in (first, again)]
    assert [title for title in of[1] if of[0][title] != of[1][title]] == ["Robustness"]
    changed = [line["change"] for line in again.report["robustness"]]
    assert len(changed) == len(set(changed)) > 5


def test_faces_made_before_with_four_times_the_frames_of_reals_are_the_report_s(tmp_path: Path) -> None:
    write_manifest(tmp_path, [{"path": "faces/a.parquet", "rows": 1, "sha256": "0" * 64}], {"real_multiplier": 4})
    improved = next(cell for cell in cells(ExperimentsConfig(faces=str(tmp_path), out="out")) if cell.improved)
    assert (improved.name, improved.balance) == (IMPROVED_NAME, "frames")


@pytest.mark.parametrize("options", [{}, {"corpus": ("videos",), "faces": "faces"}])
def test_videos_or_faces(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="one of the two"):
        run.report(ExperimentsConfig(out=str(tmp_path), weights="none", **options))


def test_what_made_faces_cannot_be_told_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="are for --corpus"):
        run.report(ExperimentsConfig(faces=str(tmp_path), out=str(tmp_path / "out"), weights="none", frames=4))


@pytest.mark.parametrize(("batch", "workers"), [(32, 3), (1, 1)])
def test_only_a_batch_of_one_is_for_one_worker(batch: int, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not divide among the workers is refused by `train`, not done by fewer."""
    given: list[TrainConfig] = []

    def refuse(config: TrainConfig) -> None:
        given.append(config)
        raise UserError("enough")

    monkeypatch.setattr(run, "train", refuse)
    import_noise(tmp_path / "faces", families=3)
    config = ExperimentsConfig(faces=str(tmp_path / "faces"), out=str(tmp_path / "out"), weights="none", workers=3)
    cell = next(cell for cell in cells(config) if cell.batch_size == batch)
    with pytest.raises(UserError, match="enough"):
        run._line(config, cell, set())
    assert [config.workers for config in given] == [workers]
    with pytest.raises(UserError, match="does not divide by --workers 5"):
        run.report(replace(config, workers=5))


def _without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Lines that are done at once, but those of these names cannot be had."""
    level = {"metrics": dict.fromkeys(("accuracy", "balanced_accuracy", "recall_real", "recall_fake", "auc"), 0.5), "intervals": {}}
    level["metrics"] |= {"n": 4, "reals": 2, "fakes": 2}
    always = dict.fromkeys(("accuracy", "balanced_accuracy", "recall_real", "recall_fake", "auc"), 0.5)
    level |= {"baselines": {"always_fake": always}, "groups": 2}
    protocol = {"split_rule": "hash:0", "checkpoint_rule": "lowest loss", "data_hash": "0" * 64}
    report = {"frame": level, "video": level, "videos": [], "warnings": [], "protocol": protocol}

    def line(_: ExperimentsConfig, cell: Cell, __: set[str]) -> Line:
        if cell.name in names:
            raise UserError("training has faces of one class only")
        return Line(cell, "uri", report, ("a", "b", "c", "d"), 8, 600, "cpu, float32")

    monkeypatch.setattr(run, "_line", line)
    monkeypatch.setattr(run, "_faces", lambda *_: ("faces", "hash:0"))
    monkeypatch.setattr(run, "steps_an_epoch", lambda config: 10)
    monkeypatch.setattr(run.table, "own_of", lambda uri, report, out: run.table.Own([(b"\x89PNG", "ROC")]))


def test_lines_that_cannot_be_had_do_not_lose_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("split by frame", "faces, 1 of 4 training groups")
    _without(monkeypatch, *names)
    with pytest.raises(UserError, match="2 of 13 lines could not be had: split by frame, faces, 1 of 4"):
        run.report(ExperimentsConfig(corpus=("videos",), out=str(tmp_path), weights="none"))
    found = json.loads((tmp_path / "experiments.json").read_text())
    assert found["left_out"] == dict.fromkeys(names, "training has faces of one class only")
    assert len(found["lines"]) == 11
    assert "training has faces of one class only" in (tmp_path / "report.html").read_text()


def test_without_the_line_that_others_are_compared_with_there_is_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _without(monkeypatch, IMPROVED_NAME)
    with pytest.raises(UserError, match="one class only"):
        run.report(ExperimentsConfig(corpus=("videos",), out=str(tmp_path), weights="none"))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"weights": "absent.safetensors"}, "no such file"), ({"workers": 0}, "at least 1"), ({"split": "parts:0/1"}, "three lists")],
)
def test_what_cannot_be_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(run, "preprocess", lambda config: pytest.fail("preprocessing began"))
    with pytest.raises(UserError, match=message):
        run.report(ExperimentsConfig(corpus=("videos",), out=str(tmp_path), **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"epochs": 0}, "--epochs 0"), ({"cpus_per_worker": 0}, "--cpus-per-worker 0"), ({"split": "halves"}, "split rule")],
)
def test_what_no_detector_can_do_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(run, "preprocess", lambda config: pytest.fail("preprocessing began"))
    with pytest.raises(UserError, match=message):
        run.models(ModelsConfig(corpus=("videos",), out=str(tmp_path), weights="none", **options))


def test_groups_of_the_first_weights_are_no_part_of_the_curve(tmp_path: Path) -> None:
    faces = str(write_face_shards(tmp_path / "faces", families=4))
    ledger = pq.read_table(f"{faces}/ledger.parquet")
    unlabelled = {"video_id": "toy/x.mp4", "family_id": "toy/x.mp4", "group_id": "toy/family:x.mp4", "part": None, "label": None}
    added = pa.Table.from_pylist([ledger.to_pylist()[0] | unlabelled], schema=ledger.schema)  # as of DFDC's test videos
    of_frames = pa.concat_tables([ledger, added]).set_column(  # whole ones, in which nobody looked for a face
        ledger.schema.get_field_index("faces"), "faces", pa.array([0] * (len(ledger) + 1), ledger.schema.field("faces").type)
    )
    pq.write_table(of_frames, f"{faces}/ledger.parquet")
    found = run._own(faces, "parts:0-1/2/3", ["toy/part-0", "toy/part-1", "dfdc/part:7"])
    assert found == (("toy/part-0", "toy/part-1"), 2 * 3)  # an original and two fakes each


def test_other_faces_are_regrouped_anew_and_videos_without_a_face_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ExperimentsConfig(corpus=("videos",), out=str(tmp_path))
    by_family = next(cell for cell in cells(config) if cell.split_by == "family")
    monkeypatch.setattr(run, "preprocess", lambda config: write_face_shards(Path(config.out), families=7, fakes=1, frames=2))
    first, rule = run._faces(config, by_family, set())
    made = run._hash_of(first)
    faces = Path(first).parent / Path(first).name.partition("-by-")[0]
    assert run._faces(config, by_family, {str(faces)}) == (first, rule)

    ledger = pq.read_table(faces / "ledger.parquet")
    lost = pa.Table.from_pylist([ledger.to_pylist()[0] | {"video_id": "toy/lost.mp4", "status": "no_face"}], schema=ledger.schema)
    pq.write_table(pa.concat_tables([ledger, lost]), faces / "ledger.parquet")
    assert read_manifest(run._faces(config, by_family, {str(faces)})[0]).data_hash == read_manifest(first).data_hash
    assert run._hash_of(run._faces(config, by_family, {str(faces)})[0]) != made

    shutil.rmtree(faces)
    monkeypatch.setattr(run, "preprocess", lambda config: write_face_shards(Path(config.out), families=8, fakes=1, frames=2))
    second, _ = run._faces(config, by_family, set())
    assert len(read_ledger(second)) == 16
    assert len(read_ledger(first)) == 14


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1500)
def test_the_command_itself(corpus: Path, tmp_path: Path) -> None:
    options = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = [
        sys.executable,
        "-m",
        "dfdc_ray.cli",
        "experiments",
        "report",
        "--corpus",
        str(corpus),
        "--out",
        str(tmp_path / "out"),
        *options,
    ]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    done = subprocess.run([*command, "--epochs", "1", "1"], env=environment, capture_output=True, text=True, timeout=1400, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert len(json.loads((tmp_path / "out" / "experiments.json").read_text())["lines"]) == 12
