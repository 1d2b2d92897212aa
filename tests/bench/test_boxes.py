"""The box benchmark judges and counts what it says, and the marks fit the videos they are of."""

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from dfdc_ray.bench import boxes as bench
from dfdc_ray.bench.config import BenchBoxesConfig
from dfdc_ray.bench.marks import Marked, Verdict, iou, judge, read_marks
from dfdc_ray.corpus.zips import open_video
from dfdc_ray.errors import UserError
from dfdc_ray.faces.detect import Box, Face
from dfdc_ray.video.decode import probe

MARKS = Path(__file__).parents[1] / "data" / "boxes.json"
A, B = (100.0, 100.0, 100.0, 100.0), (400.0, 100.0, 100.0, 100.0)  # two faces


def shifted(box: Box, x: float) -> Box:
    return (box[0] + x, *box[1:])


def test_iou_of_boxes() -> None:
    assert iou(A, A) == 1
    assert iou(A, shifted(A, 100)) == 0  # they touch
    assert iou(A, shifted(A, 50)) == pytest.approx(1 / 3)
    assert iou(A, (150, 150, 10, 10)) == pytest.approx(0.01)  # one in the other


def test_each_face_takes_the_mark_that_it_overlaps_most() -> None:
    near = shifted(A, 20)  # IoU with A: 80 / 120
    between = shifted(A, 10)  # with A 90 / 110, with near 90 / 110
    found = [Face(near, 0.9), Face(between, 0.5)]
    verdict = judge(found, [A, near], ())
    assert verdict.overlaps == (1, pytest.approx(90 / 110))  # the sure face takes its own mark, the other the one that is left
    assert (verdict.missed, verdict.false, verdict.repeats) == ((), (), 0)


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        ((100.0, 100.0, 50.0, 100.0), "match"),  # half of the face: IoU 0.5
        ((100.0, 100.0, 49.0, 100.0), "false"),  # a little less
        (shifted(A, 90), "false"),  # 10 / 190
        (shifted(B, 300), "false"),
        ((720.0, 40.0, 60.0, 60.0), "ignored"),  # its centre is in the region, its corner is not
        ((740.0, 0.0, 50.0, 50.0), "false"),  # its centre is not, its corner is
        ((700.0, 70.0, 50.0, 50.0), "false"),
    ],
)
def test_a_face_matches_or_is_ignored_or_is_false(box: Box, kind: str) -> None:
    verdict = judge([Face(box, 0.9)], [A], [(680.0, 0.0, 80.0, 80.0)])
    assert (len(verdict.overlaps), verdict.ignored, len(verdict.false)) == (kind == "match", kind == "ignored", kind == "false")
    assert verdict.missed == (() if kind == "match" else (A,))


def test_a_second_box_on_a_face_is_a_repeat_even_where_faces_are_ignored() -> None:
    verdict = judge([Face(A, 0.9), Face(shifted(A, 10), 0.8)], [A], [A])
    assert (verdict.overlaps, verdict.repeats, verdict.ignored, verdict.false) == ((1,), 1, 0, ())


def test_a_frame_without_marks_can_only_have_false_boxes() -> None:
    face = Face(A, 0.9)
    assert judge([face], (), ()) == Verdict((), (), ((face, 0.0),), 0, 0)
    assert judge((), (), ()) == Verdict((), (), (), 0, 0)


