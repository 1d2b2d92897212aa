"""Commit, resume, refusal and publication, without Ray and without video."""

import gzip
import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dfdc_ray import storage
from dfdc_ray.corpus.index import INDEX
from dfdc_ray.errors import UserError
from dfdc_ray.preprocess import receipts
from dfdc_ray.preprocess.plan import Unit, Video, units
from dfdc_ray.preprocess.publish import publish, remember
from dfdc_ray.preprocess.receipts import Receipt, Receipts, lost, open_output, todo
from dfdc_ray.preprocess.settings import Settings
from dfdc_ray.preprocess.unit import UnitResult, VideoResult, ledger_row

SETTINGS = Settings(
    sampling="spread",
    frames=2,
    real_multiplier=1,
    detector="centerface",
    detector_threshold=0.5,
    detector_long_side=640,
    detector_smaller_sides=(320, 480),
    crop="face",
    margin=0.3,
    max_side=320,
    image_format="jpeg",
    weights={"net": "0" * 64},
    format_version=1,
)


def video(name: str, *, label: str = "REAL", uri: str | None = "x.mp4", family: str = "a") -> Video:
    return Video("c", f"c/{name}", uri, label, None, None if label == "REAL" else f"c/{family}", f"c/{family}", f"c/family:{family}", None)


def face(v: Video, frame: int, *, picture: bytes = b"picture") -> dict:
    ids = {n: getattr(v, n) for n in ("corpus", "video_id", "family_id", "group_id", "part", "label", "method", "original")}
    rest = {"frame": frame, "pts": frame, "time_s": frame / 25, "track_id": 0, "core": True, "box": [1, 2, 3, 4], "crop": [0, 0, 9, 9]}
    return (
        ids
        | rest
        | {"det_score": 0.9, "detector": "centerface", "frame_width": 99, "frame_height": 99, "image": {"bytes": picture, "path": None}}
    )


def result(*videos: Video, status: str = "ok", picture: bytes = b"picture") -> UnitResult:
    done = [
        VideoResult(ledger_row(v, status=status, faces=2), [face(v, 0, picture=picture), face(v, 5)] if status == "ok" else [])
        for v in videos
    ]
    return UnitResult(Unit("a-1", "c/a", videos), done)


@pytest.fixture
def output(tmp_path):
    return open_output(str(tmp_path / "out"), SETTINGS)


def test_a_commit_is_read_back_and_leaves_nothing_to_do(output):
    work = result(video("a"), video("b", label="FAKE"))
    receipt = output.commit(work, generation=0)
    assert output.read() == {"a-1": receipt}
    assert todo([work.unit], output.read(), []) == []
    assert [row["video_id"] for row in receipt.videos] == ["c/a", "c/b"]


def test_the_same_rows_give_the_same_bytes_and_name(output, tmp_path):
    work = result(video("a"))
    other = open_output(str(tmp_path / "other"), SETTINGS)
    assert output.commit(work, generation=0).faces == other.commit(work, generation=0).faces


def test_each_video_has_a_row_group_of_its_own(output, tmp_path):
    receipt = output.commit(result(video("a"), video("b", label="FAKE")), generation=0)
    file = pq.ParquetFile(tmp_path / "out" / receipt.faces["path"])
    assert [set(file.read_row_group(i, columns=["video_id"])["video_id"].to_pylist()) for i in range(file.num_row_groups)] == [
        {"c/a"},
        {"c/b"},
    ]


