"""Zips read in place: right bytes or a named error, also for zips that were made to harm."""

import io
import os
import random
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import pytest

from dfdc_ray.corpus import zips
from dfdc_ray.corpus.zips import list_members, open_video
from dfdc_ray.errors import UserError, VideoError

VIDEO = random.Random(0).randbytes(50_000) + bytes(50_000)
# Offsets of fields in a central directory header (APPNOTE 4.3.12).
FLAGS, METHOD, CRC, COMPRESSED, SIZE, OFFSET = 8, 10, 16, 20, 24, 42


def make_zip(path: Path, members: dict[str, bytes], *, compression: int = zipfile.ZIP_STORED) -> str:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return str(path)


def patch(uri: str, field: int, value: int, *, form: str = "<I") -> None:
    """Change a field of the first entry in the central directory."""
    data = bytearray(Path(uri).read_bytes())
    struct.pack_into(form, data, data.index(b"PK\1\2") + field, value)
    Path(uri).write_bytes(data)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_member_reads_and_seeks_like_the_file_it_was(tmp_path: Path, compression: int) -> None:
    uri = make_zip(tmp_path / "x.zip", {"part/a.mp4": VIDEO, "part/b.mp4": b"b" * 10, "empty/": b""}, compression=compression)
    first, second = list_members(uri)
    assert (first.name, first.uri, first.size) == ("part/a.mp4", f"{uri}!/part/a.mp4", len(VIDEO))
    assert first.compressed == (compression == zipfile.ZIP_DEFLATED)
    with open_video(first.uri) as file, io.BytesIO(VIDEO) as same:
        for offset, whence, size in [(0, 2, 1), (-7, 2, 20), (10, 0, 70_000), (-100, 1, 5), (200_000, 0, 5), (0, 0, -1)]:
            assert file.seek(offset, whence) == same.seek(offset, whence)
            assert file.read(size) == same.read(size)
        with pytest.raises((OSError, ValueError)):
            file.seek(-1)
    assert open_video(second.uri).read() == b"b" * 10


def test_a_stored_member_is_not_read_into_memory(tmp_path: Path) -> None:
    uri = make_zip(tmp_path / "x.zip", {"a.mp4": bytes(64 << 20)})
    open_video(f"{uri}!/a.mp4").close()
    tracemalloc.start()
    with open_video(f"{uri}!/a.mp4") as file:
        file.seek(-10, os.SEEK_END)
        assert file.read() == bytes(10)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20


def test_a_zip_in_a_zip(tmp_path: Path) -> None:
    make_zip(tmp_path / "inner.zip", {"a.mp4": VIDEO})
    deflated = make_zip(tmp_path / "inner2.zip", {"a.mp4": VIDEO}, compression=zipfile.ZIP_DEFLATED)
    members = {"dfdc/p.zip": (tmp_path / "inner.zip").read_bytes(), "q.zip": Path(deflated).read_bytes()}
    outer = make_zip(tmp_path / "outer.zip", members)
    for inner in ("dfdc/p.zip", "q.zip"):
        (member,) = list_members(f"{outer}!/{inner}")
        assert member.uri == f"{outer}!/{inner}!/a.mp4"
        assert open_video(member.uri).read() == VIDEO


def test_a_deflated_inner_zip_is_refused_with_advice(tmp_path: Path) -> None:
    inner = Path(make_zip(tmp_path / "inner.zip", {"a.mp4": VIDEO})).read_bytes()
    outer = make_zip(tmp_path / "outer.zip", {"inner.zip": inner}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match=r"outer\.zip: the entry 'inner\.zip' is compressed.*Unpack the outer zip"):
        list_members(f"{outer}!/inner.zip")
    with pytest.raises(VideoError, match="Unpack the outer zip"):
        open_video(f"{outer}!/inner.zip!/a.mp4")


