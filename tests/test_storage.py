"""Storage: the same promises on a local disk and on S3 (marker s3: set DFDC_RAY_TEST_S3=s3://bucket/prefix and the AWS environment)."""

import multiprocessing
import os
import threading
import uuid
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dfdc_ray import storage
from dfdc_ray.corpus.index import build_index
from dfdc_ray.corpus.zips import open_video
from dfdc_ray.errors import StorageError, UserError, VideoError


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A new, empty folder."""
    if request.param == "local":
        yield str(tmp_path)
        return
    if "DFDC_RAY_TEST_S3" not in os.environ:
        pytest.skip("no S3 server: set DFDC_RAY_TEST_S3=s3://bucket/prefix")
    uri = storage.join(os.environ["DFDC_RAY_TEST_S3"], uuid.uuid4().hex)
    yield uri
    if storage.exists(uri):
        storage.delete(uri)


def test_what_is_written_is_read_listed_and_deleted(root: str) -> None:
    uri = storage.join(root, "a", "b.bin")
    storage.write_bytes(uri, b"first")
    storage.write_bytes(uri, b"second")
    storage.write_bytes(storage.join(root, "a", "c", "d.bin"), b"")
    assert storage.read_bytes(uri) == b"second"
    assert storage.stat(uri) == storage.Entry(uri, "b.bin", False, 6)
    assert storage.stat(storage.join(root, "a")).is_dir
    assert [(e.name, e.is_dir, e.size) for e in storage.list_dir(storage.join(root, "a"))] == [("b.bin", False, 6), ("c", True, None)]
    assert [e.name for e in storage.list_dir(root, recursive=True)] == ["a", "a/b.bin", "a/c", "a/c/d.bin"]
    assert [storage.read_bytes(e.uri) for e in storage.list_dir(root, recursive=True) if not e.is_dir] == [b"second", b""]
    storage.delete(uri)
    assert not storage.exists(uri)
    storage.delete(storage.join(root, "a"))
    assert not storage.exists(storage.join(root, "a", "c", "d.bin"))


@pytest.mark.parametrize("act", [storage.read_bytes, storage.open_input, storage.stat, storage.delete])
def test_what_is_absent_is_a_file_not_found_error_that_names_it(root: str, act: Callable[[str], object]) -> None:
    uri = storage.join(root, "absent.bin")
    assert not storage.exists(uri)
    with pytest.raises(FileNotFoundError, match=r"absent\.bin"):
        act(uri)


def test_a_made_folder_is_empty(root: str) -> None:
    storage.make_dirs(storage.join(root, "new"))
    storage.make_dirs(storage.join(root, "new"))
    assert storage.list_dir(storage.join(root, "new")) == []


def test_an_open_file_seeks_and_reads_like_python_s_own(root: str, tmp_path: Path) -> None:
    data = os.urandom(300_000)
    uri = storage.join(root, "data.bin")
    storage.write_bytes(uri, data)
    (tmp_path / "same.bin").write_bytes(data)
    with storage.open_input(uri) as file, open(tmp_path / "same.bin", "rb") as same:
        for offset, whence, size in [(0, 2, 10), (-5, 2, 10), (100, 0, 7), (-50, 1, 3), (299_990, 0, 50), (400_000, 0, 1), (0, 0, -1)]:
            assert file.seek(offset, whence) == same.seek(offset, whence)
            assert file.read(size) == same.read(size)
            assert file.tell() == same.tell()
        with pytest.raises(OSError, match="seek"):
            file.seek(-1)


def test_exactly_one_of_many_writers_creates(root: str) -> None:
    uri = storage.join(root, "receipts", "unit.json")
    barrier = threading.Barrier(8)

    def write(number: int) -> bool:
        barrier.wait()
        return storage.create_once(uri, f"writer {number}".encode())

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(write, range(8)))
    assert won.count(True) == 1
    assert storage.read_bytes(uri) == f"writer {won.index(True)}".encode()
    assert [e.name for e in storage.list_dir(storage.join(root, "receipts"))] == ["unit.json"]


def test_a_forked_and_a_spawned_process_read(root: str) -> None:
    uri = storage.join(root, "x.bin")
    storage.write_bytes(uri, b"content")
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            assert pool.apply_async(storage.read_bytes, (uri,)).get(timeout=60) == b"content"


def test_large_files_and_zips_are_read_in_place(root: str) -> None:
    video = os.urandom(9_000_000)
    local = Path(storage.absolute(f"{os.environ.get('TMPDIR', '/tmp')}/{uuid.uuid4().hex}.zip"))
    try:
        with zipfile.ZipFile(local, "w") as archive:
            archive.writestr("dfdc_train_part_3/metadata.json", '{"a.mp4": {"label": "REAL"}}')
            archive.writestr("dfdc_train_part_3/a.mp4", video)
        storage.write_bytes(storage.join(root, "dfdc_train_part_03.zip"), local.read_bytes())
    finally:
        local.unlink()
    table, _ = build_index([f"dfdc={root}"])
    assert table.select(["video_id", "label", "part", "size_bytes"]).to_pylist() == [
        {"video_id": "dfdc/a.mp4", "label": "REAL", "part": 3, "size_bytes": len(video)}
    ]
    with open_video(table["uri"][0].as_py()) as file:
        assert file.read() == video
    with pytest.raises(VideoError, match="not found"):
        open_video(storage.join(root, "gone.mp4"))


@pytest.mark.s3
@pytest.mark.parametrize("root", ["s3"], indirect=True)
def test_s3_denies_wrong_credentials_without_repeating_them(root: str) -> None:
    for act in (storage.read_bytes, storage.list_dir, lambda uri: storage.write_bytes(uri, b""), lambda uri: storage.create_once(uri, b"")):
        context = multiprocessing.get_context("spawn")
        with context.Pool(1, initializer=_wrong_credentials) as pool:
            message = pool.apply_async(_user_error, (_NAMES[act] if act in _NAMES else act.__name__, root)).get(timeout=60)
        assert "denies access" in message
        assert "not-the-secret" not in message
