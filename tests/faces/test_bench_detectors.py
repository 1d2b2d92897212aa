"""The detector benchmark counts what it says it counts."""

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import skimage.data

from dfdc_ray.bench import detectors as bench
from dfdc_ray.bench.config import BenchDetectorsConfig
from dfdc_ray.errors import UserError


def write_video(path: Path, frames: list[np.ndarray]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "12"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for i, rgb in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            picture.pts, picture.time_base = i, Fraction(1, 25)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def test_rows_count_frames_and_faces_at_each_threshold() -> None:
    setting = bench.Setting("ssd", 480, (0.3, 0.5))
    measured = {
        "c/a": bench.Measured(((0.9, 0.4), (0.4,), ()), 0.3, 200.0, ""),
        "c/b": bench.Measured(((0.6,),), 0.1, 250.0, ""),
        "c/broken": bench.Measured((), 0.0, 180.0, "probe: no video"),
    }
    low, high = bench.rows_of(setting, measured)
    assert (low.frames, low.with_face, low.faces) == (4, 3, 4)
    assert (high.frames, high.with_face, high.faces) == (4, 2, 2)
    assert low.ms_per_frame == high.ms_per_frame == pytest.approx(100)
    assert high.peak_rss_mb == 250
    assert high.coverage_by_video == {"c/a": pytest.approx(1 / 3), "c/b": 1.0}


def test_measures_videos_and_names_those_it_cannot_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    face, blank = np.ascontiguousarray(skimage.data.astronaut()[:256, 100:356]), np.full((256, 256, 3), 90, np.uint8)
    corpus = tmp_path / "videos"
    corpus.mkdir()
    write_video(corpus / "half.mp4", [face] * 4 + [blank] * 4)
    (corpus / "broken.mp4").write_bytes(b"no video")
    monkeypatch.setattr(bench, "SETTINGS", (bench.Setting("centerface", 320, (0.4,)), bench.Setting("ssd-stock", None, (0.9,))))
    bench.detectors(BenchDetectorsConfig(corpus=(str(corpus),), out=str(tmp_path / "out"), frames=8))
    result = json.loads((tmp_path / "out" / "bench_detectors.json").read_text())
    assert [(row["detector"], row["frames"]) for row in result["rows"]] == [("centerface", 8), ("ssd-stock", 8)]
    assert result["rows"][0]["coverage_by_video"] == {"videos/half.mp4": 0.5}
    assert list(result["problems"]) == ["videos/broken.mp4"]
    assert (tmp_path / "out" / "bench_detectors.md").read_text().count("\n| ") == 4


def test_nothing_to_measure_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    monkeypatch.setattr(bench, "SETTINGS", (bench.Setting("opencv", 640, (0.0,)),))
    with pytest.raises(UserError, match="No frame"):
        bench.detectors(BenchDetectorsConfig(corpus=(str(tmp_path),), out=str(tmp_path / "out"), frames=8))