def test_rows_count_at_each_threshold() -> None:
    marked = [
        Marked("c/a", 0, 800, 600, (A, B), ()),
        Marked("c/a", 7, 800, 600, (A,), ((600.0, 0.0, 100.0, 100.0),)),
        Marked("c/b", 3, 800, 600, (), ()),
    ]
    found = {
        ("c/a", 0): [Face(A, 0.9), Face(shifted(A, 60), 0.7), Face(B, 0.4)],  # the second is beside a face: IoU 0.25
        ("c/a", 7): [Face((620.0, 20.0, 40.0, 40.0), 0.8), Face(shifted(A, 25), 0.4)],  # IoU 0.6
        ("c/b", 3): [Face(A, 0.6)],
        ("c/b", 4): [Face(A, 0.9)],  # seen, but not marked
    }
    way = bench.Way("toy", 640, (0.4, 0.5), lambda: lambda: lambda rgb, time_s: [])
    low, high = bench.rows_of(way, marked, found, ms_per_frame=1.5)
    counts = [[(part.hits, part.of) for part in (row.covered, row.found, row.false, row.on_no_face)] for row in (low, high)]
    assert counts == [[(2, 2), (3, 3), (2, 5), (1, 5)], [(1, 2), (1, 3), (2, 3), (1, 3)]]
    assert (low.mean_iou, high.mean_iou) == (pytest.approx((1 + 1 + 0.6) / 3), 1)
    assert (low.ignored, high.ignored, low.repeats) == (1, 1, 0)
    assert (low.found_by_video, high.found_by_video) == ({"c/a": 1.0}, {"c/a": pytest.approx(1 / 3)})
    assert [(m["frame"], tuple(m["box"])) for m in high.missed_boxes] == [(0, B), (7, A)]
    assert [(f["video"], f["frame"], f["score"], f["iou"]) for f in high.false_boxes] == [("c/a", 0, 0.7, 0.25), ("c/b", 3, 0.6, 0.0)]


def test_intervals_are_wilsons() -> None:
    z, n, p = 1.959964, 112, 100 / 112
    centre, half = p + z * z / 2 / n, z * (p * (1 - p) / n + z * z / 4 / n / n) ** 0.5
    some = bench.share(100, 112)
    assert (some.low, some.high) == pytest.approx([(centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)], abs=1e-6)
    assert bench.share(0, 0) == bench.Share(0, 0, None, None)


def write_video(path: Path, shades: list[int]) -> None:
    """25 frames a second of one grey each, 64x48."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "12"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i, shade in enumerate(shades):
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), shade, np.uint8), format="rgb24")
            picture.pts, picture.time_base = i, Fraction(1, 25)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos whose frame i has the shade 10 i."""
    folder = tmp_path_factory.mktemp("corpus") / "videos"
    folder.mkdir()
    for name in ("one.mp4", "two.mp4"):
        write_video(folder / name, [10 * i for i in range(10)])
    return folder


def mark(video: str, frame: int, **changes: Any) -> dict[str, Any]:
    """A marked frame whose face is as wide as the frame's number."""
    return {"video": video, "frame": frame, "width": 64, "height": 48, "boxes": [[0, 0, frame, 10]], "ignore": []} | changes


def run(corpus: Path, marks: list[dict[str, Any]], work: Path) -> Path:
    """The command on a corpus, with these marks. Returns its output folder."""
    file, out = work / "marks.json", work / "out"
    file.write_text(json.dumps({"about": "", "frames": marks}))
    bench.boxes(BenchBoxesConfig(corpus=(str(corpus),), marks=str(file), out=str(out)))
    return out


