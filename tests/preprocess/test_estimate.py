"""What `dfdc-ray plan` says: exact arithmetic on a small index and a made-up measurement, and no figure without one."""

import io
import json
import zipfile
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dfdc_ray import storage
from dfdc_ray.cli import main
from dfdc_ray.corpus.index import INDEX, build_index
from dfdc_ray.corpus.zips import open_video
from dfdc_ray.errors import UserError
from dfdc_ray.preprocess.estimate import measured, nearest, workloads
from dfdc_ray.preprocess.plan import units

MB = 1_000_000


def row(name: str, label: str | None = "REAL", *, original: str | None = None, size: int | None = MB, **more: Any) -> dict[str, Any]:
    ids = {"corpus": "c", "video_id": f"c/{name}", "uri": f"/c/{name}", "label": label, "method": None, "part": None}
    family = {"original": original and f"c/{original}", "family_id": f"c/{original or name}", "group_id": "g", "size_bytes": size}
    return ids | family | more


# A family of three, an orphan pair, a fake whose listed original has no file, and a video without a label.
ROWS = [
    row("real"),
    row("fake1", "FAKE", original="real"),
    row("fake2", "FAKE", original="real", size=3 * MB),
    row("orphan1", "FAKE", original="absent"),
    row("orphan2", "FAKE", original="absent"),
    row("gone", uri=None, size=None),
    row("left", "FAKE", original="gone"),
    row("unknown", None),
]


def index(rows: list[dict[str, Any]] = ROWS) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=INDEX)


def bench_row(**changes: Any) -> dict[str, Any]:
    """Two reals with a fake each, and one alone: 2 x 40 + 2 x 10 + 10 frames, of which 90 were looked at for faces; 5 s a video."""
    return {
        "corpus": "b",
        "way": "unit",
        "frames": 10,
        "multiplier": 4,
        "videos": 5,
        "families": 2,
        "orphans": 1,
        "video_bytes": 5 * MB,
        "cpu_seconds": [4.0, 5.0, 60.0],
        "frames_sampled": 110,
        "frames_with_face": 110,
        "faces": 220,
        "shard_bytes": 220 * 20_000,
        "seconds_by_stage": {"open": 0.25, "decode": 1.25, "detect": 2.7, "align": 0.25, "crop": 0.55},
    } | changes


@pytest.fixture
def files(tmp_path) -> tuple[str, str]:
    """An index and a bench file."""
    pq.write_table(index(), tmp_path / "index.parquet")
    content = {"date": "2026-01-02", "machine": {"cpu": "a CPU"}, "rows": [bench_row()]}
    (tmp_path / "bench.json").write_text(json.dumps(content))
    return str(tmp_path / "index.parquet"), str(tmp_path / "bench.json")


def plan(*options: str, capsys: pytest.CaptureFixture[str], expect: int = 0) -> str:
    assert main(["plan", *options]) == expect
    printed = capsys.readouterr()
    return " ".join((printed.out + printed.err).split())


def test_videos_are_counted_by_what_is_done_with_them():
    (work,) = workloads(index())
    assert (work.units, work.missing, work.videos) == (4, 1, 7)
    assert (work.real, work.reused, work.alone) == (1, 2, 4)
    assert work.video_bytes == 9 * MB
    assert work.largest_unit == (1, 2, 0)
    assert [w.corpus for w in workloads(index([*ROWS, row("z", corpus="a")]))] == ["a", "c"]