@pytest.mark.parametrize(
    "name", ["/a.mp4", "../a.mp4", "a/../b.mp4", "a/..", ".", "a/.", "a\\b.mp4", "C:a.mp4", "c:/a.mp4", "a\0.mp4", "x.zip!/a.mp4"]
)
def test_an_unsafe_name_is_refused_naming_zip_and_entry(tmp_path: Path, name: str) -> None:
    uri = make_zip(tmp_path / "bad.zip", {"good.mp4": b"", "N" * len(name): b""})
    Path(uri).write_bytes(Path(uri).read_bytes().replace(b"N" * len(name), name.encode()))
    with pytest.raises(UserError, match=r"bad\.zip: the entry .*unsafe name") as caught:
        list_members(uri)
    assert repr(name) in str(caught.value)
    with pytest.raises(VideoError, match="unsafe name"):
        open_video(f"{uri}!/good.mp4")


@pytest.mark.parametrize("name", ["a..b.mp4", "..a/b.mp4", "./a.mp4", "ünïcode 你.mp4", "C.mp4"])
def test_an_odd_but_safe_name_is_read(tmp_path: Path, name: str) -> None:
    uri = make_zip(tmp_path / "x.zip", {name: VIDEO})
    (member,) = list_members(uri)
    assert open_video(member.uri).read() == VIDEO


def test_an_entry_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    uri = make_zip(tmp_path / "x.zip", {"a.mp4": b"1", "b.mp4": b"2"})
    Path(uri).write_bytes(Path(uri).read_bytes().replace(b"b.mp4", b"a.mp4"))
    with pytest.raises(UserError, match=r"'a\.mp4' is there twice"):
        list_members(uri)


def test_an_encrypted_entry_is_named(tmp_path: Path) -> None:
    uri = make_zip(tmp_path / "x.zip", {"a.mp4": VIDEO})
    patch(uri, FLAGS, 1, form="<H")
    with pytest.raises(UserError, match=r"x\.zip: the entry 'a\.mp4' is encrypted"):
        list_members(uri)
    with pytest.raises(VideoError, match="encrypted"):
        open_video(f"{uri}!/a.mp4")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (CRC, 1, "damaged"),
        (SIZE, 10, "more than the 10 bytes"),  # a bomb that understates itself
        (SIZE, 0, "more than the 0 bytes"),
        (SIZE, len(VIDEO) - 1, "more than"),
        (SIZE, len(VIDEO) + 1, "damaged"),
        (SIZE, 3 << 30, "bytes of memory"),  # one that does not
        (COMPRESSED, 100, "damaged"),
        (COMPRESSED, 1 << 30, "beyond the end"),
        (OFFSET, 5, "not where"),
        (OFFSET, 1 << 30, "not where"),
    ],
)
def test_a_damaged_or_lying_deflated_entry_is_a_video_error(tmp_path: Path, field: int, value: int, message: str) -> None:
    uri = make_zip(tmp_path / "x.zip", {"a.mp4": VIDEO}, compression=zipfile.ZIP_DEFLATED)
    patch(uri, field, value)
    with pytest.raises(VideoError, match=message) as caught:
        open_video(f"{uri}!/a.mp4")
    assert caught.value.stage == "open"
    assert "a.mp4" in caught.value.message


def test_a_bomb_takes_no_more_memory_than_it_declares(tmp_path: Path) -> None:
    uri = make_zip(tmp_path / "x.zip", {"a.mp4": bytes(256 << 20)}, compression=zipfile.ZIP_DEFLATED)
    patch(uri, SIZE, 1000)
    list_members(uri)
    tracemalloc.start()
    with pytest.raises(VideoError, match="more than the 1000 bytes"):
        open_video(f"{uri}!/a.mp4")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


def test_a_stored_entry_with_two_sizes_and_an_unknown_method_are_video_errors(tmp_path: Path) -> None:
    uri = make_zip(tmp_path / "x.zip", {"a.mp4": VIDEO})
    patch(uri, SIZE, 10)
    with pytest.raises(VideoError, match="two different sizes"):
        open_video(f"{uri}!/a.mp4")
    uri = make_zip(tmp_path / "y.zip", {"a.mp4": VIDEO}, compression=zipfile.ZIP_BZIP2)
    with pytest.raises(VideoError, match="method 12"):
        open_video(f"{uri}!/a.mp4")


def test_what_is_absent_is_a_video_error(tmp_path: Path) -> None:
    uri = make_zip(tmp_path / "x.zip", {"a.mp4": VIDEO})
    for absent in (f"{uri}!/b.mp4", f"{tmp_path}/gone.zip!/a.mp4", f"{tmp_path}/gone.mp4", str(tmp_path)):
        with pytest.raises(VideoError) as caught:
            open_video(absent)
        assert caught.value.stage == "open"
    with pytest.raises(FileNotFoundError):
        list_members(f"{tmp_path}/gone.zip")


