"""`bench preprocess`: every way takes the same frames, and the meter counts what ended processes used."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dfdc_ray.bench.config import BenchPreprocessConfig
from dfdc_ray.bench.meter import Meter
from dfdc_ray.bench.preprocess import preprocess
from dfdc_ray.bench.ways import material
from dfdc_ray.config import PreprocessConfig
from dfdc_ray.corpus.index import build_index
from dfdc_ray.errors import UserError
from dfdc_ray.preprocess.plan import units
from dfdc_ray.preprocess.settings import settings_of
from dfdc_ray.preprocess.unit import process_unit, process_video

DFDC_RAY = str(Path(sys.executable).with_name("dfdc-ray"))
BURN = "import time\nwhile time.process_time() < 1.5: pass"


def test_the_meter_counts_a_process_that_has_ended() -> None:
    with Meter() as meter:
        subprocess.run([sys.executable, "-c", BURN], check=True)
    assert 1.1 <= sum(meter.by_role().values()) <= 2.5  # its last quarter of a second may be missed


def test_the_frames_are_those_that_preprocessing_takes(small_corpus: Path, tmp_path: Path) -> None:
    settings = settings_of(PreprocessConfig(corpus=("x",), out="x", frames=3, crop="frame"))
    given = material(units(build_index([str(small_corpus)])[0])[:2], settings, tmp_path)
    for unit in given.units:
        for video in process_unit(unit, lambda v, guide: process_video(v, settings, None, guide)).videos:
            assert [row["frame"] for row in video.faces] == given.wanted[video.ledger["video_id"]]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(240)
def test_all_ways_under_one_roof(small_corpus: Path, tmp_path: Path) -> None:
    command = [DFDC_RAY, "bench", "preprocess", "--corpus", str(small_corpus), "--out", str(tmp_path), "--units", "1", "--repeats", "1"]
    subprocess.run([*command, "--frames", "2", "--real-multiplier", "1"], check=True)  # a process of its own, since Ray stays with it
    rows = {row["way"]: row for row in json.loads((tmp_path / "bench_preprocess.json").read_text())["rows"]}
    assert list(rows) == ["opencv-read", "report", "pyav-full", "parts", "unit", "ray", "ray, 2 workers"]
    assert {(row["videos"], row["families"], row["orphans"]) for row in rows.values()} == {(5, 1, 0)}
    assert {row["frames_sampled"] for row in rows.values()} == {10}
    assert rows["opencv-read"]["frames_with_face"] is None
    assert {rows[way]["frames_with_face"] for way in ("parts", "unit", "ray", "ray, 2 workers")} == {10}
    assert all(row["cpu_seconds"][0] > 0 for row in rows.values())
    assert 0.5 < rows["ray"]["cpu_seconds"][0] / rows["unit"]["cpu_seconds"][0] < 3  # neither start-up nor other copies are counted
    assert 0 < rows["ray"]["ray_share"][0] < 1
    assert rows["unit"]["ray_share"] == []
    assert 100 < rows["ray"]["peak_rss_mb"] < 1500
    assert "report / this" in (tmp_path / "bench_preprocess.md").read_text()


def test_a_corpus_without_whole_families_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metadata.json").write_text(json.dumps({"a.mp4": {"label": "FAKE", "original": "b.mp4"}}))
    with pytest.raises(UserError, match="Nothing to measure"):
        preprocess(BenchPreprocessConfig(corpus=(str(tmp_path),), out=str(tmp_path / "out")))
