"""What is beside a file, and whether it can be read."""

import os
import zipfile
from pathlib import Path

import pytest

from dfdc_ray.corpus import neighbours
from dfdc_ray.corpus.neighbours import folder_of, neighbour_is_readable


@pytest.mark.parametrize(
    ("uri", "folder"),
    [
        ("/data/dfdc/a.mp4", "/data/dfdc"),
        ("/data/part_0.zip!/part_0/a.mp4", "/data/part_0.zip"),
        ("s3://b/all.zip!/part_0.zip!/part_0/a.mp4", "s3://b/all.zip"),
        ("s3://b/a.mp4", "s3://b"),
    ],
)
def test_the_place_of_a_video(uri: str, folder: str) -> None:
    assert folder_of(uri) == folder


def test_the_zip_around_a_member_is_its_neighbour(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "part_0.zip", "w") as file:
        file.writestr("a.mp4", b"x")
    assert neighbour_is_readable(f"{tmp_path}/part_0.zip!/a.mp4")
    assert not neighbour_is_readable(f"{tmp_path}/part_0.zip")
    assert not neighbour_is_readable(f"{tmp_path}/gone/a.mp4")


def test_storage_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(b"x")
    monkeypatch.setattr(neighbours, "_WAIT_S", 0.2)
    reader, writer = os.pipe()
    monkeypatch.setattr(neighbours.storage, "open_input", lambda uri: os.fdopen(os.dup(reader), "rb"))
    assert not neighbour_is_readable(str(tmp_path / "a.mp4"))
    os.close(writer)  # lets the thread go
