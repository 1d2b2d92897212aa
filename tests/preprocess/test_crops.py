"""`import`: crops from Parquet, CSV and folders become an output that train, evaluate and pack take."""

import csv
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from skimage.data import astronaut

from dfdc_ray import storage
from dfdc_ray.cli import main
from dfdc_ray.config import ImportConfig
from dfdc_ray.errors import UserError
from dfdc_ray.preprocess import crops
from dfdc_ray.preprocess.crops import import_crops
from dfdc_ray.serve.score import _settings
from dfdc_ray.shards.dataset import encoded
from dfdc_ray.shards.manifest import read_ledger, read_manifest
from dfdc_ray.shards.pack import build, plan
from dfdc_ray.shards.rows import read_rows, split_mask


def picture(seed: int, *, width: int = 20, extension: str = ".jpg") -> bytes:
    rgb = np.random.default_rng(seed).integers(0, 255, (16, width, 3), dtype=np.uint8)
    return cv2.imencode(extension, rgb)[1].tobytes()


def row(video: str, label: Any = "REAL", **more: Any) -> dict[str, Any]:
    return {"video": video, "label": label, "jpeg": picture(abs(hash((video, more.get("frame", 0)))) % 1000)} | more


FAMILIES = [
    row("a", part=0),
    row("b", "FAKE", original="a", part=0, frame=7),
    row("b", "FAKE", original="a", part=0, frame=3),
    row("c", part=1),
    row("d", "FAKE", original="gone", part=1),
]


def parquet(folder: Path, rows: list[dict[str, Any]], name: str = "crops.parquet") -> str:
    columns = dict.fromkeys(key for one in rows for key in one)
    pq.write_table(pa.Table.from_pylist([dict.fromkeys(columns) | one for one in rows]), folder / name, row_group_size=2)
    return str(folder / name)


def imported(out: Path | str, *sources: str, **more: Any) -> list[dict[str, Any]]:
    """The rows that a reader finds."""
    import_crops(ImportConfig(crops=sources, out=str(out), **more))
    files = json.loads(storage.read_bytes(storage.join(str(out), "manifest.json")))["files"]
    return [r for f in files for r in pq.read_table(pa.BufferReader(storage.read_bytes(storage.join(str(out), f["path"])))).to_pylist()]


def test_families_groups_and_frames_of_a_table(tmp_path):
    rows = imported(tmp_path / "out", parquet(tmp_path, FAMILIES), corpus="mine")
    found = {(r["video_id"], r["frame"]): r for r in rows}
    assert list(found) == [("mine/a", 0), ("mine/b", 3), ("mine/b", 7), ("mine/c", 0), ("mine/d", 0)]
    b = found["mine/b", 7]
    facts = ("corpus", "family_id", "group_id", "part", "label", "original", "core", "crop", "track_id")
    assert [b[name] for name in facts] == ["mine", "mine/a", "mine/part:0", 0, "FAKE", "mine/a", True, [0, 0, 20, 16], 0]
    assert b["image"]["bytes"] == FAMILIES[1]["jpeg"]  # as it was
    assert found["mine/d", 0]["family_id"] == "mine/gone"
    ledger = {r["video_id"]: r for r in read_ledger(str(tmp_path / "out")).to_pylist()}
    assert {name: (r["status"], r["faces"], r["core_decoded"]) for name, r in ledger.items()} == {
        "mine/a": ("ok", 1, 1),
        "mine/b": ("ok", 2, 2),
        "mine/c": ("ok", 1, 1),
        "mine/d": ("ok", 1, 1),
    }


