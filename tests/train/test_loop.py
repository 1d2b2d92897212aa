"""The loop in one process: it learns, resumes exactly, and says what must be put right."""

import json
import math
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import write_face_shards
from safetensors.torch import load_file, save_file
from torch import nn

from dfdc_ray.config import Balance, TrainConfig
from dfdc_ray.errors import UserError
from dfdc_ray.shards.schema import FACES
from dfdc_ray.shards.write import parquet_bytes
from dfdc_ray.train import checkpoint, loop
from dfdc_ray.train.loop import train_loop
from dfdc_ray.train.plan import checkpoints, describe, loaders, prepare
from dfdc_ray.train.validation import metrics

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")  # torchvision's own v2.JPEG


class Tiny(nn.Module):
    """Convolution, batch norm, dropout: all that resuming must get right, in a millisecond."""

    HEAD = ("fc.",)
    CHANNELS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    SIDE = None
    CLIPS = False

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1))
        self.fc = nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(x).mean((2, 3)))[:, 0]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfdc_ray.models.resnet34.ResNet34", Tiny)


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_face_shards(tmp_path_factory.mktemp("loop") / "faces"))


@pytest.fixture
def config(faces: str, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        faces=faces,
        out=str(tmp_path / "out"),
        split="parts:0-5/6-7/8-9",
        weights="none",
        epochs=3,
        batch_size=16,
        image_size=32,
        learning_rate=1e-2,
    )


class Killed(Exception):
    pass


def _train(config: TrainConfig, monkeypatch: pytest.MonkeyPatch, *, until: int | None = None) -> tuple[list[dict[str, Any]], int]:
    """The history, and how many optimizer steps it took. until: die after so many, as a kill between two steps would."""
    real, done = loop.step, [0]

    def stepping(*args: Any, **options: Any) -> torch.Tensor:
        if done[0] == until:
            raise Killed
        done[0] += 1
        return real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "step", stepping)
        return train_loop(config, prepare(config)), done[0]


