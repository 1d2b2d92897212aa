"""Several checkpoints as one: the sum is what it says, the fit is the best by its rule, and what does not go together is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import write_face_shards
from safetensors.torch import load_file

from dfdc_ray.cli import main
from dfdc_ray.errors import UserError
from dfdc_ray.evaluate.combine import PENALTY, fit
from dfdc_ray.evaluate.members import combined, load_members, mean, save
from dfdc_ray.evaluate.scorer import Scorer, load_scorer, score_rows
from dfdc_ray.faces.crop import encode
from dfdc_ray.models import create_model
from dfdc_ray.shards.manifest import read_manifest
from dfdc_ray.shards.rows import samples_of
from dfdc_ray.train import checkpoint, transforms

PICTURES = [encode(np.random.default_rng(n).integers(0, 255, (90, 70, 3)).astype(np.uint8), "png") for n in range(3)]


def _checkpoint(folder: Path, model: str, side: int, seed: int, **changes: Any) -> str:
    torch.manual_seed(seed)
    network = create_model(model)
    with torch.no_grad():  # random weights give nearly the same logit for everything
        for name, weight in network.named_parameters():
            if name.endswith(("classify.weight", "fc.weight")):
                weight.mul_(50)
    config = {
        "model": model,
        "transform": transforms.recipe(side, model),
        "split": "parts:0-5/6/7-9",
        "train_groups": [f"c/part:{seed}"],
        "validation_groups": ["c/part:6"],
        "prior": 0.6 + 0.1 * seed,
        "data_hash": "0" * 64,
        "faces_config": {"margin": 0.3, "frames": 4 + seed},
        "selection": "lowest validation video log loss",
        "epoch": seed,
        "versions": {},
    }
    checkpoint.save(str(folder), weights=network.state_dict(), config=config | changes, state=None)
    return str(folder)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Of different models and sizes."""
    folder = tmp_path_factory.mktemp("two")
    return _checkpoint(folder / "a", "meso4", 256, 1), _checkpoint(folder / "b", "resnet34", 64, 2)


def _logits(scorer: Scorer) -> np.ndarray:
    scores = scorer.score([[picture] for picture in PICTURES])
    return np.log(scores / (1 - scores))


def test_the_mean_is_of_logits(two: tuple[str, str]) -> None:
    a, b = (_logits(load_scorer(uri)) for uri in two)
    assert np.ptp(a) > 0.01
    assert _logits(load_scorer(*two)) == pytest.approx((a + b) / 2, abs=1e-5)


def test_a_saved_combination_is_a_checkpoint_like_any_other(two: tuple[str, str], tmp_path: Path) -> None:
    a, b = (_logits(load_scorer(uri)) for uri in two)
    save(str(tmp_path / "both"), combined([load_members(uri) for uri in two], [2.0, -0.5], 0.25, how="logistic combination"))
    again = load_scorer(str(tmp_path / "both"))
    assert _logits(again) == pytest.approx(2 * a - 0.5 * b + 0.25, abs=1e-4)
    assert again.config["train_groups"] == ["c/part:1", "c/part:2"]
    assert again.config["prior"] == pytest.approx(0.75)
    assert again.config["model"] == "logistic combination of meso4, resnet34"
    assert checkpoint.seen_by(str(tmp_path / "both" / "model.safetensors"))["train_groups"] == ["c/part:1", "c/part:2"]

    nested = mean([load_members(str(tmp_path / "both")), load_members(two[0])])
    assert _logits(Scorer(nested)) == pytest.approx((2 * a - 0.5 * b + 0.25 + a) / 2, abs=1e-4)


def test_a_member_that_was_fitted_by_a_rule_brings_it_along(two: tuple[str, str]) -> None:
    fitted, other = (load_members(uri) for uri in two)
    fitted.config["rule"] = "mean_logit"
    for members in ([fitted, other], [other, fitted]):
        assert Scorer(mean(members)).rule == "mean_logit"
    assert Scorer(mean([other, other])).rule == "mean"


def test_on_clips_a_model_of_frames_gives_the_mean_of_its_logits(two: tuple[str, str], tmp_path: Path) -> None:
    over_time = _checkpoint(tmp_path / "c", "r3d_18", 32, 1)
    scores = load_scorer(over_time).score([PICTURES])
    both = load_scorer(two[1], over_time)
    assert both.clips
    together = both.score([PICTURES])[0]
    frames = _logits(load_scorer(two[1])).mean()
    assert np.log(together / (1 - together)) == pytest.approx((frames + np.log(scores[0] / (1 - scores[0]))) / 2, abs=1e-4)


def test_a_model_that_listens_hears_the_same_in_shards_and_in_files(two: tuple[str, str], tmp_path: Path) -> None:
    """Also beside one that only looks."""
    faces = read_manifest(str(write_face_shards(tmp_path / "f", families=2, frames=4, multiplier=1, clip=4, size=64, sound=True)))
    listening = _checkpoint(tmp_path / "c", "av_sync", 64, 1)
    rows = [row for file in faces.files for row in pq.read_table(file.uri).to_pylist()]
    clips = [rows[at : at + 4] for at in range(0, len(rows), 4)]
    for checkpoints in ((listening,), (listening, two[1])):
        scorer = load_scorer(*checkpoints)
        assert scorer.sound
        in_shards = score_rows(scorer, samples_of(faces, clips=True, sound=True), batch_size=8)
        pictures, sound = (
            [[get(row) for row in clip] for clip in clips] for get in (lambda row: row["image"]["bytes"], lambda row: row["sound"])
        )
        assert scorer.score(pictures, sound) == pytest.approx(in_shards, abs=1e-6)
        assert np.ptp(in_shards) > 0