def test_seconds_by_kind():
    (known,) = measured([bench_row()], frames=10, multiplier=4, where="x")
    assert known.per_video == pytest.approx(1.75)  # of 5 s, 2.7 detect and 0.55 crop
    assert known.per_detected_frame == pytest.approx(5 * 2.7 / 90)
    assert known.per_frame == pytest.approx(5 * 0.55 / 110)
    kinds = [known.seconds(*kind, frames=10, multiplier=4) for kind in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert kinds == pytest.approx([1.75 + 40 * (0.15 + 0.025), 1.75 + 10 * 0.025, 1.75 + 10 * (0.15 + 0.025)])
    assert known.seconds(2, 2, 1, frames=10, multiplier=4) == pytest.approx(5 * 5.0)  # what was measured comes out again
    assert known.faces_per_frame == 2
    assert known.bytes_per_face == 20_000


def test_what_ray_adds_is_taken_from_its_own_row():
    under_ray = bench_row(way="ray", cpu_seconds=[6.0], seconds_by_stage={})
    others = [bench_row(way="report", cpu_seconds=[99.0]), bench_row(way="ray, 2 workers", cpu_seconds=[99.0])]
    (known,) = measured([bench_row(), under_ray, *others], frames=10, multiplier=4, where="x")
    assert known.ray == pytest.approx(1.2)
    assert known.seconds(2, 2, 1, frames=10, multiplier=4) == pytest.approx(5 * 6.0)
    (known,) = measured([bench_row(), under_ray | {"cpu_seconds": [4.0]}], frames=10, multiplier=4, where="x")
    assert known.ray == 1  # not less than the work itself


def test_the_measurement_on_the_most_similar_videos_counts():
    rows = [bench_row(corpus="small", video_bytes=MB), bench_row(corpus="like"), bench_row(corpus="large", video_bytes=50 * MB)]
    (work,) = workloads(index())  # 9 MB in 7 videos
    assert nearest(measured(rows, frames=10, multiplier=4, where="x"), work).corpus == "like"


def test_the_whole_plan(files, capsys):
    options = ("--index", files[0], "--bench", files[1], "--frames", "10", "--real-multiplier", "4", "--vcpus", "2")
    text = plan(*options, "--price", "0.5", "--efficiency", "0.5", capsys=capsys)
    # 7 videos x 1.75 s; 80 frames looked at x 0.15 s; 100 cropped x 0.025 s; 2 vCPUs at half
    seconds = 7 * 1.75 + 80 * 0.15 + 100 * 0.025
    assert f"{seconds / 3600 / 0.5:.2f} vCPU hours, so about {seconds / 0.5 / 2:.0f} s on 2 vCPUs; 4.0 MB of crops" in text
    assert f"Cost: {seconds / 3600 / 0.5 * 0.5:,.2f} USD" in text
    assert "11 GET (videos, each zip's directory 2 for each worker, 1 for each receipt), 16 PUT (4 a unit), 4 LIST" in text
    assert "50% of the vCPUs' time" in text
    assert "a CPU, 2026-01-02" in text
    assert "b, 5 videos" in text
    assert "no row of the way `ray` for b" in text


def test_no_more_vcpus_than_units_help(files, capsys):
    options = ("--index", files[0], "--bench", files[1], "--frames", "10", "--efficiency", "1")
    longest = 3 * 1.75 + 40 * 0.15 + 60 * 0.025  # the family of three, on one vCPU
    assert f"about {longest:.0f} s on 1000 vCPUs" in plan(*options, "--vcpus", "1000", capsys=capsys)


def test_without_a_price_there_is_no_cost(files, capsys):
    text = plan("--index", files[0], "--bench", files[1], "--frames", "10", "--vcpus", "2", capsys=capsys)
    assert "vCPU hours" in text
    assert "USD" not in text


def test_without_a_measurement_there_are_counts_and_the_way_to_get_one(tmp_path, capsys):
    (tmp_path / "a.mp4").write_bytes(b"not opened")
    text = plan("--corpus", str(tmp_path), "--vcpus", "8", capsys=capsys)
    assert "fakes without original" in text  # the counts of the index
    assert "bytes to read" in text
    assert "dfdc-ray bench preprocess" in text
    assert "vCPU hours" not in text


def test_videos_unlike_the_measured_ones_are_said_to_be(files, tmp_path, capsys):
    pq.write_table(index([r | {"size_bytes": r["size_bytes"] and 20 * MB} for r in ROWS]), tmp_path / "large.parquet")
    options = ("--bench", files[1], "--frames", "10", "--vcpus", "2")
    assert "doubtful (20.0 MB, there 1.0 MB)" in plan("--index", str(tmp_path / "large.parquet"), *options, capsys=capsys)
    assert "doubtful" not in plan("--index", files[0], *options, capsys=capsys)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 32}, "--frames 32 --real-multiplier 4"),  # what there is, where 10 were asked for
        ({"multiplier": 1}, "--frames 10 --real-multiplier 1"),
        ({"way": "pyav-full"}, "none"),
        ({"cpu_seconds": []}, "not a result"),
        ({"seconds_by_stage": {}}, "not a result"),
        ({"frames_sampled": 15}, "not a result"),
        ({"faces": 0}, "no face"),
    ],
)
def test_a_measurement_of_something_else_is_refused(changes: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        measured([bench_row(**changes)], frames=10, multiplier=4, where="x")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--corpus URI or --index FILE"),
        (("--corpus", "x", "--index", "{index}"), "--corpus URI or --index FILE"),
        (("--index", "{index}", "--vcpus", "0"), "--vcpus 0"),
        (("--index", "{index}", "--efficiency", "1.5"), "--efficiency 1.5"),
        (("--index", "{index}", "--price", "-1"), "--price -1"),
        (("--index", "{bench}"), "is not an index"),
        (("--index", "{index}", "--bench", "{index}"), "is not a result"),
        (("--index", "{index}", "--bench", "{index}.none"), "not found"),
    ],
)
def test_wrong_options_are_named(options: tuple[str, ...], message: str, files, capsys):
    given = [option.format(index=files[0], bench=files[1]) for option in options]
    given += [] if "--vcpus" in given else ["--vcpus", "2"]
    text = plan(*given, capsys=capsys, expect=1)
    assert message in text
    assert "Traceback" not in text


