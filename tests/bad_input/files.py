"""Bad tables, bad files and folders, and what befalls them between index and reading."""

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from .case import Case, Maker, collector, good_video, write_part
from .denied import permissions_count
from .videos import HTML, cut, encode

CASES: list[Case] = []
DENIED: dict[str, Any] = {"around": lambda corpus: permissions_count()}
case = collector(CASES)
refused = partial(case, status="refused")


# ---- tables


def metadata(text: str | bytes) -> Maker:
    """A part 1 of one video and this metadata.json."""

    def make(corpus: Path) -> None:
        part = write_part(corpus, {"bad_real.mp4": (good_video(), None)}, number=1)
        (part / "metadata.json").write_bytes(text if isinstance(text, bytes) else text.encode())

    return make


for _kind, _text, _says in (
    ("metadata with an entry twice", '{"a.mp4": {"label": "REAL"}, "a.mp4": {"label": "FAKE"}}', "'a.mp4' is there twice"),
    ("metadata with a key twice", '{"a.mp4": {"label": "REAL", "label": "FAKE"}}', "'label' is there twice"),
    ("metadata with an unknown label", '{"a.mp4": {"label": "MAYBE"}}', "entry 'a.mp4' has the label 'MAYBE'; known are REAL and FAKE"),
    ("metadata without a label", '{"a.mp4": {}}', "entry 'a.mp4' has the label None"),
    ("metadata cut short", '{"a.mp4": {"label": "REAL"}, "b.m', "not the JSON that was expected.*Take this file from the download again"),
    ("metadata that is empty", "", "not the JSON that was expected"),
    ("metadata that is an HTML page", HTML, "not the JSON that was expected"),
    ("metadata that is a list", "[]", "expected an object with an entry for each video, found a list"),
    ("metadata in Latin-1", '{"ü.mp4": {"label": "REAL"}}'.encode("latin-1"), "not the JSON that was expected"),
    ("metadata: a real video with an original", '{"a.mp4": {"label": "REAL", "original": "b.mp4"}}', "is REAL and names an original"),
    (
        "metadata: a fake of a fake",
        '{"a.mp4": {"label": "FAKE", "original": "b.mp4"}, "b.mp4": {"label": "FAKE"}}',
        "'a.mp4' names 'b.mp4' as its original, which is itself FAKE",
    ),
    ("metadata with ../ in a name", '{"../a.mp4": {"label": "REAL"}}', "entry '../a.mp4' is not the name of a file in that folder"),
):
    refused(_kind, says=rf"dfdc_train_part_1/metadata\.json: .*{_says}")(metadata(_text))


@case("metadata that leaves out the original", counts={"fakes_without_original": 1})
def _(corpus: Path) -> None:
    part = write_part(corpus, {}, number=1)
    (part / "bad_fake.mp4").write_bytes(good_video())
    (part / "metadata.json").write_text('{"bad_fake.mp4": {"label": "FAKE"}}')


@case("metadata with an original that is not there", counts={"originals_absent": 1})
def _(corpus: Path) -> None:
    write_part(corpus, {"bad_fake.mp4": (good_video(), "elsewhere.mp4")}, number=1)


@case(
    "metadata with a video that is not there",
    status="missing",
    says="lists it, but there is no such file",
    counts={"metadata_without_files": 2},
)
def _(corpus: Path) -> None:
    write_part(corpus, {"bad_fake.mp4": (None, "good.mp4"), "bad_real.mp4": (None, None), "its_fake.mp4": (good_video(), "bad_real.mp4")})


@case("no metadata", row={"label": None}, counts={"files_without_metadata": 1, "unlabelled": 1})
def _(corpus: Path) -> None:
    (write_part(corpus, {"bad_real.mp4": (good_video(), None)}, number=1) / "metadata.json").unlink()


@refused("two parts that contradict each other", says="part_0/metadata.json and .*part_1/metadata.json say different things of 'good.mp4'")
def _(corpus: Path) -> None:
    write_part(corpus, {"good.mp4": (good_video(), "other.mp4")}, number=1)


@refused("groups.csv that cuts a family", says=r"groups\.csv puts '.*' in group .*, but they are one family.*Give them the same group")
def _(corpus: Path) -> None:
    (corpus / "groups.csv").write_text("video,group\ngood.mp4,anna\nfake.mp4,bob\n")