def test_it_is_read_split_and_packed_like_what_preprocess_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(crops, "_ROW_GROUP", 2000)
    monkeypatch.setattr(crops, "_FILE", 6000)
    many = [row(f"v{i:02d}", ("REAL", "FAKE")[i % 2], part=i // 10, frame=f) for i in range(30) for f in range(2)]
    imported(tmp_path / "out", parquet(tmp_path, many))
    manifest = read_manifest(str(tmp_path / "out"))
    assert len(manifest.files) > 2
    rows = read_rows(manifest)
    assert len(rows) == 60
    assert split_mask(rows, "parts:0/1/2", "validation").sum() == 20
    packed = [build(shard, seed=0, row_group_bytes=4000) for shard in plan(manifest, seed=0, shard_bytes=20_000)]
    assert sum(shard.rows for shard in packed) == 60


def test_groups_of_one_picture_share_row_groups(tmp_path, monkeypatch):
    """A row group for each would cost training more than the pictures do. A large group has its own, and none of both is cut."""
    monkeypatch.setattr(crops, "_SHARED", 10_000)
    monkeypatch.setattr(crops, "_ROW_GROUP", 20_000)
    monkeypatch.setattr(crops, "_FILE", 100_000)
    many = [row(f"{i:03d}", ("REAL", "FAKE")[i % 2], jpeg=picture(i), group="125" if 100 <= i < 150 else f"{i:03d}") for i in range(350)]
    imported(tmp_path / "out", parquet(tmp_path, many))
    manifest = read_manifest(str(tmp_path / "out"))
    rows = read_rows(manifest)
    assert len(manifest.files) > 1
    assert 10 < len(rows.groups) < 40
    names, place = np.array(rows.table["group_id"].to_pylist()), rows.column("group")
    in_row_group = [set(names[place == number]) for number in range(len(rows.groups))]
    assert in_row_group.count({"crops/group:125"}) > 1
    assert sum(map(len, in_row_group)) == 300 + in_row_group.count({"crops/group:125"})

    test = rows.take(split_mask(rows, "hash:0", "test"))
    assert 20 < len(test) < 200
    pictures = {f"crops/{one['video']}": one["jpeg"] for one in many}
    assert [found for (found,) in encoded(test, range(len(test)))] == [pictures[name] for name in test.table["video_id"].to_pylist()]

    shards = [build(shard, seed=0, row_group_bytes=9000) for shard in plan(manifest, seed=0, shard_bytes=40_000)]
    packed = [{cell["group_id"] for cell in shard.cells} for shard in shards]
    assert sum(shard.rows for shard in shards) == 350
    assert {"crops/group:125"} in packed
    assert sum(len(some - {"crops/group:125"}) for some in packed) == 300


def test_twice_the_same_gives_the_same_bytes_and_something_else_is_refused(tmp_path):
    source = parquet(tmp_path, FAMILIES)
    imported(tmp_path / "out", source)
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    imported(tmp_path / "out", source)
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before
    with pytest.raises(UserError, match=r"margin: None there, 0\.3 now"):
        imported(tmp_path / "out", source, margin=0.3)


def test_an_output_of_other_videos_is_left_as_it_is(tmp_path):
    out = tmp_path / "out"
    imported(out, parquet(tmp_path, [row("a.mp4"), row("b.mp4", "FAKE")]))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="1 videos that are not among these"):
        imported(out, parquet(tmp_path, [row("a.mp4"), row("c.mp4", "FAKE")], "other.parquet"))
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_folder(tmp_path, capsys):
    for name in ("real/one.jpg", "Fake/two/0.png", "Fake/two/1.png", "Fake/three.JPEG"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(picture(len(name), extension=".png" if "png" in name else ".jpg"))
    (tmp_path / "set" / "README.md").write_text("not a picture")
    rows = imported(tmp_path / "out", str(tmp_path / "set"))
    assert [(r["video_id"], r["label"], r["frame"]) for r in rows] == [
        ("crops/fake/three", "FAKE", 0),
        ("crops/fake/two", "FAKE", 0),
        ("crops/fake/two", "FAKE", 1),
        ("crops/real/one", "REAL", 0),
    ]
    assert {r["group_id"] for r in rows} == {"crops/family:fake/three", "crops/family:fake/two", "crops/family:real/one"}
    assert "2 pictures lie directly in real/ and fake/" in " ".join(capsys.readouterr().out.split())
    for name in ("real/one.jpg", "Fake/three.JPEG"):
        (tmp_path / "set" / name).unlink()
    capsys.readouterr()
    imported(tmp_path / "two", str(tmp_path / "set"))
    assert "directly" not in capsys.readouterr().out


def write_csv(folder: Path, rows: list[dict[str, str]]) -> str:
    with (folder / "list.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(key for one in rows for key in one)))
        writer.writeheader()
        writer.writerows(rows)
    return str(folder / "list.csv")


def test_whole_numbers_of_a_csv_that_pandas_made_floats(tmp_path):
    """A column with empty cells comes as 10.0: a fake would have another family than its original."""
    (tmp_path / "a.jpg").write_bytes(picture(0))
    names = ("path", "video", "label", "original", "part", "frame")
    lines = [("a.jpg", "10", "0.0", "", "3.0", "4.0"), ("a.jpg", "11", "1.0", "10.0", "", ""), ("a.jpg", "x.0", "1", "", "", "")]
    found = imported(tmp_path / "out", write_csv(tmp_path, [dict(zip(names, line, strict=True)) for line in lines]), corpus="c")
    facts = {row["video_id"]: (row["label"], row["family_id"], row["group_id"], row["frame"]) for row in found}
    assert facts == {
        "c/10": ("REAL", "c/10", "c/part:3", 4),
        "c/11": ("FAKE", "c/10", "c/part:3", 0),
        "c/x.0": ("FAKE", "c/x.0", "c/family:x.0", 0),
    }


def test_a_csv_and_what_is_damaged_or_absent(tmp_path, capsys):
    (tmp_path / "pictures").mkdir()
    for i in range(2):
        (tmp_path / "pictures" / f"{i}.jpg").write_bytes(picture(i))
    (tmp_path / "pictures" / "bad.jpg").write_bytes(b"\xff\xd8 no picture")
    rows = [
        {"path": "pictures/0.jpg", "video": "a", "label": "0", "group": "anna", "frame": "5"},
        {"path": "pictures/bad.jpg", "video": "a", "label": "0", "group": "anna", "frame": "6"},
        {"path": str(tmp_path / "pictures" / "1.jpg"), "video": "b", "label": "1", "group": "anna", "original": "a", "method": "swap"},
        {"path": "pictures/bad.jpg", "video": "c", "label": "real", "group": "bob"},
        {"path": "pictures/gone.jpg", "video": "d", "label": "fake", "group": "bob"},
    ]
    found = imported(tmp_path / "out", write_csv(tmp_path, rows), max_error_share=0.6)
    assert [(r["video_id"], r["frame"], r["group_id"], r["method"]) for r in found] == [
        ("crops/a", 5, "crops/group:anna", None),
        ("crops/b", 0, "crops/group:anna", "swap"),
    ]
    ledger = {r["video_id"]: r for r in read_ledger(str(tmp_path / "out")).to_pylist()}
    assert {name: (r["status"], r["stage"], r["frames_wanted"], r["faces"]) for name, r in ledger.items()} == {
        "crops/a": ("ok", "decode", 2, 1),
        "crops/b": ("ok", None, 1, 1),
        "crops/c": ("error", "decode", 1, 0),
        "crops/d": ("missing", "open", 1, 0),
    }
    assert "line 6" in ledger["crops/d"]["error"]
    assert "1 of 2 pictures damaged" in ledger["crops/a"]["error"]
    said = capsys.readouterr().out
    assert "error: crops/c: decode 1 of 1 pictures damaged" in said
    gone = f"{tmp_path}/pictures/gone.jpg ({tmp_path}/list.csv, line 6)"
    assert f"3 of 5 pictures could not be had: 1 absent, 2 damaged; first: {gone}" in said


def test_too_many_lost_pictures_fail_the_import_after_the_rest_is_written(tmp_path, capsys):
    """Of each video one picture of ten is there: it stays, and the ledger counts all ten as sampled."""
    rows = [{"path": f"{video}{i}.jpg", "video": video, "label": "real" if video < "c" else "fake"} for video in "abcd" for i in range(10)]
    source = write_csv(tmp_path, rows)
    for video in "abc":
        (tmp_path / f"{video}0.jpg").write_bytes(picture(0))
    assert main(["import", "--crops", source, "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr()
    assert f"37 of 40 pictures could not be had: 37 absent, 0 damaged; first: {tmp_path}/a1.jpg" in said.out
    assert "37 of 40 pictures (92.50%) were absent or damaged, more than --max-error-share 0.01 allows" in " ".join(said.err.split())
    assert len(read_rows(read_manifest(str(tmp_path / "out")))) == 3
    names = ("status", "frames_wanted", "frames_decoded", "core_decoded", "frames_with_face", "faces")
    ledger = [tuple(r[name] for name in names) for r in read_ledger(str(tmp_path / "out")).to_pylist()]
    assert ledger == [("ok", 10, 1, 10, 1, 1)] * 3 + [("missing", 10, 0, 10, 0, 0)]

    assert main(["import", "--crops", source, "--out", str(tmp_path / "out"), "--max-error-share", "0.95"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "import: 40 of 40 pictures" in said
    assert "37 of them absent or damaged" in said
    for one in rows:
        (tmp_path / one["path"]).write_bytes(picture(0))
    imported(tmp_path / "out", source)
    assert "could not be had" not in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--max-error-share 1\.5: must be between 0"):
        imported(tmp_path / "out", source, max_error_share=1.5)


def test_nothing_that_is_listed_is_there(tmp_path):
    source = write_csv(tmp_path, [{"path": f"{video}.jpg", "video": video, "label": "real"} for video in "ab"])
    with pytest.raises(UserError, match=r"2 of 2 pictures \(100\.00%\) were absent or damaged"):
        imported(tmp_path / "out", source)
    assert {r["status"] for r in read_ledger(str(tmp_path / "out")).to_pylist()} == {"missing"}


def of_hugging_face(folder: Path, labels: list[Any], feature: dict[str, Any]) -> str:
    """A table as `datasets` writes it: what the column label is, is in the metadata of the schema."""
    table = pa.Table.from_pylist([row(f"v{i}", label) for i, label in enumerate(labels)])
    metadata = {"huggingface": json.dumps({"info": {"features": {"video": {"dtype": "string", "_type": "Value"}, "label": feature}}})}
    pq.write_table(table.replace_schema_metadata(metadata), folder / "crops.parquet")
    return str(folder / "crops.parquet")


@pytest.mark.parametrize(
    ("feature", "given", "means"),
    [
        ({"names": ["fake", "real"], "_type": "ClassLabel"}, [0, 1, -1, None], ["FAKE", "REAL", None, None]),
        ({"names": ["Real", "FAKE"], "_type": "ClassLabel"}, [0, 1], ["REAL", "FAKE"]),
        ({"names": ["0", "1"], "_type": "ClassLabel"}, [0, 1], ["REAL", "FAKE"]),
        ({"dtype": "int64", "_type": "Value"}, [0, 1], ["REAL", "FAKE"]),
        ({"names": ["fake", "real"], "_type": "ClassLabel"}, ["fake", "real"], ["FAKE", "REAL"]),
    ],
)
def test_numbers_mean_what_hugging_face_says(feature, given, means, tmp_path):
    found = imported(tmp_path / "out", of_hugging_face(tmp_path, given, feature))
    assert [r["label"] for r in found] == means


def test_classes_that_are_not_known_are_refused(tmp_path):
    source = of_hugging_face(tmp_path, [0, 1], {"names": ["original", "swap"], "_type": "ClassLabel"})
    with pytest.raises(UserError, match=r"crops\.parquet: its labels are of the classes 'original', 'swap' .* Rename the classes"):
        imported(tmp_path / "out", source)
    source = of_hugging_face(tmp_path, [0, 2], {"names": ["real", "fake"], "_type": "ClassLabel"})
    with pytest.raises(UserError, match="row 1: the label '2' is not known"):
        imported(tmp_path / "out", source)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([row("a", "MAYBE")], "row 0: the label 'MAYBE' is not known"),
        ([row("a"), row("a", "FAKE")], "row 0 and .*row 1 say different things of the video 'a'"),
        ([row("a", original="b")], "names an original and is not a fake"),
        ([row("a", "FAKE"), row("b", "FAKE", original="a")], "which .*row 0 calls FAKE"),
        ([row("a", group="x"), row("b", "FAKE", original="a", group="y")], "but they are one family"),
        ([row("a", frame=1), row("a", frame=1)], "row 0 and .*row 1 are both frame 1"),
        ([row("a", frame=-2)], "frame '-2' is not a whole number from 0 to 2147483647"),
        ([row("")], "row 0: no name of a video"),
        ([{"video": "a", "jpeg": b""}], "the column 'label' is not there"),
        ([{"video": "a", "label": "REAL"}], "no column of pictures"),
        ([{"video": "a", "label": "REAL", "image": "a.jpg"}], "the column 'image' holds string, not the bytes of pictures"),
        ([row("a", part=float("inf"))], "part 'inf' is not a whole number"),
        ([row("a", part=2.7)], "part '2.7' is not a whole number"),
        ([row("a", frame=1 << 31)], "frame '2147483648' is not a whole number"),
    ],
)
def test_what_is_refused(rows, says, tmp_path):
    with pytest.raises(UserError, match=says):
        imported(tmp_path / "out", parquet(tmp_path, rows))


def test_a_fake_finds_its_original_however_the_columns_write_names(tmp_path, capsys):
    """As paths with a leading slash; as numbers, which pandas makes floats of where reals have no original."""
    paths = [row("/data/real/0.mp4"), row("/data/fake/0.mp4", "FAKE", original="/data/real/0.mp4")]
    numbers = [row(182, 0, original=None, part=3.0), row(183, 1, original=182.0, part=3.0)]
    for number, rows in enumerate((paths, numbers)):
        found = imported(tmp_path / str(number), parquet(tmp_path, rows), corpus="mine")
        assert len({r["family_id"] for r in found}) == 1
        assert [r["original"] for r in found] in ([None, "mine/182"], ["mine/data/real/0.mp4", None])
    assert "None of the" not in capsys.readouterr().out
    imported(tmp_path / "strangers", parquet(tmp_path, [row("0.mp4"), row("f.mp4", "FAKE", original="real/0.mp4")]))
    assert "None of the 1 originals that fakes name is among the videos: is 'real/0.mp4'" in " ".join(capsys.readouterr().out.split())


def test_a_source_given_twice_is_refused(tmp_path):
    source = parquet(tmp_path, FAMILIES)
    with pytest.raises(UserError, match="given twice"):
        imported(tmp_path / "out", source, source)


def test_one_video_in_two_sources_is_refused(tmp_path):
    sources = [parquet(tmp_path, [row("a")], name) for name in ("one.parquet", "two.parquet")]
    with pytest.raises(UserError, match=r"'a' is in .*one\.parquet and in .*two\.parquet"):
        imported(tmp_path / "out", *sources)


@pytest.mark.parametrize("what", ["nothing", "empty folder", "text.txt", "bad.parquet", "stray"])
def test_what_is_no_source(what, tmp_path, capsys):
    source = tmp_path / what
    if what == "stray":
        source.mkdir()
        (source / "a.jpg").write_bytes(picture(1))
    elif what == "empty folder":
        source.mkdir()
    elif what != "nothing":
        source.write_text("x")
    assert main(["import", "--crops", str(source), "--out", str(tmp_path / "out")]) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.s3
def test_from_s3_to_s3(s3, tmp_path):
    storage.write_bytes(storage.join(s3.uri, "crops.parquet"), Path(parquet(tmp_path, FAMILIES)).read_bytes())
    assert len(imported(storage.join(s3.uri, "out"), storage.join(s3.uri, "crops.parquet"))) == 5


def test_a_video_can_be_cut_alike_only_where_the_margin_is_known(tmp_path):
    imported(tmp_path / "out", parquet(tmp_path, FAMILIES), margin=0.2)
    settings = _settings(read_manifest(str(tmp_path / "out")).config)
    assert (settings.margin, settings.detector) == (0.2, "centerface")
    with pytest.raises(UserError, match="--margin"):
        _settings({"imported": True, "margin": None})


def test_real_crops(shared, tmp_path):
    rows = imported(tmp_path / "out", str(shared / "data" / "dfdc_crops_val.parquet"), corpus="dfdc")
    assert len(rows) == 2400
    assert {r["part"] for r in rows} == {40, 41, 43}
    manifest = read_manifest(str(tmp_path / "out"))
    assert split_mask(read_rows(manifest), "parts:0-40/41/43", "train").sum() > 100


def test_landmarks_where_they_are_asked_for(tmp_path, capsys):
    face = astronaut()[0:220, 110:330]
    rows = [row("a.mp4") | {"jpeg": cv2.imencode(".png", face[:, :, ::-1])[1].tobytes()}, row("b.mp4")]
    source = parquet(tmp_path, rows)
    found, blank = imported(tmp_path / "out", source, landmarks=True)
    eyes, nose, mouth = np.array(found["landmarks"]).reshape(-1, 2)[[0, 1]].mean(0), found["landmarks"][4:6], found["landmarks"][7]
    assert eyes == pytest.approx((115, 97), abs=8)
    assert eyes[1] < nose[1] < mouth < 220
    assert found["detector"] == "centerface"
    assert blank["landmarks"] is None
    assert "Landmarks found in 1 of 2 pictures (centerface)." in capsys.readouterr().out
    with pytest.raises(UserError, match="None now"):
        imported(tmp_path / "out", source)
    assert [r["landmarks"] for r in imported(tmp_path / "plain", source)] == [None, None]
