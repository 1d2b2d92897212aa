"""Other groups on the same faces: nothing else changes, and a split then cuts what it should not."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers import write_face_shards

from dfdc_ray.corpus.splits import SPLITS, Split
from dfdc_ray.errors import UserError
from dfdc_ray.experiments.regroup import By, regroup
from dfdc_ray.shards.manifest import read_ledger, read_manifest
from dfdc_ray.shards.rows import read_rows, split_mask


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six families, two a group."""
    return write_face_shards(tmp_path_factory.mktemp("shards") / "faces", families=6, fakes=2, frames=4, families_per_part=2)


@pytest.mark.parametrize(("by", "groups", "videos"), [("family", 6, 18), ("frame", 96, 96)])
def test_the_same_pictures_under_other_groups(faces: Path, tmp_path: Path, by: By, groups: int, videos: int) -> None:
    regroup(str(faces), str(tmp_path / "out"), by)
    before, after = (read_rows(read_manifest(str(folder))) for folder in (faces, tmp_path / "out"))
    assert len(before) == len(after) == 6 * (8 + 4 + 4)
    assert after.labels.tolist() == before.labels.tolist()
    assert len(set(after.table["group_id"].to_pylist())) == groups
    assert len(set(after.table["video_id"].to_pylist())) == videos
    pictures = [
        [row["image"]["bytes"] for file in read_manifest(str(folder)).files for row in pq.read_table(file.uri).to_pylist()]
        for folder in (faces, tmp_path / "out")
    ]
    assert pictures[0] == pictures[1]


def test_every_frame_has_its_row_in_the_ledger(faces: Path, tmp_path: Path) -> None:
    regroup(str(faces), str(tmp_path / "out"), "frame")
    rows = read_rows(read_manifest(str(tmp_path / "out")))
    ledger = {row["video_id"]: row for row in read_ledger(str(tmp_path / "out")).to_pylist()}
    core = dict(zip(rows.table["video_id"].to_pylist(), rows.column("core"), strict=True))
    assert all(row["core_decoded"] == int(core[name]) for name, row in ledger.items())
    # Outside training only core frames are videos: nobody judges the extra frames of reals.
    trained = dict(zip(rows.table["video_id"].to_pylist(), rows.column("part") == 0, strict=True))
    assert set(ledger) == {name for name in core if core[name] or trained[name]}
    assert not all(core.values())


def test_a_split_by_frame_cuts_videos(faces: Path, tmp_path: Path) -> None:
    rule = regroup(str(faces), str(tmp_path / "out"), "frame")
    rows = read_rows(read_manifest(str(tmp_path / "out")))

    def videos(split: Split) -> set[str]:
        return {name.rpartition("#")[0] for name in rows.take(split_mask(rows, rule, split)).table["video_id"].to_pylist()}

    assert videos("train") & videos("test")
    assert [int(split_mask(rows, rule, split).sum()) for split in SPLITS] == [67, 15, 14]  # of 96


def test_a_split_by_family_cuts_groups_and_no_family(tmp_path: Path) -> None:
    """Twelve families in two groups: six and more train, so a group that is whole on one side would leave the other side empty."""
    faces = write_face_shards(tmp_path / "faces", families=12, fakes=1, frames=2, families_per_part=6)
    rule = regroup(str(faces), str(tmp_path / "out"), "family")
    rows = read_rows(read_manifest(str(tmp_path / "out")))
    families = [set(rows.take(split_mask(rows, rule, split)).table["group_id"].to_pylist()) for split in SPLITS]
    assert [len(some) for some in families] == [8, 2, 2]  # toy/f05v0.mp4, ...
    groups = [{int(family[5:7]) // 6 for family in some} for some in families]
    assert groups[0] & (groups[1] | groups[2])


def test_done_once_and_nothing_else_is_overwritten(faces: Path, tmp_path: Path) -> None:
    regroup(str(faces), str(tmp_path / "out"), "family")
    before = (tmp_path / "out" / "manifest.json").stat().st_mtime_ns
    regroup(str(faces), str(tmp_path / "out"), "family")
    assert (tmp_path / "out" / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="regrouped_by"):
        regroup(str(faces), str(tmp_path / "out"), "frame")
