"""Storage: the same promises on a local disk and on S3."""

import errno
import multiprocessing
import os
import subprocess
import sys
import threading
import uuid
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from s3_server import forget_connections

from dfdc_ray import storage
from dfdc_ray.corpus.index import build_index
from dfdc_ray.corpus.zips import open_video
from dfdc_ray.errors import StorageError, UserError, VideoError


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new, empty folder."""
    return str(tmp_path) if request.param == "local" else str(request.getfixturevalue("s3").uri)


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


def test_large_files_and_zips_are_read_in_place(root: str, tmp_path: Path) -> None:
    video = os.urandom(9_000_000)
    zip_path = tmp_path / "made.tmp"
    with zipfile.ZipFile(zip_path, "w") as archive:
        archive.writestr("dfdc_train_part_3/metadata.json", '{"a.mp4": {"label": "REAL"}}')
        archive.writestr("dfdc_train_part_3/a.mp4", video)
    storage.write_bytes(storage.join(root, "dfdc", "dfdc_train_part_03.zip"), zip_path.read_bytes())
    table, _ = build_index([storage.join(root, "dfdc")])
    assert table.select(["video_id", "label", "part", "size_bytes"]).to_pylist() == [
        {"video_id": "dfdc/a.mp4", "label": "REAL", "part": 3, "size_bytes": len(video)}
    ]
    with open_video(table["uri"][0].as_py()) as file:
        assert file.read() == video
    with pytest.raises(VideoError, match="not found"):
        open_video(storage.join(root, "gone.mp4"))


@pytest.mark.s3
@pytest.mark.parametrize("root", ["s3"], indirect=True)
@pytest.mark.parametrize("act", ["read_bytes(uri)", "list_dir(uri)", "write_bytes(uri, b'')", "create_once(uri, b'')"])
def test_s3_denies_wrong_credentials_without_repeating_them(root: str, act: str) -> None:
    imports = "from dfdc_ray.errors import *\nfrom dfdc_ray.storage import *\n"
    code = f"{imports}uri = {root!r}\ntry: {act}\nexcept UserError as error: print(error)"
    environment = os.environ | {"AWS_ACCESS_KEY_ID": "not-the-key", "AWS_SECRET_ACCESS_KEY": "not-the-secret"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert "denies access" in done.stdout
    assert "not-the-" not in done.stdout + done.stderr


@pytest.mark.s3
@pytest.mark.parametrize("root", ["s3"], indirect=True)
def test_a_bucket_that_does_not_exist_and_a_server_that_does_not_answer(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for act in (storage.list_dir, lambda uri: storage.write_bytes(uri, b""), lambda uri: storage.create_once(uri, b"")):
        with pytest.raises(UserError, match="no such bucket"):
            act("s3://no-such-bucket-here/key")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    forget_connections()
    with pytest.raises(StorageError, match="does not answer"):
        storage.read_bytes("s3://another-bucket/key")
    with pytest.raises(StorageError, match="does not answer"):
        open_video("s3://another-bucket/key")


def test_a_relative_path_and_a_file_uri_mean_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage.write_bytes("a b%20.txt", b"x")
    assert storage.read_bytes(f"file://{tmp_path}/a%20b%2520.txt") == b"x"
    assert storage.absolute("a b%20.txt") == f"{tmp_path}/a b%20.txt"
    assert storage.absolute("s3://bucket/key/") == "s3://bucket/key"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("gs://bucket/key", "gs:// is not supported"),
        ("s3://", "not the name of a bucket"),
        ("s3://AKIAKEY:secret@bucket/key", "must not carry credentials"),
        ("s3://AKIAKEY:sec/ret@bucket/key", "must not carry credentials"),
        ("", "is not a path"),
        ("a\0b", "is not a path"),
    ],
)
def test_a_uri_that_makes_no_sense_is_refused_without_its_secrets(uri: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        storage.read_bytes(uri)
    assert "AKIAKEY" not in str(caught.value)
    assert "ret@" not in str(caught.value)


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = str(tmp_path / "kept.bin")
    storage.write_bytes(uri, b"old")

    def disk_full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(StorageError, match="No space left"):
        storage.write_bytes(uri, b"new")
    with pytest.raises(StorageError, match="No space left"):
        storage.create_once(str(tmp_path / "other.bin"), b"new")
    assert os.listdir(tmp_path) == ["kept.bin"]
    assert storage.read_bytes(uri) == b"old"


def test_denied_access_is_the_user_s_to_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "replace", denied)  # a mode would not stop root, as which containers run tests
    with pytest.raises(UserError, match=r"x\.bin: permission denied"):
        storage.write_bytes(str(tmp_path / "x.bin"), b"")


def test_temporary_files_pipes_and_loops_are_not_listed(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"x")
    (tmp_path / f".{uuid.uuid4().hex}.tmp").write_bytes(b"half")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "loop2").symlink_to(tmp_path)
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.mp4")
    assert [entry.name for entry in storage.list_dir(str(tmp_path), recursive=True)] == ["loop", "loop2", "x.bin"]
    with pytest.raises(FileNotFoundError, match="not a file"):
        storage.open_input(str(tmp_path / "pipe.mp4"))
    with pytest.raises(FileNotFoundError, match="not a folder"):
        storage.list_dir(str(tmp_path / "x.bin"))


def test_a_file_name_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.mp4")).write_bytes(b"")
    with pytest.raises(UserError, match="not UTF-8"):
        storage.list_dir(str(tmp_path))


def test_deleting_a_folder_leaves_what_its_links_lead_to(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "x").write_bytes(b"x")
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "link").symlink_to(tmp_path / "kept")
    storage.delete(str(tmp_path / "gone"))
    assert (tmp_path / "kept" / "x").read_bytes() == b"x"
    assert not (tmp_path / "gone").exists()
