"""What `bench scale` measures: the whole of preprocess but for the videos, on a small index."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dfdc_ray.bench import scale as bench
from dfdc_ray.bench.config import BenchScaleConfig
from dfdc_ray.corpus.index import INDEX
from dfdc_ray.errors import UserError
from dfdc_ray.shards.manifest import read_ledger, read_manifest

FAMILIES = 60
LIST = [
    {"video": "r.mp4", "label": "REAL", "original": None, "part": -1, "n_frames": 300},
    {"video": "f.mp4", "label": "FAKE", "original": "r.mp4", "part": 7, "n_frames": 300},
    {"video": "g.mp4", "label": "FAKE", "original": "absent.mp4", "part": -1, "n_frames": 300},
]


@pytest.fixture
def index_file(tmp_path, index_row) -> str:
    """An index of 60 families: a real video and a fake each, and a fake without its original."""
    rows = [index_row(f"r{i:02d}.mp4") for i in range(FAMILIES - 1)]
    rows += [index_row(f"f{i:02d}.mp4", original=f"r{i:02d}.mp4") for i in range(FAMILIES)]
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX), tmp_path / "index.parquet")
    return str(tmp_path / "index.parquet")


def test_a_list_of_videos_becomes_an_index(tmp_path):
    pq.write_table(pa.Table.from_pylist(LIST), tmp_path / "list.parquet")
    index = bench.read_index(str(tmp_path / "list.parquet"))
    assert index.schema == INDEX
    rows = {row["video_id"]: row for row in index.to_pylist()}
    assert rows["dfdc/f.mp4"]["original"] == rows["dfdc/f.mp4"]["family_id"] == rows["dfdc/r.mp4"]["family_id"] == "dfdc/r.mp4"
    assert [rows[f"dfdc/{name}.mp4"]["group_id"] for name in "rfg"] == ["dfdc/part:7", "dfdc/part:7", "dfdc/family:absent.mp4"]
    assert [rows[f"dfdc/{name}.mp4"]["part"] for name in "rfg"] == [7, 7, None]


def test_an_index_is_taken_as_it_is(index_file):
    assert bench.read_index(index_file).equals(pq.read_table(index_file))


def test_another_table_is_refused(tmp_path):
    pq.write_table(pa.table({"name": ["a"]}), tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("no table")
    for name in ("other", "text"):
        with pytest.raises(UserError, match="neither an index"):
            bench.read_index(str(tmp_path / f"{name}.parquet"))


def test_the_first_families_keep_all_their_videos(index_file):
    index = bench.first_families(bench.read_index(index_file), 2)
    assert sorted(index["video_id"].to_pylist()) == ["c/f00.mp4", "c/f01.mp4", "c/r00.mp4", "c/r01.mp4"]


def test_what_the_figures_mean_for_a_cluster():
    result = bench.Result(units=101, videos=500, workers=2, cpu_by_role={"driver": 0.5, "actors": 9.0})
    assert result.units_per_second == pytest.approx(200)  # 5 ms a unit
    assert "--unit-cpu-seconds" in bench.meaning(result)[-1]
    known = replace(result, unit_cpu_seconds=20.0)
    assert "1,000 cores: 50.0 units/s at 20 CPU s a unit, 25% of one core of the driver." in bench.meaning(known)
    assert bench.meaning(known)[-1] == "The driver is full at 4,000 cores."


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(240)
def test_a_run_is_a_whole_output_and_says_what_it_cost(index_file, tmp_path):
    config = BenchScaleConfig(index=index_file, out=str(tmp_path / "out"), unit_cpu_seconds=20)
    options = ["--index", index_file, "--out", config.out, "--unit-cpu-seconds", "20"]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "dfdc_ray.cli", "bench", "scale", *options]  # the memory of a driver's own process is measured
    said = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    videos = 2 * FAMILIES - 1
    output = str(tmp_path / "out" / "output")
    assert read_ledger(output)["status"].to_pylist() == ["ok"] * videos
    assert (len(read_manifest(output).files), read_manifest(output).rows) == (FAMILIES, 2 * videos)
    result = json.loads((tmp_path / "out" / "bench_scale.json").read_text())
    assert (result["units"], result["videos"]) == (FAMILIES, videos)
    assert [step["name"] for step in result["steps"]] == ["plan", "start of Ray", "first unit", "other units", "publication", "second run"]
    assert all(step["seconds"] > 0 for step in result["steps"])
    assert {"driver", "actors", "raylet", "gcs"} <= result["cpu_by_role"].keys()
    assert min(result["cpu_by_role"][role] for role in ("driver", "actors")) > 0
    assert 100 < result["driver_peak_mb"] < 1500
    assert {name: count for name, (count, _) in result["objects"].items() if name.endswith("/")} == dict.fromkeys(
        ("boxes/", "faces/", "receipts/", "stats/"), FAMILIES
    )
    receipts = list(Path(output, "receipts").iterdir())
    assert result["objects"]["receipts/"] == [FAMILIES, sum(path.stat().st_size for path in receipts)]
    assert "Nothing to do" in said
    assert "Left out: opening, decoding" in said
    assert "Left out: opening, decoding" in (tmp_path / "out" / "bench_scale.md").read_text()
    with pytest.raises(UserError, match="there already"):
        bench.scale(config)