def test_learns_what_can_be_learnt(config: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    plan = prepare(config)
    describe(plan, config)
    history = train_loop(config, plan)
    assert [entry["epoch"] for entry in history] == [1, 2, 3]
    assert history[-1]["frame_auc"] == history[-1]["video_auc"] == 1.0
    assert history[-1]["video_log_loss"] < 0.3
    assert "epoch 3 of 3 done" in capsys.readouterr().out
    assert list((Path(config.out) / "tensorboard").iterdir())

    saved = checkpoint.load(f"{config.out}/best").config
    assert saved["prior"] == pytest.approx(12 / 18)
    assert saved["train_groups"] == [f"toy/part-{i}" for i in range(6)]
    assert len(saved["train_families"]) == 6
    assert saved["split"] == config.split
    assert saved["faces_config"] == {"frames": 4}
    assert saved["validation"] == min(history, key=lambda e: e["video_log_loss"])
    assert saved["transform"]["image_size"] == 32
    assert not (Path(config.out) / "best" / "state.pt").exists()
    assert len(list(Path(checkpoints(config)).iterdir())) == 2
    assert prepare(config).finished


def test_a_model_that_listens_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what it was fitted to before its first step."""
    faces = write_face_shards(tmp_path / "faces", families=8, fakes=1, frames=8, multiplier=1, clip=4, sound=True)
    config = TrainConfig(
        faces=str(faces),
        out=str(tmp_path / "out"),
        split="parts:0-5/6/7",
        model="mfcc_lstm",
        weights="none",
        epochs=2,
        batch_size=8,
        image_size=32,
    )
    expected = train_loop(config, prepare(config))
    saved = checkpoint.load(f"{config.out}/best").weights
    assert not torch.equal(saved["components"], torch.eye(*saved["components"].shape))
    cut = replace(config, out=str(tmp_path / "cut"), checkpoint_minutes=1e-9)
    with pytest.raises(Killed):
        _train(cut, monkeypatch, until=4)
    history, steps = _train(cut, monkeypatch)
    assert steps == expected[-1]["step"] - 4
    assert [entry["train_loss"] for entry in history] == [entry["train_loss"] for entry in expected]
    again = checkpoint.load(f"{cut.out}/best").weights
    assert all(torch.equal(saved[name], again[name]) for name in saved)


def test_videos_left_out_for_want_of_sound_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faces = write_face_shards(tmp_path / "faces", families=4, fakes=2, frames=4, multiplier=1, clip=4, sound=True)
    file = sorted((faces / "faces").iterdir())[0]
    rows = pq.read_table(file).to_pylist()
    for row in rows:
        row |= {"has_sound": row["video_id"] == "toy/f00v0.mp4"}  # not the family's fakes
    file.write_bytes(parquet_bytes([rows], FACES))
    common = {"faces": str(faces), "out": str(tmp_path / "out"), "split": "parts:0-1/2/3", "weights": "none", "image_size": 32}
    config = TrainConfig(model="av_sync", batch_size=4, **common)
    plan = prepare(config)
    assert (plan.unheard, plan.counts["train"].fake_videos) == (2, 2)
    describe(plan, config)
    assert "Left out for want of sound, to which --model av_sync listens: 2 labelled videos" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kill_at", "changes"),
    [
        (6, {}),
        (9, {"objective": "l2", "balance": "sample"}),
        (8, {"balance": "groups"}),
        (7, {"objective": "triplet"}),
        (7, {"self_blend": 0.5}),
        (7, {"cutmix": 0.5}),
        (9, {"checkpoint_minutes": 15.0}),  # none since the first epoch
    ],
)
def test_resumes_exactly(config: TrainConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kill_at: int, changes: dict) -> None:
    """Killed at the start or in the middle of the second epoch (6 steps each), then run again: the same weights as without."""
    config = replace(config, epochs=2, **changes)
    expected = train_loop(config, prepare(config))

    cut = replace(config, out=str(tmp_path / "cut"), **{"checkpoint_minutes": 1e-9} | changes)
    with pytest.raises(Killed):
        _train(cut, monkeypatch, until=kill_at)
    newest = kill_at if cut.checkpoint_minutes < 1 else 6
    assert checkpoint.newest(checkpoints(cut)).config["step"] == newest  # type: ignore[union-attr]
    before = checkpoint.newest(checkpoints(cut)).state["seconds"]  # type: ignore[union-attr,index]
    history, steps = _train(cut, monkeypatch)
    assert steps == 12 - newest
    assert history[-1]["seconds"] > before  # what was spent on the epoch before the kill counts

    for entry in [*history, *expected]:
        del entry["images_per_s"], entry["data_wait"], entry["seconds"]
    assert history == expected
    for where in (lambda c: checkpoint.newest(checkpoints(c)), lambda c: checkpoint.load(f"{c.out}/best")):
        whole, resumed = where(config), where(cut)
        assert all(torch.equal(whole.weights[k], resumed.weights[k]) for k in whole.weights)


_KILLED = """
import json, os, signal, sys
from dfdc_ray.config import TrainConfig
from dfdc_ray.train import loop
from dfdc_ray.train.plan import prepare

config, real, done = TrainConfig(**json.loads(sys.argv[1])), loop.step, []

def step(*args, **options):
    if len(done) == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(1)
    return real(*args, **options)

loop.step = step
loop.train_loop(config, prepare(config))
"""


@pytest.mark.parametrize("minutes", [1e-9, pytest.param(15.0, marks=pytest.mark.slow)])
def test_a_process_that_is_killed_and_started_again_ends_with_the_same_weights(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: float
) -> None:
    """By SIGKILL in the third step of the second epoch; with a checkpoint of every step, and with none since the first epoch."""
    config = replace(config, model="meso4", image_size=256, epochs=2, loader_workers=0)
    train_loop(config, prepare(config))
    cut = replace(config, out=str(tmp_path / "cut"), checkpoint_minutes=minutes)
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, json.dumps(asdict(cut))], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    newest = 8 if minutes < 1 else 6
    assert checkpoint.newest(checkpoints(cut)).config["step"] == newest  # type: ignore[union-attr]
    assert _train(cut, monkeypatch)[1] == 12 - newest
    whole, resumed = (checkpoint.newest(checkpoints(c)).weights for c in (config, cut))  # type: ignore[union-attr]
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


class TinyOverTime(Tiny):
    """The same, on the mean over a clip's frames."""

    CLIPS = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.mean(1))


