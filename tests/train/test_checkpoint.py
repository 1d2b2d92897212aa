"""Checkpoints: whole or not at all, and refused when damaged."""

import json
import os
from pathlib import Path

import pytest
import torch

from dfdc_ray.errors import UserError
from dfdc_ray.train import checkpoint

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)}
CONFIG = {"model": "resnet34", "epoch": 1}
STATE = {"optimizer": {"state": {0: {"step": torch.tensor(3.0)}}}, "samples": 64}


def _save(path: Path, **changes: object) -> str:
    checkpoint.save(str(path), weights=WEIGHTS, config=CONFIG | changes, state=STATE)
    return str(path)


def test_round_trip(tmp_path: Path) -> None:
    loaded = checkpoint.load(_save(tmp_path / "c"), with_state=True)
    assert loaded.weights.keys() == WEIGHTS.keys()
    assert all(torch.equal(loaded.weights[k], WEIGHTS[k]) for k in WEIGHTS)
    assert loaded.config["epoch"] == 1
    assert loaded.state == STATE
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_replaces(tmp_path: Path) -> None:
    _save(tmp_path / "c")
    assert checkpoint.load(_save(tmp_path / "c", epoch=2)).config["epoch"] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_a_replacement_that_was_cut_off_is_mended(tmp_path: Path) -> None:
    _save(tmp_path / "c")
    os.rename(tmp_path / "c", tmp_path / ".c.old")
    (tmp_path / ".c.new").mkdir()
    checkpoint.mend(str(tmp_path / "c"))
    assert checkpoint.load(str(tmp_path / "c")).config["epoch"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt"])
def test_damaged_files_are_refused(tmp_path: Path, name: str) -> None:
    uri = _save(tmp_path / "c")
    data = bytearray((tmp_path / "c" / name).read_bytes())
    data[-1] ^= 1
    (tmp_path / "c" / name).write_bytes(data)
    with pytest.raises(UserError, match=f"{name} is damaged"):
        checkpoint.load(uri, with_state=True)


def test_absent_and_unknown(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a whole checkpoint"):
        checkpoint.load(str(tmp_path / "none"))
    uri = _save(tmp_path / "c")
    path = tmp_path / "c" / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"format": 7}))
    with pytest.raises(UserError, match="format 7"):
        checkpoint.load(uri)
    path.write_text("{")
    with pytest.raises(UserError, match=r"config.json is damaged"):
        checkpoint.load(uri)


def test_newest_passes_by_broken_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert checkpoint.newest(str(tmp_path / "absent")) is None
    for step in (5, 40, 300):
        _save(tmp_path / checkpoint.step_name(step), step=step)
    (tmp_path / checkpoint.step_name(300) / "state.pt").unlink()
    found = checkpoint.newest(str(tmp_path))
    assert found is not None
    assert found.config["step"] == 40
    assert "broken" in capsys.readouterr().out


def test_prune_keeps_the_newest(tmp_path: Path) -> None:
    for step in (5, 40, 300):
        _save(tmp_path / checkpoint.step_name(step))
    (tmp_path / ".step-000000007.new").mkdir()
    checkpoint.prune(str(tmp_path), last=checkpoint.step_name(300), keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000040", "step-000000300"]


def test_prune_counts_whole_ones(tmp_path: Path) -> None:
    """A run that went on from step 50, since writing 100 was cut off: 50 stays, in case 103 is damaged."""
    for step in (50, 100, 103):
        _save(tmp_path / checkpoint.step_name(step))
    (tmp_path / checkpoint.step_name(100) / "config.json").unlink()
    checkpoint.prune(str(tmp_path), last=checkpoint.step_name(103), keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000050", "step-000000103"]


def test_prune_never_takes_what_was_just_saved_for_old(tmp_path: Path) -> None:
    """A run that went on from step 200, since 300 was broken: the broken one is not counted as one of the two that are kept."""
    for step in (100, 200, 300):
        _save(tmp_path / checkpoint.step_name(step))
    (tmp_path / checkpoint.step_name(300) / "model.safetensors").write_bytes(b"")
    _save(tmp_path / checkpoint.step_name(240))
    checkpoint.prune(str(tmp_path), last=checkpoint.step_name(240), keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000200", "step-000000240"]
