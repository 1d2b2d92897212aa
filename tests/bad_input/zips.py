"""Bad zips."""

import json
import struct
import zipfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .case import Case, collector, entry, good_video
from .videos import HTML, cut

CASES: list[Case] = []
# Offsets of fields in a central directory header (PKWARE's APPNOTE 4.3.12).
FLAGS, METHOD, CRC, SIZE = 8, 10, 16, 24
PAIR = ("bad_real.mp4", "its_fake.mp4")
BOTH_BAD = ("bad_real.mp4", "bad_fake.mp4")
DAMAGED = r"part_01\.zip is damaged or not complete .*Download or copy it again"
BAD_ENTRY: dict[str, Any] = {"status": "error", "stage": "open"}
case = collector(CASES)
refused = partial(case, status="refused")


def write_zip(
    corpus: Path, more: Mapping[str, bytes] | None = None, *, names: Sequence[str] = PAIR, compression: int = zipfile.ZIP_DEFLATED
) -> Path:
    """Part 1 as a zip: a real video and a fake of it, by these names, its metadata.json, and more members or others instead of these."""
    path = corpus / "dfdc_train_part_01.zip"
    real, fake = names
    listed = json.dumps({real: entry(None), fake: entry(real)}).encode()
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in ({"metadata.json": listed, real: good_video(), fake: good_video()} | dict(more or {})).items():
            archive.writestr(name, data)
    return path


def patch(path: Path, name: str, field: int, value: int, *, form: str = "<I") -> None:
    """Change a field of an entry in the zip's directory."""
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\1\2")
    while data[at + 46 : at + 46 + len(name)] != name.encode():
        at = data.index(b"PK\1\2", at + 4)
    struct.pack_into(form, data, at + field, value)
    path.write_bytes(data)


@refused("a zip of 0 bytes", says=DAMAGED)
def _(corpus: Path) -> None:
    (corpus / "dfdc_train_part_01.zip").write_bytes(b"")


@refused("a zip that is an HTML page", says=DAMAGED)
def _(corpus: Path) -> None:
    (corpus / "dfdc_train_part_01.zip").write_bytes(HTML)


@refused("a zip cut short", says=DAMAGED)
def _(corpus: Path) -> None:
    path = write_zip(corpus)
    path.write_bytes(cut(path.read_bytes(), 90))


@refused("an encrypted zip", says=r"part_01\.zip: the entry 'bad_real\.mp4' is encrypted\. Unpack the zip with its password")
def _(corpus: Path) -> None:
    patch(write_zip(corpus), "bad_real.mp4", FLAGS, 1, form="<H")


@refused("a zip with ../ in a name", says=r"the entry '\.\./\.\./bad\.mp4' has an unsafe name\. Make the zip again")
def _(corpus: Path) -> None:
    write_zip(corpus, {"../../bad.mp4": good_video()})


@refused("a zip with a name twice", says=r"the entry 'its_fake\.mp4' is there twice")
def _(corpus: Path) -> None:
    path = write_zip(corpus, {"ITS_fake.mp4": good_video()})
    path.write_bytes(path.read_bytes().replace(b"ITS_fake", b"its_fake"))


@refused("a zip with a name that is not UTF-8", says=r"the name b'bad_\\xff\\xff\.mp4' is not UTF-8. Make the zip again")
def _(corpus: Path) -> None:
    path = write_zip(corpus, {"bad_ü.mp4": good_video()})
    path.write_bytes(path.read_bytes().replace("bad_ü.mp4".encode(), b"bad_\xff\xff.mp4"))


@refused(
    "a compressed zip in a zip", says=r"the entry 'part\.zip' is compressed, so it cannot be read in place\. Unpack the outer zip once"
)
def _(corpus: Path) -> None:
    inner = write_zip(corpus)
    data = inner.read_bytes()
    inner.unlink()
    write_zip(corpus, {"part.zip": data})


@refused("a zip with a metadata.json of a wrong CRC", says="the entry 'metadata.json' is damaged .*Download or copy the zip again")
def _(corpus: Path) -> None:
    patch(write_zip(corpus), "metadata.json", CRC, 1)


@refused("a zip with a metadata.json of a gigabyte", says="metadata.json has 1073741824 bytes")
def _(corpus: Path) -> None:
    patch(write_zip(corpus), "metadata.json", SIZE, 1 << 30)


@refused("a zip with a metadata.json that is a bomb", says="'metadata.json' inflates to more than the 1000 bytes")
def _(corpus: Path) -> None:
    patch(write_zip(corpus, {"metadata.json": bytes(64 << 20)}), "metadata.json", SIZE, 1000)


@case("a zip with a wrong CRC (deflated)", **BAD_ENTRY, says=r"part_01\.zip: the entry 'bad_real\.mp4' is damaged")
def _(corpus: Path) -> None:
    patch(write_zip(corpus), "bad_real.mp4", CRC, 1)


@case("a zip with a wrong CRC (stored)", **BAD_ENTRY, says=r"part_01\.zip: the entry 'bad_real\.mp4' is damaged")
def _(corpus: Path) -> None:
    patch(write_zip(corpus, compression=zipfile.ZIP_STORED), "bad_real.mp4", CRC, 1)


@case("a zip bomb", **BAD_ENTRY, says="'bad_real.mp4' inflates to more than the 1000 bytes")
def _(corpus: Path) -> None:
    patch(write_zip(corpus, {"bad_real.mp4": bytes(64 << 20)}), "bad_real.mp4", SIZE, 1000)


@case("a zip bomb that says so", **BAD_ENTRY, says="would take 3221225472 bytes of memory .*Unpack the zip and give the folder")
def _(corpus: Path) -> None:
    patch(write_zip(corpus), "bad_real.mp4", SIZE, 3 << 30)


@case("a zip by another method than deflate", **BAD_ENTRY, says="by method 12, not by deflate. Unpack the zip and give the folder")
def _(corpus: Path) -> None:
    patch(write_zip(corpus), "bad_real.mp4", METHOD, 12, form="<H")


@case("a part twice, as folder and as zip", counts={"duplicates": 2, "videos": 4})
def _(corpus: Path) -> None:
    path = write_zip(corpus)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(corpus / "dfdc_train_part_1")


case(
    "a zip that goes between index and reading",
    status="missing",
    stage="open",
    says="part_01.zip: not found",
    between=lambda corpus: (corpus / "dfdc_train_part_01.zip").unlink(),
)(lambda corpus: write_zip(corpus, names=BOTH_BAD))


def cut_zip(corpus: Path) -> None:
    """Half of it is left."""
    path = corpus / "dfdc_train_part_01.zip"
    path.write_bytes(cut(path.read_bytes(), 50))


case(
    "a zip that is cut short between index and reading",
    status="error",
    stage="open",
    says="part_01.zip is damaged or not complete.*Download or copy it again",
    between=cut_zip,
)(lambda corpus: write_zip(corpus, names=BOTH_BAD))