def test_a_plain_file_whose_folder_looks_like_an_address(tmp_path: Path) -> None:
    (tmp_path / "wow!").mkdir()
    (tmp_path / "wow!" / "a.mp4").write_bytes(VIDEO)
    assert open_video(str(tmp_path / "wow!" / "a.mp4")).read() == VIDEO


def test_a_zip_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    uri = make_zip(tmp_path / "x.zip", {"a.mp4": b"1"})
    assert open_video(f"{uri}!/a.mp4").read() == b"1"
    make_zip(tmp_path / "x.zip", {"b.mp4": b"22", "a.mp4": b"333"})
    assert open_video(f"{uri}!/a.mp4").read() == b"333"


def test_forms_that_zips_come_in(tmp_path: Path) -> None:
    """Data before the zip, sizes after the data (as written to a pipe), and 64-bit sizes."""

    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.data = bytearray()

        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:  # type: ignore[override]
            self.data += data
            return len(data)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w") as archive, archive.open("a.mp4", "w", force_zip64=True) as member:
        member.write(VIDEO)
    (tmp_path / "pipe.zip").write_bytes(b"#!/bin/sh\n" + pipe.data)
    (member,) = list_members(str(tmp_path / "pipe.zip"))
    assert open_video(member.uri).read() == VIDEO


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_no_damage_leads_to_an_unnamed_error(tmp_path: Path, compression: int) -> None:
    """Bytes cut off, changed and zeroed everywhere: what can still be read is read, the rest is refused in our words."""
    small = VIDEO[49_900:50_100]
    good = Path(make_zip(tmp_path / "good.zip", {"a.mp4": small, "b/c.mp4": b"x"}, compression=compression)).read_bytes()
    rng = random.Random(1)
    damaged = [good[:cut] for cut in range(0, len(good), 7)]
    for _ in range(600):
        changed = bytearray(good)
        for _ in range(rng.choice([1, 1, 3])):
            changed[rng.randrange(len(good))] = rng.choice([0, 1, 127, 255, rng.randrange(256)])
        damaged.append(bytes(changed))
    outcomes = {"read": 0, "refused": 0}
    for number, data in enumerate(damaged):
        path = tmp_path / f"{number}.zip"
        path.write_bytes(data)
        try:
            members = list_members(str(path))
        except UserError:
            outcomes["refused"] += 1
            members = []
        for uri in [f"{path}!/a.mp4", *(member.uri for member in members)]:
            try:
                with open_video(uri) as file:
                    content = file.read()
            except VideoError:
                outcomes["refused"] += 1
            else:
                outcomes["read"] += 1
                if compression == zipfile.ZIP_DEFLATED:  # a stored one has no check, as it is read in any order
                    assert content in (small, b"x")
    assert min(outcomes.values()) > 100


def test_the_crc_of_what_was_inflated_is_checked(tmp_path: Path) -> None:
    uri = make_zip(tmp_path / "x.zip", {"a.mp4": bytes(1000)}, compression=zipfile.ZIP_DEFLATED)
    data = bytearray(Path(uri).read_bytes())
    other = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = data.index(b"a.mp4") + 5
    length = struct.unpack_from("<I", data, data.index(b"PK\1\2") + COMPRESSED)[0]
    replacement = other.compress(b"\1" * 1000) + other.flush()
    data[start : start + length] = replacement.ljust(length, b"\0")[:length]
    Path(uri).write_bytes(data)
    with pytest.raises(VideoError, match="damaged"):
        open_video(f"{uri}!/a.mp4")


def test_the_limit_on_inflated_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = make_zip(tmp_path / "x.zip", {"a.mp4": VIDEO}, compression=zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(zips, "MAX_INFLATED", len(VIDEO))
    assert open_video(f"{uri}!/a.mp4").read() == VIDEO
    monkeypatch.setattr(zips, "MAX_INFLATED", len(VIDEO) - 1)
    with pytest.raises(VideoError, match="bytes of memory"):
        open_video(f"{uri}!/a.mp4")
