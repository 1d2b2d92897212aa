"""All detectors side by side: which lines there are, what is refused, what they cost; and two of them and their mean for real."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import pytest
from browser import CHROMIUM, check_file
from helpers import import_noise, preprocess_here, write_manifest
from matplotlib.figure import Figure
from seen import HOSTILE, Seen

from dfdc_ray import pages
from dfdc_ray.cli import main
from dfdc_ray.config import CombineConfig, TrainConfig
from dfdc_ray.demo.corpus import write_corpus
from dfdc_ray.errors import UserError
from dfdc_ray.experiments import models_table, run
from dfdc_ray.experiments.config import BonettiniConfig, ModelsConfig
from dfdc_ray.experiments.models import (
    COMBINATIONS,
    Task,
    cannot_be_had,
    chosen,
    combinations,
    macs_a_video,
    preprocessing,
    trainings,
    with_given_faces,
)
from dfdc_ray.models import NAMES, only_side, takes_clips

CONFIG = ModelsConfig(corpus=("/data/dfdc",), out="/out")


def _tasks(config: ModelsConfig, faces_hash: str = "a") -> list[Task]:
    return trainings(config, chosen(config), faces_hash=faces_hash)


def test_every_model_has_a_line_and_every_combination_its_members() -> None:
    tasks = _tasks(CONFIG)
    assert {task.detectors[0].model for task in tasks} == set(NAMES)
    combined = combinations(CONFIG, tasks)
    assert len(combined) == 2 * len(COMBINATIONS)
    assert len({task.key for task in [*tasks, *combined]}) == len(tasks) + len(combined)
    few = [task for task in tasks if task.name in ("resnet34", "framediff_only", "seresnext50")]
    assert [task.name for task in combinations(CONFIG, few)] == ["mean of frames and differences", "logistic of frames and differences"]


def test_the_budget_is_the_same_for_all() -> None:
    for task in _tasks(CONFIG):
        assert isinstance(task.make, TrainConfig)
        pictures = task.make.batch_size * (CONFIG.frames if takes_clips(task.make.model) else 1)
        assert (task.make.epochs, pictures, task.make.faces) == (5, 32, "/out/faces")
        assert task.make.image_size == (only_side(task.make.model) or 224)
    weights = {task.name: task.make.weights for task in _tasks(CONFIG) if isinstance(task.make, TrainConfig)}
    assert (weights["resnet34"], weights["r3d_18"], weights["meso4"]) == ("imagenet", "kinetics", "none")
    assert weights["resnet34_3d-cutmix"] == "imagenet"
    assert {task.make.weights for task in _tasks(replace(CONFIG, weights="none"))} == {"none"}  # type: ignore[union-attr]


def test_a_line_is_made_anew_when_what_decides_it_changes() -> None:
    before = _tasks(CONFIG)[0].key
    for changes in ({"epochs": 6}, {"image_size": 96}, {"split": "hash:1"}, {"seed": 1}):
        assert _tasks(replace(CONFIG, **changes))[0].key != before
    assert _tasks(CONFIG, "b")[0].key != before  # other faces
    moved = replace(CONFIG, out="/elsewhere", gpu=True, cpus_per_worker=4)
    assert _tasks(moved)[0].key == before
    assert [task.key for task in combinations(moved, _tasks(moved))] == [task.key for task in combinations(CONFIG, _tasks(CONFIG))]


def test_bonettini_s_protocol() -> None:
    config = BonettiniConfig(corpus=("/data/dfdc",), out="/out")
    tasks = _tasks(config)
    assert [task.name for task in tasks] == list(COMBINATIONS["four EfficientNets"])
    assert {task.make.split for task in tasks} == {"parts:0-34/35-39/40-49"}  # type: ignore[union-attr]
    faces = preprocessing(config)
    assert (faces.sampling, faces.frames, faces.clips, faces.real_multiplier) == ("spread", 32, None, 1)
    assert {task.make.learning_rate for task in tasks} == {1e-5}  # type: ignore[union-attr]
    mean, logistic = combinations(config, tasks)
    assert isinstance(mean.make, CombineConfig)
    assert isinstance(logistic.make, CombineConfig)
    assert (mean.make.faces, logistic.make.faces) == (None, "/out/faces")


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match=r"no such line\. Known: resnet34; "):
        chosen(replace(CONFIG, detectors=("resnet35",)))
    with pytest.raises(UserError, match="r3d_18 looks at clips: give --sampling clips"):
        chosen(replace(CONFIG, detectors=("r3d_18",), sampling="spread"))
    assert not any(takes_clips(task.detectors[0].model) for task in _tasks(replace(CONFIG, sampling="spread")))


def test_faces_made_before_say_how_they_were_sampled(tmp_path: Path) -> None:
    import_noise(tmp_path / "crops", families=3)
    of_crops = with_given_faces(replace(CONFIG, corpus=(), faces=str(tmp_path / "crops")))
    assert (of_crops.sampling, of_crops.frames, of_crops.real_multiplier) == ("spread", 1, 1)
    assert {task.make.faces for task in _tasks(of_crops)} == {str(tmp_path / "crops")}
    with pytest.raises(UserError, match=r"r3d_18 looks at clips: preprocess --sampling clips makes them, .*crops has none"):
        chosen(replace(of_crops, detectors=("r3d_18",)))
    absent = cannot_be_had(of_crops, chosen(of_crops))
    assert set(absent) == {task.name for task in _tasks(CONFIG) if takes_clips(task.detectors[0].model)} | {"resnet34-self-blended"}
    assert "looks at clips" in absent["r3d_18"]
    assert "import --landmarks" in absent["resnet34-self-blended"]
    (tmp_path / "clips").mkdir()
    write_manifest(
        tmp_path / "clips",
        [{"path": "faces/a.parquet", "rows": 1, "sha256": "0" * 64}],
        {"sampling": "clips", "frames": 16, "clips": 3, "stride": 5, "real_multiplier": 2},
    )
    of_clips = with_given_faces(replace(CONFIG, sampling="spread", faces=str(tmp_path / "clips")))
    assert (of_clips.sampling, of_clips.clips, of_clips.frames, of_clips.stride, of_clips.real_multiplier) == ("clips", 3, 16, 5, 2)
    with pytest.raises(UserError, match="one of the two"):
        run.models(replace(CONFIG, faces="faces"))


def test_first_weights_that_cannot_be_had_are_said_before_preprocessing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(model: object, weights: str) -> None:
        if weights == "kinetics":
            raise UserError("kinetics cannot be fetched")

    monkeypatch.setattr(run, "load_weights", refuse)
    monkeypatch.setattr(run, "preprocess", lambda config: pytest.fail("preprocessing began"))
    with pytest.raises(UserError, match="cannot be fetched"):
        run.models(replace(CONFIG, out=str(tmp_path), detectors=("meso4", "r3d_18")))


def test_cost_of_a_video() -> None:
    """4 clips of 8 frames: 32 pictures for a model of frames, 4 clips for one of time."""
    config = replace(CONFIG, detectors=("resnet34", "framediff_only"))
    frames, differences = _tasks(config)
    assert macs_a_video(frames, config) == pytest.approx(32 * 3.66e9, rel=0.01)
    assert macs_a_video(differences, config) == pytest.approx(4 * 7 * 3.66e9, rel=0.01)  # 7 pairs in 8 frames
    mean = combinations(config, [frames, differences])[0]
    assert macs_a_video(mean, config) == macs_a_video(frames, config) + macs_a_video(differences, config)


def test_an_addition_is_held_against_what_it_was_added_to() -> None:
    """By the difference on the same videos; where groups give no interval, that over families is shown, and an unknown one as unknown."""
    names = ("framediff_frames", "framediff_only", "framediff_only-stabilised")
    lines = []
    for task, shift in zip(_tasks(replace(CONFIG, detectors=names)), (0.0, 0.3, 0.3), strict=True):
        videos = [
            {
                "video_id": f"{n}{label}",
                "group_id": str(n),
                "label": label,
                "method": None,
                "counted_as": n / 60 + (label == "FAKE") * shift,
            }
            for n in range(30)
            for label in ("REAL", "FAKE")
        ]
        level = _level(0.5 + shift) | {"intervals": {"auc": None}, "by_family": {"auc": {"low": 0.4, "high": 0.9}}}
        report = {
            "video": level,
            "protocol": dict.fromkeys(("split_rule", "checkpoint_rule", "data_hash"), "x") | {"videos_scored": 10},
            "warnings": [],
        }
        trained = {
            "history": [{"images_per_s": 2.0, "seconds": 90.0}],
            "train_config": {"weights": "none", "model": task.detectors[0].model},
        }
        lines.append(models_table.Line(task=task, report=report | {"videos": videos}, trained=trained, parameters=1, macs=2e9))
    text = models_table.markdown(CONFIG, lines, {})
    only = next(line for line in text.splitlines() if line.startswith("| framediff_only | framediff_frames |"))
    assert only.startswith("| framediff_only | framediff_frames | +0.300 (+0.")
    assert "| framediff_only-stabilised | framediff_only | +0.000 (+0.000 to +0.000) |" in text
    assert "| framediff_only | 0.800 | 0.400-0.900 | 0.500 |" in text


def _level(auc: float | None) -> dict[str, Any]:
    metrics = {"auc": auc, "log_loss": 0.5, "accuracy": 0.8, "recall_real": 0.6, "recall_fake": 0.9, "n": 10, "reals": 2, "fakes": 8}
    interval = None if auc is None else {"low": auc - 0.1, "high": auc + 0.1}
    return {"metrics": metrics, "intervals": {"auc": interval}, "baselines": {"always_fake": metrics}, "groups": 3, "interval_note": "95 %"}


def test_the_table_and_the_plot() -> None:
    protocol = {"split_rule": "hash:0", "checkpoint_rule": "lowest loss", "data_hash": "0" * 64, "videos_scored": 9}
    lines = []
    for task, auc in zip(_tasks(replace(CONFIG, detectors=("resnet34", "r3d_18"))), (0.75, None), strict=True):
        trained = {
            "history": [{"images_per_s": 2.0, "seconds": 90.0}, {"images_per_s": 3.0, "seconds": 90.0}],
            "train_config": {"weights": "none", "model": task.name},
        }
        found = [("REAL", None, 0.4), ("FAKE", "swap", 0.6), ("FAKE", "sound", 0.4), ("FAKE", "sound", 0.3)]
        videos = [{"label": label, "method": method, "counted_as": score} for label, method, score in found]
        videos = [video | {"video_id": str(n), "group_id": str(n % 2)} for n, video in enumerate(videos)]
        report = {"video": _level(auc), "protocol": protocol, "warnings": [], "videos": videos}
        lines.append(models_table.Line(task=task, report=report, trained=trained, parameters=1000, macs=2e9))
    text = models_table.markdown(CONFIG, lines, {"meso4": "it did not fit"})
    resnet, r3d = (next(line for line in text.splitlines() if line.startswith(f"| {name} |")) for name in ("resnet34", "r3d_18"))
    assert "| 0.750 (0.650-0.850) | - | 0.500" in resnet
    assert resnet.endswith("| none | 1,000 | 2 | 3.0 | 3.0 |")
    assert r3d.endswith("| 24.0 | 3.0 |")  # 3 clips of 8 pictures
    assert "| r3d_18 | - |" in text
    assert "| 9 of 10 |" in resnet  # a video without a score counts at the prior
    assert "| always fake | 0.750 |" in text
    assert "| meso4 | it did not fit |" in text
    assert "| detector | sound (2) | swap (1) |" in text
    assert "| resnet34 | 0.250 | 1.000 |" in text  # a tie is half a success
    nothing = models_table.markdown(CONFIG, [], {"meso4": "it did not fit"})
    assert "it did not fit" in nothing

    picture = models_table.plot(lines)
    assert picture.startswith(b"\x89PNG")
    seen = Seen(models_table.page(CONFIG, lines, {"meso4": HOSTILE}, picture, {}))
    seen.check()
    assert HOSTILE in seen.text
    assert seen.all("img", "src") == [pages.data_uri(picture)]
    assert seen.all("a", "href") == [f"lines/{line.task.key}/report/report.html" for line in lines]
    assert "resnet340.750 (0.650-0.850)" in seen.words
    assert "each checkpoint is that with the lowest loss" in seen.words
    assert "it did not fit" in Seen(models_table.page(CONFIG, [], {"meso4": "it did not fit"}, picture, {})).text


def test_points_of_the_plot_are_numbered_from_the_best_and_share_a_label_where_they_lie_on_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(models_table.plots, "png", lambda figure: drawn.append(figure) or b"")
    where = {"resnet34": (0.9, 2e9), "meso4": (0.9, 2.2e9), "r3d_18": (0.95, 6e9), "chroma": (0.905, 4e9), "seresnext50": (None, 1e9)}
    lines = [
        models_table.Line(task=task, report={"video": _level(where[task.name][0])}, trained={}, parameters=1, macs=where[task.name][1])
        for task in _tasks(replace(CONFIG, detectors=tuple(where)))
    ]
    models_table.plot(lines)
    (figure,) = drawn
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["1  r3d_18  0.950", "2  chroma  0.905", "3  resnet34  0.900", "4  meso4  0.900"]  # without the one that has no AUC
    assert [text.get_text() for text in figure.axes[0].texts] == ["1", "2", "3-4"]


@pytest.mark.ray
@pytest.mark.timeout(400)
def test_the_command_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Two small ones for real on Ray, their combinations, one that cannot be had; then again, with nothing left to do."""
    write_corpus(tmp_path / "corpus", families=6, seed=2, seconds=1.0, test_families=0)
    budget = "--weights none --clips 1 --frames 2 --real-multiplier 1 --image-size 32 --epochs 1 --batch-size 6 --split parts:0/1/2"
    options = ["experiments", "models", "--corpus", str(tmp_path / "corpus"), "--out", str(tmp_path / "out"), *budget.split()]
    options += ["--detectors", "resnet34", "framediff_only"]
    command = [sys.executable, "-m", "dfdc_ray.cli", *options, "efficientnet_b4-siamese"]
    preprocess_here(preprocessing(ModelsConfig(corpus=(options[3],), out=options[5], clips=1, frames=2, real_multiplier=1)))  # found done
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=380, check=False)
    assert done.returncode == 1, done.stdout[-4000:] + done.stderr[-4000:]
    found = json.loads((tmp_path / "out" / "models.json").read_text())
    assert "1 of 5 lines could not be had: efficientnet_b4-siamese." in done.stderr
    names = ["resnet34", "framediff_only", "mean of frames and differences", "logistic of frames and differences"]
    assert [line["name"] for line in found["lines"]] == names
    assert list(found["failed"]) == ["efficientnet_b4-siamese"]
    assert "at least 8 samples" in found["failed"]["efficientnet_b4-siamese"]
    text = (tmp_path / "out" / "models.md").read_text()
    assert all(f"| {name} |" in text for name in [*names, "constant prior", "efficientnet_b4-siamese"])
    assert cv2.imread(str(tmp_path / "out" / "models.png")) is not None
    Seen((tmp_path / "out" / "report.html").read_bytes()).check()
    if CHROMIUM:
        check_file(tmp_path / "out" / "report.html")

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "lines").rglob("*") if path.is_file()}
    assert main([*options[:2], "--faces", f"{options[5]}/faces", *options[4:]]) == 0  # which needs no Ray where nothing is left to do
    again = json.loads((tmp_path / "out" / "models.json").read_text())
    assert (again["lines"], again["failed"]) == (found["lines"], {})
    assert {path: path.stat().st_mtime_ns for path in before} == before
    monkeypatch.setattr(run, "cannot_be_had", lambda *_: {"chroma": "these faces have lost their colours"})
    assert main([*options[:2], "--faces", f"{options[5]}/faces", *options[4:], "chroma"]) == 1  # asked for by name
    assert "1 of 5 lines could not be had: chroma." in capsys.readouterr().err