def test_ways_see_the_frames_of_each_video_in_order(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[list[tuple[int, float]]]] = {"marked": [], "spread": []}

    def load(name: str) -> Callable[[], bench.Look]:
        def start() -> bench.Look:
            frames: list[tuple[int, float]] = []
            seen[name].append(frames)

            def look(rgb: np.ndarray, time_s: float) -> list[Face]:
                frame = round(float(rgb.mean()) / 10)
                frames.append((frame, round(time_s, 3)))
                return [Face((0.0, 0.0, float(frame), 10.0), 0.9)]

            return look

        return start

    ways = (
        bench.Way("marked", None, (0.5,), lambda: load("marked")),
        bench.Way("spread", 640, (0.5,), lambda: load("spread"), spread=4),
    )
    monkeypatch.setattr(bench, "WAYS", ways)
    out = run(corpus, [mark("videos/two.mp4", 4), mark("videos/one.mp4", 6), mark("videos/one.mp4", 2)], tmp_path)

    warmed = {name: [frames for frames in looks if len(set(frames)) < len(frames)] for name, looks in seen.items()}
    videos = {name: [frames for frames in looks if frames not in warmed[name]] for name, looks in seen.items()}
    assert warmed["marked"] == [[(2, 0.08), (2, 0.08)]]  # once: the videos have one size
    assert videos["marked"] == [[(2, 0.08), (6, 0.24)], [(4, 0.16)]]  # each with a look of its own
    one, two = ([frame for frame, _ in frames] for frames in videos["spread"])
    assert one == sorted(set(one))
    assert {2, 6} <= set(one)
    assert 4 in two
    assert len(set(one) - {2, 6}) >= 2

    result = json.loads((out / "bench_boxes.json").read_text())
    rows = [(row["detector"], row["found"]["hits"], row["false"]["hits"], row["mean_iou"]) for row in result["rows"]]
    assert rows == [("marked", 3, 0, 1.0), ("spread", 3, 0, 1.0)]
    assert (out / "bench_boxes.md").read_text().count("\n| ") == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frame": 10}, "another videos/one.mp4"),
        ({"frame": -1}, "below 0"),
        ({"width": 32}, "another videos/one.mp4"),
        ({"video": "videos/three.mp4"}, "has not: videos/three.mp4"),
        ({"boxes": [[60, 0, 5, 5]]}, "inside 64x48"),
        ({"boxes": [[1, 2, 3]]}, "is no box"),
        ({"ignore": [["a", 2, 3, 4]]}, "no file of marked boxes"),
        ({"box": []}, "no file of marked boxes"),
    ],
)
def test_marks_that_do_not_fit_are_refused(corpus: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(corpus, [mark("videos/one.mp4", 2) | changes], tmp_path)


def test_no_marks_and_marks_given_twice_are_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="twice"):
        run(corpus, [mark("videos/one.mp4", 2)] * 2, tmp_path)
    with pytest.raises(UserError, match="no frames"):
        run(corpus, [], tmp_path)
    with pytest.raises(UserError, match="no file of marked boxes"):
        read_marks(str(tmp_path / "nothing.json"))


def test_a_video_that_cannot_be_decoded_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = tmp_path / "videos"
    corpus.mkdir()
    (corpus / "one.mp4").write_bytes(b"no video")
    monkeypatch.setattr(bench, "WAYS", (bench.Way("toy", None, (0.5,), lambda: lambda: lambda rgb, time_s: []),))
    with pytest.raises(UserError, match=r"one\.mp4 cannot be judged: probe"):
        run(corpus, [mark("videos/one.mp4", 2)], tmp_path)


def test_the_marks_are_of_faces() -> None:
    marked = read_marks(str(MARKS))
    assert len(marked) >= 108
    assert {m.video.split("/")[0] for m in marked} == {"dfdc_clips", "ffpp_c40"}
    shapes = [(w, w / h) for m in marked for _, _, w, h in m.boxes]
    assert len(shapes) >= len(marked)
    assert all(w >= 20 and 0.5 < ratio < 1.1 for w, ratio in shapes)
    assert all(iou(a, b) < 0.1 for m in marked for a in m.boxes for b in m.boxes if a is not b)


def test_the_marks_fit_the_videos(shared: Path) -> None:
    sizes = {}
    for m in read_marks(str(MARKS)):  # boxes lie inside these sizes: read_marks sees to it
        if m.video not in sizes:
            with open_video(str(shared / "data" / m.video)) as file:
                info = probe(file)
            sizes[m.video] = (info.width, info.height, len(info.pts))
        width, height, frames = sizes[m.video]
        assert (m.width, m.height) == (width, height), m.video
        assert m.frame < frames, m.video
