"""Packing: every row once and as it was, groups and tracks whole, the same bytes again, and nothing done twice."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from helpers import pack_shards, write_face_shards

from dfdc_ray.errors import UserError
from dfdc_ray.shards import packed
from dfdc_ray.shards.dataset import FaceDataset
from dfdc_ray.shards.manifest import Manifest, read_manifest
from dfdc_ray.shards.order import ShuffledOrder
from dfdc_ray.shards.pack import plan
from dfdc_ray.shards.rows import read_rows, split_mask
from dfdc_ray.shards.schema import FACES
from dfdc_ray.train import transforms

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")  # torchvision's own v2.JPEG


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 families of 20 faces of about 2.4 KB: three groups of six, one of two, four of one; a third of them with two tracks a video."""
    folder = write_face_shards(tmp_path_factory.mktemp("pack") / "faces", families=24, fakes=3, families_per_part=6)
    return _second_tracks(_regrouped(folder))


@pytest.fixture(scope="module")
def out(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(pack_shards(plain, tmp_path_factory.mktemp("packed") / "out"))


def _rewrite(folder: Path, change: Any) -> Path:
    """Change every table of the shards, keeping the row groups; files keep their names, the manifest learns of it."""
    content = json.loads((folder / "manifest.json").read_text())
    for number, file in enumerate(content["files"]):
        path = folder / file["path"]
        with pq.ParquetFile(path) as source:
            tables = [change(number, source.read_row_group(i)) for i in range(source.num_row_groups)]
        with pq.ParquetWriter(path, FACES, use_dictionary=False) as writer:
            for table in tables:
                writer.write_table(table)
        file["sha256"] = _sha256(path)
    (folder / "manifest.json").write_text(json.dumps(content))
    return folder


def _regrouped(folder: Path) -> Path:
    """Families 18 to 23 leave their group: 18 and 19 for one of two, the others for groups of their own, without a part."""

    def change(family: int, table: pa.Table) -> pa.Table:
        if family < 18:
            return table
        name = f"toy/pair-{max(family, 19)}"
        table = table.set_column(FACES.get_field_index("group_id"), "group_id", pa.array([name] * len(table), pa.string()))
        return table.set_column(FACES.get_field_index("part"), "part", pa.nulls(len(table), pa.int32()))

    return _rewrite(folder, change)


def _second_tracks(folder: Path) -> Path:
    """In every third family, the later half of each video is another face."""

    def change(family: int, table: pa.Table) -> pa.Table:
        tracks = [int(family % 3 == 0 and i >= len(table) // 2) for i in range(len(table))]
        return table.set_column(FACES.get_field_index("track_id"), "track_id", pa.array(tracks, pa.int32()))

    return _rewrite(folder, change)


def _sha256(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def _rows(manifest: Manifest) -> pa.Table:
    """All rows, in one order."""
    tables = [pq.read_table(file.uri, schema=FACES) for file in manifest.files]
    return pa.concat_tables(tables).sort_by([(name, "ascending") for name in ("video_id", "track_id", "frame")]).combine_chunks()


def _row_groups(manifest: Manifest) -> list[pa.Table]:
    found = []
    for file in manifest.files:
        with pq.ParquetFile(file.uri) as parquet:
            found += [parquet.read_row_group(i) for i in range(parquet.num_row_groups)]
    return found


def _names(out: str | Path) -> list[str]:
    return sorted(path.name for path in (Path(out) / "shards").iterdir())


def test_every_row_once_and_as_it_was(plain: Path, out: Path) -> None:
    source, result = read_manifest(str(plain)), read_manifest(str(out))
    assert (source.kind, result.kind) == ("plain", "packed")
    assert result.rows == source.rows == 24 * 20
    assert result.config == source.config
    assert pq.read_schema(result.files[0].uri) == FACES
    assert _rows(result).equals(_rows(source))
    assert all(_sha256(Path(file.uri)) == file.sha256 for file in result.files)
    assert all((out / name).read_bytes() == (plain / name).read_bytes() for name in ("index.parquet", "ledger.parquet"))


def test_groups_are_whole_by_shard_set_and_shards_of_equal_size(out: Path) -> None:
    files = json.loads((out / "manifest.json").read_text())["files"]
    groups = [tuple(file["groups"]) for file in files]
    # Of 290, 96 and 48 KB: the first are cut in two, the second stays alone, the last are put together by two.
    sets = Counter(groups)
    assert [n for group, n in sorted(sets.items()) if len(group) == 1] == [1, 2, 2, 2]
    assert sets[("toy/pair-19",)] == 1
    small = [group for group in sets if len(group) > 1]
    assert [(len(group), sets[group]) for group in small] == [(2, 1), (2, 1)]
    assert sorted(name for group in small for name in group) == [f"toy/pair-{n}" for n in (20, 21, 22, 23)]
    assert {file["rows"] for file in files if file["groups"][0].startswith("toy/part")} <= {56, 60, 64}  # 60, give or take a video


def test_tracks_are_whole_and_shuffled(plain: Path, out: Path) -> None:
    seen: list[tuple[str, int]] = []
    row_groups = _row_groups(read_manifest(str(out)))
    for table in row_groups:
        keys = list(zip(table["video_id"].to_pylist(), table["track_id"].to_pylist(), strict=True))
        seen += [key for i, key in enumerate(keys) if i == 0 or key != keys[i - 1]]
        assert pc.sum(pc.binary_length(pc.struct_field(table["image"], "bytes"))).as_py() < 0.04e6
    assert len(seen) == len(set(seen)) == 24 * 4 + 8 * 4  # each in one place
    frames = row_groups[0]["frame"].to_numpy()
    assert (np.diff(frames)[np.diff(row_groups[0]["track_id"].to_numpy()) == 0] != 0).all()
    assert 3 * len(row_groups) < sum(len(pc.unique(table["family_id"])) for table in row_groups) * 2  # families are mixed
    assert seen != sorted(seen)
    assert len(row_groups) > 2 * len(read_manifest(str(out)).files)


def test_the_same_bytes_again_and_others_with_another_seed(plain: Path, out: Path, tmp_path: Path) -> None:
    again = pack_shards(plain, tmp_path / "again")
    assert _names(again) == _names(out)
    assert (Path(again) / "manifest.json").read_bytes() == (out / "manifest.json").read_bytes()
    other = pack_shards(plain, tmp_path / "other", seed=1)
    assert read_manifest(other).data_hash != read_manifest(str(out)).data_hash
    assert _rows(read_manifest(other)).equals(_rows(read_manifest(str(out))))


def test_counts_by_label_part_and_group(plain: Path, out: Path) -> None:
    counts = json.loads((out / "manifest.json").read_text())["counts"]
    assert counts["label"] == [
        {"label": "FAKE", "videos": 72, "tracks": 96, "rows": 288},
        {"label": "REAL", "videos": 24, "tracks": 32, "rows": 192},
    ]
    assert [(c["part"], c["videos"], c["rows"]) for c in counts["part"]] == [(part, 24, 120) for part in (0, 1, 2, None)]
    assert [(c["group_id"], c["videos"]) for c in counts["group"]] == [
        ("toy/pair-19", 8),
        *((f"toy/pair-{n}", 4) for n in (20, 21, 22, 23)),
        *((f"toy/part-{n}", 24) for n in (0, 1, 2)),
    ]
    rows = _rows(read_manifest(str(plain)))
    assert sum(c["tracks"] for c in counts["group"]) == rows.group_by(["video_id", "track_id"]).aggregate([]).num_rows


def test_a_family_larger_than_a_shard_is_cut_between_videos(tmp_path: Path) -> None:
    folder = write_face_shards(tmp_path / "faces", families=2, fakes=3)
    manifest = read_manifest(pack_shards(folder, tmp_path / "out", shard_mb=0.01, row_group_mb=0.01))
    assert len(manifest.files) > 4
    videos = [set(pq.read_table(file.uri, columns=["video_id"])["video_id"].to_pylist()) for file in manifest.files]
    assert sum(map(len, videos)) == len(set.union(*videos)) == 8
    assert _rows(manifest).equals(_rows(read_manifest(str(folder))))


def test_a_group_that_is_cut_between_row_groups_of_several_is_refused(tmp_path: Path) -> None:
    folder = write_face_shards(tmp_path / "faces", families=2)
    index = FACES.get_field_index("group_id")
    _rewrite(folder, lambda _, table: table.set_column(index, "group_id", pa.array(["a", *["b"] * (len(table) - 1)])))
    with pytest.raises(UserError, match=r"\.parquet has a row group of several groups, of which one is elsewhere too"):
        pack_shards(folder, tmp_path / "out")


def test_whole_frames_have_no_track(tmp_path: Path) -> None:
    folder = write_face_shards(tmp_path / "faces", families=2)
    index = FACES.get_field_index("track_id")
    _rewrite(folder, lambda _, table: table.set_column(index, "track_id", pa.nulls(len(table), pa.int32())))
    manifest = read_manifest(pack_shards(folder, tmp_path / "out", shard_mb=1, row_group_mb=1))
    assert _rows(manifest).equals(_rows(read_manifest(str(folder))))
    assert len(manifest.files) == 1


def test_training_sees_the_same_rows_in_an_epoch(plain: Path, out: Path) -> None:
    def epoch(folder: Path, split: str, number: int) -> tuple[list[tuple[str, int, int]], dict[tuple[str, int, int], bytes]]:
        rows = read_rows(read_manifest(str(folder)))
        rows = rows.take(split_mask(rows, "hash:1:50/25/25", split))  # type: ignore[arg-type]
        keys = list(zip(*(rows.table[name].to_pylist() for name in ("video_id", "track_id", "frame")), strict=True))
        order = ShuffledOrder(rows, 10, seed=0, epochs=9).epoch_order(number)
        some = rows.take(order[:40])
        dataset = FaceDataset(some, transforms.evaluation(transforms.recipe(32, "resnet34")), ShuffledOrder(some, 40, seed=0, epochs=1))
        (batch,) = dataset
        pictures = {keys[order[p]]: image.numpy().tobytes() for p, image in zip(batch.positions.tolist(), batch.images, strict=True)}
        return [keys[i] for i in order], pictures

    whole = read_rows(read_manifest(str(plain)))
    spec = transforms.evaluation(transforms.recipe(32, "resnet34"))
    positions = {
        key: i for i, key in enumerate(zip(*(whole.table[name].to_pylist() for name in ("video_id", "track_id", "frame")), strict=True))
    }
    for split in ("train", "validation", "test"):
        before, now = epoch(plain, split, 3), epoch(out, split, 3)
        assert len(before[0]) > 40
        assert sorted(before[0]) == sorted(now[0])
        assert before[0] != now[0]
        wanted = whole.take(np.array([positions[key] for key in now[1]]))
        (batch,) = FaceDataset(wanted, spec, ShuffledOrder(wanted, 40, seed=0, epochs=1))
        images = {int(p): image.numpy().tobytes() for p, image in zip(batch.positions, batch.images, strict=True)}
        assert [images[i] for i in range(40)] == list(now[1].values())


def test_only_what_is_not_done_is_made(plain: Path, tmp_path: Path) -> None:
    out = Path(pack_shards(plain, tmp_path / "out"))
    before = {name: (out / "shards" / name).stat().st_mtime_ns for name in _names(out)}
    manifest = (out / "manifest.json").read_bytes()
    shards = plan(read_manifest(str(plain)), seed=0, shard_bytes=0.12e6)
    assert sorted(packed.done(str(out), shards)) == list(range(len(shards)))

    (out / "shards" / "00001.json").unlink()  # killed before the receipt
    receipt = out / "shards" / "00003.json"
    receipt.write_text(json.dumps(json.loads(receipt.read_text()) | {"plan": "of other versions"}))
    (out / "shards" / ".0123456789abcdef0123456789abcdef.tmp").write_bytes(b"half a shard")
    (out / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"not finished: run the same `dfdc-ray pack`"):
        read_manifest(str(out))

    done = packed.done(str(out), shards)
    assert sorted(set(range(len(shards))) - done.keys()) == [1, 3]
    source = read_manifest(str(plain))
    settings = packed.Settings(faces_data_hash=source.data_hash, seed=0, shard_mb=0.12, row_group_mb=0.02)
    for number in (1, 3):
        done[number] = packed.commit(str(out), shards[number], settings)
    packed.publish(str(out), source, done, settings, copied=packed.companions(source), versions={})
    assert (out / "manifest.json").read_bytes() == manifest
    redone = {name for name, time in before.items() if (out / "shards" / name).stat().st_mtime_ns != time}
    assert {name[:5] for name in redone} == {"00001", "00003"}


def test_no_manifest_is_written_when_a_row_is_missing(plain: Path, tmp_path: Path) -> None:
    out = Path(pack_shards(plain, tmp_path / "out"))
    (out / "manifest.json").unlink()
    source = read_manifest(str(plain))
    settings = packed.Settings(faces_data_hash=source.data_hash, seed=0, shard_mb=0.12, row_group_mb=0.02)
    receipts = packed.done(str(out), plan(source, seed=0, shard_bytes=0.12e6))
    del receipts[2]
    with pytest.raises(RuntimeError, match="480"):
        packed.publish(str(out), source, receipts, settings, copied={}, versions={})
    assert not (out / "manifest.json").exists()


def test_another_configuration_or_other_faces_are_refused(plain: Path, out: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(out, tmp_path / "out")
    with pytest.raises(UserError, match=r"begun with another configuration:\n  seed: 0 there, 5 now\nGive"):
        pack_shards(plain, copy, seed=5)
    with pytest.raises(UserError, match=r"shard_mb: 0.12 there, 0.06 now"):
        pack_shards(plain, copy, shard_mb=0.06, row_group_mb=0.02)
    other = write_face_shards(tmp_path / "other", families=2)
    with pytest.raises(UserError, match=r"faces_data_hash: '"):
        pack_shards(other, copy)


def test_a_damaged_or_absent_source_is_named(tmp_path: Path) -> None:
    folder = write_face_shards(tmp_path / "faces", families=2)
    shard = sorted((folder / "faces").iterdir())[1]
    good = shard.read_bytes()
    shard.write_bytes(good.replace(b"\xff\xd8\xff\xe0", b"\0\0\0\0", 1))  # a picture: Parquet itself would not see it
    with pytest.raises(UserError, match=f"{shard.name} is damaged: its SHA-256"):
        pack_shards(folder, tmp_path / "a")
    shard.write_bytes(good[:-30])
    with pytest.raises(UserError, match=f"{shard.name} is not a face shard, or it is damaged"):
        pack_shards(folder, tmp_path / "b")
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard.name} is absent"):
        pack_shards(folder, tmp_path / "c")
    (folder / "index.parquet").unlink()
    with pytest.raises(UserError, match=r"index.parquet is absent"):
        packed.companions(read_manifest(str(folder)))
