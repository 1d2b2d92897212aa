"""The manifest: what it yields, and what a person is told when a folder is not a finished preprocess output."""

import json
from pathlib import Path

import pytest
from helpers import write_face_shards

from dfdc_ray.errors import UserError
from dfdc_ray.shards.manifest import read_ledger, read_manifest


def test_reads_files_and_ledger(tmp_path: Path) -> None:
    folder = write_face_shards(tmp_path / "faces", families=2)
    manifest = read_manifest(str(folder))
    assert manifest.rows == 2 * (8 + 2 * 4)
    assert all(Path(f.uri).is_file() for f in manifest.files)
    assert read_ledger(str(folder)).num_rows == 6


def test_another_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not an output of `dfdc-ray preprocess`"):
        read_manifest(str(tmp_path))


def test_unfinished(tmp_path: Path) -> None:
    (tmp_path / "receipts").mkdir()
    with pytest.raises(UserError, match="not finished"):
        read_manifest(str(tmp_path))
    with pytest.raises(UserError, match="not finished"):
        read_ledger(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"format": 99}, "format 99"), ({"files": []}, "no face at all"), ({"files": [{"path": "x"}]}, "damaged")],
)
def test_bad_manifest(tmp_path: Path, change: dict, message: str) -> None:
    folder = write_face_shards(tmp_path / "faces", families=1)
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        read_manifest(str(folder))


def test_broken_json(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"format": 1')
    with pytest.raises(UserError, match="damaged"):
        read_manifest(str(tmp_path))