def test_learns_from_clips(config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfdc_ray.models.video_resnet.R3D18", TinyOverTime)
    faces = write_face_shards(tmp_path / "clips", frames=6, clip=3)
    config = replace(config, faces=str(faces), model="r3d_18", batch_size=8)
    plan = prepare(config)
    assert plan.train.clip_length == 3
    assert (plan.counts["train"].real_rows, plan.counts["train"].fake_rows) == (6 * 4, 12 * 2)
    history = train_loop(config, plan)
    assert history[-1]["video_auc"] == 1.0
    with pytest.raises(UserError, match="--sampling clips"):
        prepare(replace(config, faces=str(write_face_shards(tmp_path / "frames"))))


def test_resumes_from_the_one_before_when_the_newest_is_damaged(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train_loop(config, prepare(config))
    newest = Path(checkpoint.newest(checkpoints(config)).uri)  # type: ignore[union-attr]
    (newest / "model.safetensors").write_bytes(b"cut off")
    assert not prepare(config).finished
    history, steps = _train(config, monkeypatch)
    assert steps == 6  # of the last epoch
    assert history[-1]["video_log_loss"] == first[-1]["video_log_loss"]


def test_a_run_that_goes_on_in_another_precision_says_so(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """As on a machine of another kind. The checkpoint keeps what it was made with."""
    config = replace(config, epochs=2, checkpoint_minutes=1e-9)
    monkeypatch.setattr(loop, "precision", lambda model, device: "float32")
    with pytest.raises(Killed):
        _train(config, monkeypatch, until=8)
    assert {name: checkpoint.load(f"{config.out}/best").config[name] for name in ("device", "precision")} == {
        "device": "cpu",
        "precision": "float32",
    }
    assert "Goes on on" not in capsys.readouterr().out
    monkeypatch.setattr(loop, "precision", lambda model, device: "bf16")
    train_loop(config, prepare(config))
    assert "Goes on on cpu in bf16; so far it was on cpu in float32" in capsys.readouterr().out


def test_another_configuration_is_refused_by_name(config: TrainConfig, faces: str, tmp_path: Path) -> None:
    train_loop(replace(config, epochs=1), prepare(replace(config, epochs=1)))
    with pytest.raises(UserError, match="--epochs: 1 there, 3 now"):
        prepare(config)
    with pytest.raises(UserError, match=r"--learning-rate: 0\.01 there, 0.5 now"):
        prepare(replace(config, epochs=1, learning_rate=0.5))
    others = write_face_shards(tmp_path / "others", frames=5)
    with pytest.raises(UserError, match="data hash"):
        prepare(replace(config, epochs=1, faces=str(others)))
    assert prepare(replace(config, epochs=1, workers=2, loader_workers=1, cpus_per_worker=2, checkpoint_minutes=1)).finished


def test_a_run_of_an_older_version_whose_model_was_another_is_refused(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    class Older(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 2)

    with pytest.raises(Killed):
        _train(config, monkeypatch, until=8)
    monkeypatch.setattr("dfdc_ray.models.resnet34.ResNet34", Older)
    with pytest.raises(UserError, match="do not fit Older"):
        train_loop(config, prepare(config))


def test_weights_of_an_earlier_training_bring_along_what_it_saw(
    config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained on one split, then further on another: what either trained on, or was chosen by, must never be judged."""
    earlier = replace(config, out=str(tmp_path / "earlier"), epochs=1)
    train_loop(earlier, prepare(earlier))
    copy = shutil.copy(f"{earlier.out}/best/model.safetensors", tmp_path / "copy.safetensors")  # the file says it, wherever it is
    further = replace(config, weights=str(copy), epochs=1)
    with pytest.raises(UserError, match=r"trained on 4 of the groups .* into test, such as toy/part-0.*\(parts:0-5/6-7/8-9\)"):
        prepare(replace(further, split="parts:4-7/8-9/0-3"))
    with pytest.raises(UserError, match=r"trained on 2 of the groups .* into validation"):
        prepare(replace(further, split="parts:6-9/4-5/0-3"))
    with pytest.raises(UserError, match=r"chosen by 2 of the groups .* into test"):
        prepare(replace(further, split="parts:0-5/8-9/6-7"))
    assert "cannot be checked" not in capsys.readouterr().out
    others = json.dumps({"train_groups": ["others/part-0"], "split": "hash:0"})
    save_file(load_file(copy), tmp_path / "others.safetensors", {"dfdc_ray": others})
    assert len(prepare(replace(further, weights=str(tmp_path / "others.safetensors"))).seen["train_groups"]) == 7
    assert "cannot be checked" in capsys.readouterr().out

    known = checkpoint.load(f"{earlier.out}/best").config["validation_families"]
    renamed = json.dumps({"train_groups": ["others/part-0"], "train_families": known[:1], "split": "hash:0"})
    save_file(load_file(copy), tmp_path / "renamed.safetensors", {"dfdc_ray": renamed})
    with pytest.raises(UserError, match=r"trained on 1 of the families .* into validation"):  # the same videos under other groups
        prepare(replace(further, weights=str(tmp_path / "renamed.safetensors")))

    fewer = replace(further, groups=3)
    train_loop(fewer, prepare(fewer))
    saved = checkpoint.load(f"{fewer.out}/best").config
    assert saved["train_groups"] == [f"toy/part-{i}" for i in range(6)]
    assert prepare(fewer).seen["train_groups"] == saved["train_groups"]  # also where the run is gone on with
    others = json.dumps({"train_groups": ["others/a"], "validation_groups": ["others/b"], "split": "hash:0"})
    save_file(load_file(copy), tmp_path / "chosen.safetensors", {"dfdc_ray": others})
    chosen = replace(further, weights=str(tmp_path / "chosen.safetensors"), out=str(tmp_path / "chosen"))
    assert set(prepare(chosen).seen["validation_groups"]) == {"others/b", "toy/part-6", "toy/part-7"}
    assert len(prepare(replace(fewer, out=str(tmp_path / "new"), weights="none")).seen["train_groups"]) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "parts:0-5/10/6-9"}, "validation has no face"),
        ({"split": "parts:10/0-5/6-9"}, "training has no face"),
        ({"split": "parts:0-5"}, "split rule"),
        ({"batch_size": 15, "workers": 2}, "does not divide"),
        ({"model": "resnet35"}, "no such model"),
        ({"epochs": 0}, "at least 1"),
        ({"seed": -1}, "--seed -1: at least 0"),
        ({"weight_decay": -0.1}, "--weight-decay -0.1: at least 0"),
        ({"loader_workers": -1}, "must not be negative"),
        ({"image_size": 8}, "at least 32"),
        ({"image_size": 32, "batch_size": 1}, "batch normalisation nothing to compare"),
        ({"weights": "absent.pth"}, "no such file"),
        ({"ingest_actors": -1}, "must not be negative"),
        ({"self_blend": 1.0}, "a share of the reals"),
        ({"self_blend": 0.5, "model": "r3d_18"}, "single frames"),
        ({"stabilise": True}, "looks at single frames"),
        ({"cutmix": 1.5}, "a share of the steps"),
        ({"cutmix": 0.5, "objective": "triplet"}, "give one of them"),
        ({"cutmix": 0.5, "model": "av_sync"}, "mixes pictures and no sound"),
        ({"cutmix": 0.5, "batch_size": 2, "workers": 2, "image_size": 64}, "at least 2 samples a worker"),
        ({"model": "av_sync"}, "--sampling clips --sound"),
        ({"objective": "triplet", "batch_size": 12, "workers": 2}, "wants at least 8 samples a worker"),
        ({"ingest_actors": 1, "loader_workers": 1}, "Leave those out"),
        ({"ingest_actors": 1, "cache": "cache"}, "Leave those out"),
    ],
)
def test_what_must_be_put_right(config: TrainConfig, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare(replace(config, **changes))


def test_loader_processes_that_nobody_asked_for(config: TrainConfig) -> None:
    given = replace(config, cpus_per_worker=3)
    assert [loaders(replace(given, gpu=gpu)) for gpu in (False, True)] == [0, 3]
    assert loaders(replace(given, gpu=True, loader_workers=0)) == 0


@pytest.mark.parametrize(("labels", "message"), [(("REAL", "REAL"), "one class only"), ((None, None), "no labelled face")])
def test_labels_that_cannot_be_trained_on(config: TrainConfig, tmp_path: Path, labels: tuple, message: str) -> None:
    folder = write_face_shards(tmp_path / "f", labels=labels)
    with pytest.raises(UserError, match=message):
        prepare(replace(config, faces=str(folder)))


@pytest.mark.parametrize("balance", ["frames", "sample", "groups", "none"])
def test_self_blended_fakes_are_enough(config: TrainConfig, tmp_path: Path, balance: Balance, capsys: pytest.CaptureFixture[str]) -> None:
    """As their authors train: on reals alone."""
    reals = replace(config, faces=str(write_face_shards(tmp_path / "reals", fakes=0)), epochs=1, self_blend=0.25, balance=balance)
    plan = prepare(reals)
    assert (plan.prior, plan.drawn[balance][1]) == (0.25, 0)
    describe(plan, reals)
    assert "Of the training videos 0.0% are fake" in capsys.readouterr().out
    (epoch,) = train_loop(reals, plan)
    assert epoch["video_auc"] is None
    assert checkpoint.load(f"{reals.out}/best").config["prior"] == 0.25
    with pytest.raises(UserError, match="one class only"):
        prepare(replace(reals, self_blend=0.0))
    mixed = replace(config, out=str(tmp_path / "mixed"), self_blend=0.25, balance=balance)
    assert prepare(mixed).prior == pytest.approx(12 / 18)  # of the videos, as without


def test_rows_by_balance(config: TrainConfig) -> None:
    frames, core = prepare(config), prepare(replace(config, balance="none"))
    assert (frames.counts["train"].real_rows, frames.counts["train"].fake_rows) == (48, 48)
    assert (core.counts["train"].real_rows, core.counts["train"].fake_rows) == (24, 48)
    assert frames.drawn == {"frames": (48, 48), "sample": (48, 48), "groups": (48, 48), "none": (24, 48)}
    assert frames.validation.column("core").all()
    assert len(frames.validation) == 2 * 3 * 4


def test_only_some_groups_for_a_learning_curve(config: TrainConfig) -> None:
    two, four = (
        set(prepare(replace(config, groups=count, seed=count)).seen["train_groups"]) for count in (2, 4)
    )  # other seeds, the same groups
    assert (len(two), len(four)) == (2, 4)
    assert two < four < set(prepare(config).seen["train_groups"])
    for count in (0, 7):
        with pytest.raises(UserError, match=f"--groups {count}: the training split .* has 6"):
            prepare(replace(config, groups=count))


def test_divergence_is_reported(config: TrainConfig) -> None:
    with pytest.raises(UserError, match="no longer finite"):
        train_loop(replace(config, learning_rate=1e30), prepare(config))


def test_video_metrics() -> None:
    """Videos 7 (real: 0.5, 0.25), 2 (fake: 0.5), 9 (fake: 0.75), by hand."""
    logits = np.log([1, 1 / 3, 1, 3])
    found = metrics(logits, np.array([0, 0, 1, 1]), np.array([7, 7, 2, 9]))
    assert found["video_log_loss"] == pytest.approx(-(math.log(1 - 0.375) + math.log(0.5) + math.log(0.75)) / 3)
    assert found["frame_log_loss"] == pytest.approx(-(math.log(0.5) + math.log(0.75) + math.log(0.5) + math.log(0.75)) / 4)
    assert found["video_auc"] == 1.0
    assert found["frame_auc"] == pytest.approx(3.5 / 4)
    assert metrics(logits, np.ones(4), np.arange(4))["video_auc"] is None