def test_nothing_to_do(files, tmp_path, capsys):
    pq.write_table(index([row("gone", uri=None, size=None)]), tmp_path / "none.parquet")
    assert "nothing to do" in plan("--index", str(tmp_path / "none.parquet"), "--vcpus", "2", capsys=capsys, expect=1)


@pytest.mark.parametrize(
    ("uri", "size", "gets"),
    [
        ("s3://b/a.mp4", 8 << 20, 1),
        ("s3://b/a.mp4", (8 << 20) + 1, 2),
        ("s3://b/a.mp4", (64 << 20) + 1, 2 + 2 * 17),
        ("s3://b/part_0.zip!/a.mp4", 64 << 20, 1),
        ("s3://b/outer.zip!/part_0.zip!/a.mp4", 1 << 20, 2),
    ],
)
def test_requests_to_read_a_video(uri, size, gets):
    (work,) = workloads(index([row("a", uri=uri, size=size)]))
    assert (work.gets, work.zips) == (gets, int(".zip" in uri))


@pytest.mark.s3
def test_requests_are_those_that_reading_takes(s3):
    for part in range(12):  # more zips than the reader keeps open
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as file:
            names = [f"{letter}{part}.mp4" for letter in "abc"]
            file.writestr("metadata.json", json.dumps({name: {"label": "REAL"} for name in names}))
            for name in names:
                file.writestr(name, bytes(300_000))
        storage.write_bytes(storage.join(s3.uri, f"corpus/dfdc_train_part_{part:02d}.zip"), buffer.getvalue())
    for name, size in {"x.mp4": 1000, "y.mp4": storage.S3_HEAD + 1}.items():
        storage.write_bytes(storage.join(s3.uri, "corpus", name), bytes(size))
    there, _ = build_index([storage.join(s3.uri, "corpus")])
    (work,) = workloads(there)
    assert (work.videos, work.units, work.zips) == (38, 38, 12)
    before = storage.traffic()
    for unit in units(there):
        for video in unit.videos:
            with open_video(video.uri) as file:
                file.read()
    asked = (storage.traffic() - before).requests
    assert work.gets == 36 + 1 + 2
    assert work.gets + 12 <= asked <= work.gets + 2 * 12  # a directory, where it is short, takes one request