def test_weights_of_another_model_are_refused(two: tuple[str, str], tmp_path: Path) -> None:
    single = checkpoint.load(two[0])
    checkpoint.save(str(tmp_path / "other"), weights=single.weights, config=single.config | {"model": "resnet34"}, state=None)
    save(str(tmp_path / "both"), mean([load_members(uri) for uri in two]))
    both = checkpoint.load(str(tmp_path / "both"))
    config = both.config | {"members": both.config["members"][::-1]}
    checkpoint.save(str(tmp_path / "turned"), weights=both.weights, config=config, state=None)
    for name in ("other", "turned"):
        with pytest.raises(UserError, match=f"{name}: the weights do not fit ResNet34"):
            load_members(str(tmp_path / name))


def test_what_does_not_go_together_is_refused(two: tuple[str, str], tmp_path: Path) -> None:
    other = _checkpoint(tmp_path / "split", "meso4", 256, 3, split="hash:1")
    with pytest.raises(UserError, match="different splits"):
        load_scorer(two[0], other)
    other = _checkpoint(tmp_path / "faces", "meso4", 256, 3, faces_config={"margin": 0.1, "frames": 4})
    with pytest.raises(UserError, match=r"different ways \(margin\)"):
        load_scorer(two[0], other)
    load_scorer(two[0], _checkpoint(tmp_path / "landmarks", "meso4", 256, 3, faces_config={"margin": 0.3, "landmarks": "centerface"}))
    with pytest.raises(UserError, match="No checkpoint is given"):
        load_scorer()
    older = checkpoint.load(two[1])
    config = {name: value for name, value in older.config.items() if name != "validation_groups"}
    checkpoint.save(str(tmp_path / "older"), weights=older.weights, config=config, state=None)
    with pytest.raises(UserError, match="resnet34 is of an older version, without validation_groups"):
        load_scorer(two[0], str(tmp_path / "older"))


def test_the_fit_is_the_best_by_its_rule() -> None:
    """No small change makes loss plus penalty smaller; more of what tells the classes apart counts more."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    logits = np.stack([2 * labels - 1 + rng.normal(0, 1, 200), rng.normal(0, 1, 200)])

    def objective(weights: np.ndarray, bias: float) -> float:
        z = weights @ logits + bias
        return float(np.sum(np.logaddexp(0, z) - labels * z) + PENALTY / 2 * ((weights - 0.5) ** 2).sum())

    weights, bias = fit(logits, labels)
    best = objective(np.array(weights), bias)
    for change in np.eye(3) * 1e-3:
        for sign in (1, -1):
            assert objective(np.array(weights) + sign * change[:2], bias + sign * change[2]) > best
    assert weights[0] > 1.5
    assert abs(weights[1]) < 0.3


def test_few_videos_leave_the_weights_near_the_mean() -> None:
    logits, labels = np.array([[2.0, 1.0, -1.0, -2.0], [0.5, -0.5, 0.5, -0.5]]), np.array([1, 1, 0, 0])
    few, more, many = (fit(np.tile(logits, times), np.tile(labels, times))[0] for times in (1, 10, 1000))
    assert 0.5 < few[0] < 1.5
    assert few[0] < more[0] < many[0]
    assert many[0] > 3


def test_what_is_left_out_of_the_command_is_asked_for(two: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["combine", "--checkpoint", two[0], "--out", str(tmp_path / "x")]) == 1
    assert "at least two checkpoints" in capsys.readouterr().err
    both = ["--checkpoint", two[0], "--checkpoint", two[1]]
    assert main(["combine", *both, "--out", str(tmp_path / "x"), "--by", "logistic"]) == 1
    assert "--faces" in capsys.readouterr().err
    assert main(["combine", *both, "--out", str(tmp_path / "x")]) == 0
    assert "+0.500 x" in capsys.readouterr().out
    weights = load_file(tmp_path / "x" / "model.safetensors")
    assert weights.pop("sum").tolist() == [0.5, 0.5, 0.0]
    assert {name[:2] for name in weights} == {"0.", "1."}

    again = ["--checkpoint", str(tmp_path / "x"), "--checkpoint", two[0]]
    assert main(["combine", *again, "--out", str(tmp_path / "x")]) == 1
    assert "is one of the checkpoints" in capsys.readouterr().err
    assert main(["combine", *again, "--out", str(tmp_path / "y")]) == 0
    assert f"+0.500 x {two[0]}" in capsys.readouterr().out


def test_nothing_but_a_combination_is_replaced(two: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["combine", "--checkpoint", two[0], "--checkpoint", two[1], "--out"]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("mine")
    single = _checkpoint(tmp_path / "single", "meso4", 256, 1)
    for out in (str(tmp_path / "notes"), single, str(tmp_path)):
        assert main([*command, out]) == 1
        assert "is no combination or holds more than one" in capsys.readouterr().err
    assert (tmp_path / "notes" / "notes.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    for _ in range(2):
        assert main([*command, str(tmp_path / "empty")]) == 0
        (tmp_path / "empty" / "calibration.json").write_text("{}")
    (tmp_path / "empty" / "report").mkdir()
    (tmp_path / "file").write_text("null")
    for out in (str(tmp_path / "empty"), str(tmp_path / "file")):
        assert main([*command, out]) == 1
        assert "is no combination or holds more than one" in capsys.readouterr().err


def test_a_calibration_belongs_to_one_sum(two: tuple[str, str], tmp_path: Path) -> None:
    loaded = [load_members(uri) for uri in two]
    for name, weights in (("a", [0.5, 0.5]), ("b", [0.5, 0.4])):
        save(str(tmp_path / name), combined(loaded, weights, 0.0, how="sum"))
    first, second = (checkpoint.load(str(tmp_path / name)).config["files"] for name in ("a", "b"))
    assert first != second
