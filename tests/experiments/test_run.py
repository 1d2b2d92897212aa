"""All experiments in miniature, on a generated corpus; then again, when there is nothing left to do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dfdc_ray.demo.corpus import demo_split, write_corpus

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

FAMILIES = 8


def _run(corpus: Path, out: Path) -> str:
    options = {"split": demo_split(FAMILIES), "weights": "none", "frames": "2", "image-size": "32", "frame-size": "64", "batch-size": "8"}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    command = [sys.executable, "-m", "dfdc_ray.cli", "experiments", "report", "--corpus", str(corpus), "--out", str(out), *words]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    done = subprocess.run([*command, "--epochs", "1", "1"], env=environment, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def test_the_whole_table_in_miniature(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", families=FAMILIES, seed=2, seconds=1.0, test_families=0)
    output = _run(tmp_path / "corpus", tmp_path / "out")
    assert "What the numbers say" in (text := (tmp_path / "out" / "experiments.md").read_text())
    assert "NOT COMPARABLE" in text
    assert "GENERATED CORPUS" in text
    lines = json.loads((tmp_path / "out" / "experiments.json").read_text())["lines"]
    assert len(lines) == 13
    reports = [json.loads(Path(line["report"]).read_text()) for line in lines]
    assert all(report["frame"]["metrics"]["n"] > 0 for report in reports)
    assert "split by frame" in output
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").rglob("*") if path.is_file()}
    again = _run(tmp_path / "corpus", tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").rglob("*") if path.is_file()} == before
    assert "epoch 1 of 1" not in again