@refused("groups.csv that leaves out a video", says=r"groups\.csv has no group for 'fake\.mp4'. Name every labelled video in it")
def _(corpus: Path) -> None:
    (corpus / "groups.csv").write_text("video,group\ngood.mp4,anna\n")


# ---- files and folders


@refused("a corpus without videos", says=r"no videos found\. Looked up to 3 folders deep")
def _(corpus: Path) -> None:
    shutil.rmtree(corpus / "dfdc_train_part_0")


@refused("no such corpus", says=r"not found\. Give a folder, a zip or an s3:// prefix")
def _(corpus: Path) -> None:
    shutil.rmtree(corpus)


@refused("a file name that is not UTF-8", says=r"the file name 'bad\\udcff\.mp4' is not UTF-8\. Rename it")
def _(corpus: Path) -> None:
    Path(os.fsdecode(os.fsencode(corpus / "dfdc_train_part_0") + b"/bad\xff.mp4")).write_bytes(good_video())


@case("a file name with a new line in it", counts={"files_without_metadata": 1})
def _(corpus: Path) -> None:
    (corpus / "dfdc_train_part_0" / "bad\n\x1b[2J.mp4").write_bytes(good_video())


@case("a link that leads nowhere", status="missing", says="lists it, but there is no such file")
def _(corpus: Path) -> None:
    (write_part(corpus, {"bad_real.mp4": (None, None)}) / "bad_real.mp4").symlink_to("nowhere.mp4")


@case("a pipe", status="missing", says="lists it, but there is no such file")
def _(corpus: Path) -> None:
    os.mkfifo(write_part(corpus, {"bad_real.mp4": (None, None)}) / "bad_real.mp4")


@case("a folder named like a video", status="missing", says="lists it, but there is no such file")
def _(corpus: Path) -> None:
    (write_part(corpus, {"bad_real.mp4": (None, None)}) / "bad_real.mp4").mkdir()


@case(
    "a video without permission to read",
    status="error",
    stage="open",
    says="bad_.*mp4: permission denied",
    **DENIED,
)
def _(corpus: Path) -> None:
    part = write_part(corpus, {"bad_real.mp4": (good_video(), None), "bad_fake.mp4": (good_video(), "good.mp4")})
    for name in ("bad_real.mp4", "bad_fake.mp4"):
        (part / name).chmod(0)


@refused("a folder without permission to read", says="part_1: permission denied", **DENIED)
def _(corpus: Path) -> None:
    write_part(corpus, {"bad_real.mp4": (good_video(), None)}, number=1).chmod(0)


@refused("metadata without permission to read", says="metadata.json: permission denied", **DENIED)
def _(corpus: Path) -> None:
    (write_part(corpus, {"bad_real.mp4": (good_video(), None)}, number=1) / "metadata.json").chmod(0)


# ---- between index and reading


def two_bad(corpus: Path) -> None:
    """A fake of the good family, and an original with a good fake."""
    write_part(corpus, {"bad_fake.mp4": (good_video(), "good.mp4"), "bad_real.mp4": (good_video(), None)})
    write_part(corpus, {"its_fake.mp4": (good_video(), "bad_real.mp4")})


def each_bad(change: Callable[[Path], Any]) -> Maker:
    """What happens to both."""

    def make(corpus: Path) -> None:
        for name in ("bad_fake.mp4", "bad_real.mp4"):
            change(corpus / "dfdc_train_part_0" / name)

    return make


def _replaced_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


case("a file that goes between index and reading", status="missing", stage="open", says="not found", between=each_bad(Path.unlink))(two_bad)
case(
    "a file that is cut short between index and reading",
    status="error",
    stage="probe",
    says="end is missing",
    between=each_bad(lambda path: path.write_bytes(cut(encode(), 50))),
)(two_bad)
case(
    "a file that becomes a pipe between index and reading",
    status="missing",
    stage="open",
    says="not a file",
    between=each_bad(_replaced_by_pipe),
)(two_bad)


@case(
    "a folder that goes between index and reading, as a lost mount does",
    status="not done",
    says="dfdc_train_part_1 is absent or empty: is its disk mounted",
    between=lambda corpus: shutil.rmtree(corpus / "dfdc_train_part_1"),
)
def _(corpus: Path) -> None:
    write_part(corpus, {"bad_real.mp4": (good_video(), None), "bad_fake.mp4": (good_video(), "bad_real.mp4")}, number=1)