def test_of_many_writers_one_wins_and_all_see_it(output):
    works = [result(video("a"), picture=bytes([i])) for i in range(8)]
    receipts = []
    threads = [threading.Thread(target=lambda w=w: receipts.append(output.commit(w, generation=0))) for w in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(receipts) == 8
    assert len({r.faces["sha256"] for r in receipts}) == 1
    assert output.read()["a-1"] == receipts[0]


def test_data_without_a_receipt_does_not_exist(output, tmp_path):
    (tmp_path / "out" / "faces" / "b-2.0123456789abcdef.parquet").write_bytes(b"half a file")
    work = result(video("a"))
    output.commit(work, generation=0)
    ledger = publish(output, [work.unit], SETTINGS, versions={})
    assert ledger["video_id"].to_pylist() == ["c/a"]
    assert len(json.loads((tmp_path / "out" / "manifest.json").read_text())["files"]) == 1


def test_retry_writes_the_next_generation_which_then_counts(output):
    bad = result(video("a"), status="error")
    output.commit(bad, generation=0)
    assert todo([bad.unit], output.read(), []) == []
    assert todo([bad.unit], output.read(), ["error"]) == [(bad.unit, 1)]
    output.commit(result(video("a")), generation=1)
    assert output.read()["a-1"].generation == 1
    assert publish(output, [bad.unit], SETTINGS, versions={})["status"].to_pylist() == ["ok"]


def test_the_tenth_generation_is_newer_than_the_ninth(output):
    for generation in (2, 9, 10):
        output.commit(result(video("a")), generation=generation)
    assert output.read()["a-1"].generation == 10


def test_a_fake_that_arrives_later_is_work_to_do(output):
    early = result(video("a"))
    output.commit(early, generation=0)
    late = Unit("a-1", "c/a", (video("a"), video("b", label="FAKE")))
    assert todo([late], output.read(), []) == [(late, 1)]


def test_a_label_or_group_that_changes_later_is_work_to_do(output):
    early = result(video("a"))
    output.commit(early, generation=0)
    relabelled = Unit("a-1", "c/a", (replace(video("a"), label="FAKE"),))
    regrouped = Unit("a-1", "c/a", (replace(video("a"), group_id="c/group:g"),))
    assert [generation for _, generation in todo([relabelled], output.read(), [])] == [1]
    assert [generation for _, generation in todo([regrouped], output.read(), [])] == [1]


def test_a_unit_whose_videos_went_to_another_family_no_longer_counts(output):
    alone = result(video("b", label="FAKE"))
    output.commit(alone, generation=0)
    moved = result(video("b", label="FAKE", family="z"))
    family = UnitResult(Unit("z-2", "c/z", moved.unit.videos), moved.videos)
    output.commit(family, generation=0)
    assert publish(output, [family.unit], SETTINGS, versions={})["video_id"].to_pylist() == ["c/b"]


def test_a_receipt_that_the_index_has_overtaken_no_longer_counts(output, tmp_path):
    """Killed half-way after b went from a's family to z's: b is in z's receipt already, and still in a's."""
    output.commit(result(video("a"), video("b", label="FAKE")), generation=0)
    family = result(video("z", family="z"), video("b", label="FAKE", family="z"))
    family = UnitResult(Unit("z-2", "c/z", family.unit.videos), family.videos)
    output.commit(family, generation=0)
    ledger = publish(output, [Unit("a-1", "c/a", (video("a"),)), family.unit], SETTINGS, versions={})
    assert ledger["video_id"].to_pylist() == ["c/b", "c/z"]
    assert len(json.loads((tmp_path / "out" / "manifest.json").read_text())["files"]) == 1


def test_two_runs_on_one_output_publish_for_both(output, index_row, tmp_path):
    """Both plan before either has published; each adds its own part."""
    parts = [pa.Table.from_pylist([index_row(name)], schema=INDEX) for name in ("a.mp4", "b.mp4")]
    for part in parts:
        remember(output.out, part)
    pq.write_table(parts[1], tmp_path / "out" / "index.parquet")  # the second one had not yet seen the first one's
    for part in parts:
        for unit in units(part):
            output.commit(UnitResult(unit, result(*unit.videos).videos), generation=0)
    for part in reversed(parts):
        ledger = publish(output, units(remember(output.out, part)), SETTINGS, versions={})
    assert ledger["video_id"].to_pylist() == ["c/a.mp4", "c/b.mp4"]


def test_what_a_retry_would_lose(output):
    read = [*result(video("a")).videos, *result(video("b"), status="error").videos]
    earlier = output.commit(UnitResult(Unit("a-1", "c/a", ()), read), generation=0)
    now = [*result(video("a"), status="missing").videos, *result(video("b"), status="poison").videos]
    assert [row["video_id"] for row in lost(earlier, [v.ledger for v in now])] == ["c/a"]
    assert lost(earlier, [v.ledger for v in result(video("a"), status="no_face").videos]) == []


def test_a_stray_file_among_the_receipts_is_left_alone(output, tmp_path):
    (tmp_path / "out" / "receipts" / ".nfs0001").write_bytes(b"x")
    output.commit(result(video("a")), generation=0)
    assert list(output.read()) == ["a-1"]


def test_another_video_under_a_known_name_is_refused(tmp_path, index_row):
    remember(str(tmp_path), pa.Table.from_pylist([index_row("a.mp4")], schema=INDEX))
    other = index_row("a.mp4") | {"size_bytes": 2}
    with pytest.raises(UserError, match="NAME=URI"):
        remember(str(tmp_path), pa.Table.from_pylist([other], schema=INDEX))


def test_a_family_that_would_be_in_two_groups_is_refused(tmp_path, index_row):
    remember(str(tmp_path), pa.Table.from_pylist([index_row("a.mp4", original="z.mp4")], schema=INDEX))
    original = index_row("z.mp4") | {"group_id": "c/part:3"}
    with pytest.raises(UserError, match="two groups"):
        remember(str(tmp_path), pa.Table.from_pylist([original], schema=INDEX))


def test_a_missing_video_whose_file_has_come_is_work_to_do(output):
    output.commit(result(video("a", uri=None), status="missing"), generation=0)
    came = Unit("a-1", "c/a", (video("a"),))
    assert todo([came], output.read(), []) == [(came, 1)]


def test_another_configuration_is_refused_and_the_difference_named(output, tmp_path):
    with pytest.raises(UserError, match=r"frames: 2 there, 3 now"):
        open_output(str(tmp_path / "out"), replace(SETTINGS, frames=3))
    open_output(str(tmp_path / "out"), SETTINGS)


def test_an_index_of_later_parts_is_added_to_the_earlier_one(tmp_path, index_row):
    remember(str(tmp_path), pa.Table.from_pylist([index_row("a.mp4"), index_row("b.mp4")], schema=INDEX))
    whole = remember(str(tmp_path), pa.Table.from_pylist([index_row("b.mp4", uri="new.mp4"), index_row("c.mp4")], schema=INDEX))
    assert dict(zip(whole["video_id"].to_pylist(), whole["uri"].to_pylist(), strict=True)) == {
        "c/a.mp4": "x.mp4",
        "c/b.mp4": "new.mp4",
        "c/c.mp4": "x.mp4",
    }


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """Names of the receipts that are read one by one."""
    names: list[str] = []
    read = receipts._read

    def counted(uri: str) -> Receipt:
        names.append(uri.rsplit("/", 1)[-1])
        return read(uri)

    monkeypatch.setattr(receipts, "_read", counted)
    return names


def unit_of(name: str, **options: Any) -> UnitResult:
    """A unit of its own for one video: its id is the name."""
    made = result(video(name), **options)
    return UnitResult(Unit(name, f"c/{name}", made.unit.videos), made.videos)


@pytest.fixture
def published(output) -> Receipts:
    """An output of three units, with its snapshot."""
    works = [unit_of(name) for name in "abc"]
    for work in works:
        output.commit(work, generation=0)
    publish(output, [work.unit for work in works], SETTINGS, versions={})
    return output


def again(output: Receipts) -> Receipts:
    """The same output in the next run."""
    return open_output(output.out, SETTINGS)


def one_by_one(output: Receipts) -> dict[str, Receipt]:
    """What the receipts say, without any snapshot."""
    files = sorted(Path(output.out, "receipts").glob("*.json"), key=lambda path: int(path.name.split(".")[1]))
    return {content["unit_id"]: Receipt(**content) for content in (json.loads(path.read_bytes()) for path in files)}


def test_the_next_run_reads_what_is_not_in_the_snapshot(published, reads):
    assert again(published).read() == one_by_one(published)
    assert reads == []
    published.commit(unit_of("d"), generation=0)
    published.commit(unit_of("b"), generation=1)
    assert again(published).read() == one_by_one(published)
    assert sorted(reads) == ["b.1.json", "d.0.json"]


def test_one_run_reads_each_receipt_once(output, reads):
    for name in "ab":
        output.commit(unit_of(name), generation=0)
    output.read()
    output.commit(unit_of("c"), generation=0)
    assert sorted(output.read()) == ["a", "b", "c"]
    assert sorted(reads) == ["a.0.json", "b.0.json", "c.0.json"]


def test_a_receipt_that_was_deleted_does_not_come_back_from_the_snapshot(published):
    Path(published.out, "receipts", "b.0.json").unlink()
    for output in (published, again(published)):
        assert sorted(output.read()) == ["a", "c"]
    published.commit(unit_of("b", status="error"), generation=0)  # done anew, otherwise than before
    for output in (published, again(published)):
        assert output.read()["b"].videos[0]["status"] == "error"


@pytest.mark.parametrize("where", [0.0, 0.3, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("damage", ["cut", "byte"])
def test_a_damaged_snapshot_counts_for_nothing(published, reads, damage, where):
    path = Path(published.out, "receipts.json.gz")
    data = bytearray(path.read_bytes())
    at = int(where * (len(data) - 1))
    data[at] ^= 0xFF
    path.write_bytes(data[:at] if damage == "cut" else data)
    assert again(published).read() == one_by_one(published)
    assert sorted(reads) == ["a.0.json", "b.0.json", "c.0.json"]


OTHER_SNAPSHOTS: dict[str, Callable[[dict, list], list]] = {
    "empty": lambda head, rows: [],
    "another format": lambda head, rows: [head | {"format": 0}, *rows],
    "another configuration": lambda head, rows: [head | {"config_hash": "0"}, *rows],
    "another receipt": lambda head, rows: [head, *([*row[:3], row[3] | {"colour": 1}] for row in rows)],
    "a row too short": lambda head, rows: [head, *(row[:3] for row in rows)],
    "no row": lambda head, rows: [head, 1],
}


@pytest.mark.parametrize("kind", OTHER_SNAPSHOTS)
def test_a_snapshot_of_another_kind_counts_for_nothing(published, reads, kind):
    path = Path(published.out, "receipts.json.gz")
    head, *rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    path.write_bytes(gzip.compress(b"\n".join(json.dumps(line).encode() for line in OTHER_SNAPSHOTS[kind](head, rows))))
    assert again(published).read() == one_by_one(published)
    assert len(reads) == 3


def test_a_snapshot_copied_from_elsewhere_counts_for_nothing(published, reads, tmp_path):
    other = open_output(str(tmp_path / "other"), SETTINGS)
    for name in "abc":
        other.commit(unit_of(name, status="error"), generation=0)
    shutil.copy(Path(published.out, "receipts.json.gz"), other.out)
    assert {receipt.videos[0]["status"] for receipt in other.read().values()} == {"error"}
    assert len(reads) == 3


def test_a_snapshot_that_covers_all_is_left_alone_and_a_missing_one_made_again(published):
    path = Path(published.out, "receipts.json.gz")
    before = path.stat().st_mtime_ns, path.read_bytes()
    known = [unit_of(name).unit for name in "abc"]
    publish(again(published), known, SETTINGS, versions={})
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before
    path.unlink()
    publish(again(published), known, SETTINGS, versions={})
    assert path.read_bytes() == before[1]


@pytest.mark.s3
def test_on_s3_a_finished_output_costs_a_few_requests(s3, reads):
    output = open_output(s3.uri, SETTINGS)
    works = [unit_of(name) for name in "abc"]
    for work in works:
        output.commit(work, generation=0)
    publish(output, [work.unit for work in works], SETTINGS, versions={})
    reads.clear()
    before = storage.traffic().requests
    done = again(output).read()
    assert (sorted(done), reads) == (["a", "b", "c"], [])
    assert storage.traffic().requests - before <= 4  # config.json put and read, one listing, the snapshot
    storage.delete(storage.join(s3.uri, "receipts", "b.0.json"))
    output.commit(unit_of("b", status="error"), generation=0)
    assert again(output).read()["b"].videos[0]["status"] == "error"
    assert reads == ["b.0.json"]
