"""The coverage report: exact counts, names that are no markup, pictures of the worst cases, and never a reason for a run to fail."""

import base64
import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser import NEEDS_CHROMIUM, check_file
from seen import HOSTILE, Seen

from dfdc_ray.config import CoverageConfig
from dfdc_ray.corpus.index import INDEX
from dfdc_ray.errors import UserError
from dfdc_ray.preprocess import coverage as cov
from dfdc_ray.preprocess import publish
from dfdc_ray.preprocess import receipts as rc
from dfdc_ray.preprocess.plan import Video, units
from dfdc_ray.preprocess.settings import Settings
from dfdc_ray.preprocess.tables import Group, Videos, kind_of
from dfdc_ray.preprocess.unit import UnitResult, VideoResult, ledger_row
from dfdc_ray.preprocess.worst import FRAMES, choose, pick

SETTINGS = Settings(
    sampling="spread",
    frames=4,
    real_multiplier=1,
    detector="centerface",
    detector_threshold=0.4,
    detector_long_side=640,
    detector_smaller_sides=(),
    crop="face",
    margin=1 / 3,
    max_side=320,
    image_format="jpeg",
    weights={},
    format_version=1,
)
SIZE = (64, 48)
BOX = (20, 10, 20, 24)


def video(name: str, *, label: str | None = "REAL", uri: str | None = None, original: str | None = None, part: int = 0) -> Video:
    method = "<b>swap</b>" if label == "FAKE" else None
    return Video("c", f"c/{name}", uri, label, method, original and f"c/{original}", f"c/{original or name}", f"c/part:{part}", part)


def clip(path: Path, *, frames: int = 12) -> str:
    """Grey frames, each lighter than the one before."""
    with av.open(str(path), "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=12, options={"threads": "1", "crf": "10"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for i in range(frames):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((SIZE[1], SIZE[0], 3), 40 + 10 * i, np.uint8), format="rgb24")))
        out.mux(stream.encode())
    return str(path)


def face(v: Video, frame: int) -> dict[str, Any]:
    ids = {n: getattr(v, n) for n in ("corpus", "video_id", "family_id", "group_id", "part", "label", "method", "original")}
    place = {"frame": frame, "pts": frame, "time_s": frame / 12, "track_id": 0, "core": True, "box": list(BOX), "crop": [0, 0, 9, 9]}
    return ids | place | {"frame_width": SIZE[0], "frame_height": SIZE[1], "image": {"bytes": b"crop", "path": None}}


def result(v: Video, *, status: str = "ok", frames: tuple[int, ...] = (1, 4, 7, 10), crop: float = 90.0, **counts: Any) -> VideoResult:
    """Four frames were looked at, and there is a face in these."""
    if status not in ("ok", "no_face"):
        return VideoResult(ledger_row(v, status=status, **counts))
    seen = {"frames_wanted": 4, "frames_decoded": 4, "core_decoded": 4, "frames_with_face": len(frames), "faces": len(frames)}
    found = {"box_source": "self", "crop_side": crop, "face_brightness": 80.0} if frames else {}
    row = ledger_row(v, status=status, **(seen | {"brightness": 90.0} | found | counts))
    return VideoResult(row, [face(v, frame) for frame in frames])


def output(folder: Path, results: list[tuple[Video, VideoResult]], settings: Settings = SETTINGS) -> str:
    """As preprocess leaves it."""
    out = str(folder)
    receipts = rc.open_output(out, settings)
    rows = [{name: getattr(v, name, None) for name in INDEX.names} | {"size_bytes": 1} for v, _ in results]
    known = units(publish.remember(out, pa.Table.from_pylist(rows, schema=INDEX)))
    by_id = {v.video_id: r for v, r in results}
    for unit in known:
        receipts.commit(UnitResult(unit, [by_id[v.video_id] for v in unit.videos]), generation=0)
    publish.publish(receipts, known, settings, versions={})
    return out


def report(out: str) -> Seen:
    return Seen((Path(out) / cov.NAME).read_text())


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> str:
    """A video with every face and its fake with one of three, one with one of four, one that is gone meanwhile, an error, a missing one."""
    folder = tmp_path_factory.mktemp("coverage")
    path = clip(folder / "clip.mp4")
    (folder / "spoilt.mp4").write_text("<html>")
    all_faces, few = video("all.mp4", uri=path), video(HOSTILE, label="FAKE", uri=path, part=3)
    short = video("short.mp4", label="FAKE", uri=clip(folder / "short.mp4", frames=9), original="all.mp4")
    gone, spoilt = video("gone.mp4", uri=str(folder / "gone.mp4")), video("spoilt.mp4", label="FAKE", uri=str(folder / "spoilt.mp4"))
    results = [
        (all_faces, result(all_faces)),
        (short, result(short, frames=(1,), frames_decoded=3, core_decoded=3)),
        (few, result(few, frames=(4,), crop=30.0, brightness=20.0)),
        (gone, result(gone, status="no_face", frames=())),
        (spoilt, result(spoilt, status="error", stage="probe", error=f"not a readable video: {HOSTILE}")),
        (video("listed.mp4", label=None), result(video("listed.mp4", label=None), status="missing", error="listed, but no file")),
    ]
    out = output(folder / "faces", results)
    cov.write(out)
    return out


def test_videos_that_were_not_read_stay_in_the_denominator_of_videos_and_give_no_frames():
    rows = [
        result(video("a"), frames=(1, 4, 7), crop=100.0, faces=5).ledger,
        result(video("b"), status="no_face", frames=(), brightness=10.0).ledger,
        result(video("c"), status="error", stage="decode", frames_decoded=3).ledger,
        result(video("d"), status="missing").ledger,
    ]
    videos = Videos(pa.Table.from_pylist([r | {"unit_id": "u", "generation": 0} for r in rows], schema=rc.LEDGER), SETTINGS)
    group = Group.of(videos, np.arange(4))
    assert (group.videos, group.unread, group.with_face) == (4, 2, 1)
    assert (group.frames, group.found, group.faces) == (8, 3, 5)
    assert group.crop == (100.0, 100.0, 100.0)
    assert group.brightness == 50.0  # the median of 90 and 10


def test_the_figures_are_in_the_report(made):
    text = re.sub(r"\s+", " ", report(made).text)
    for figure in ("50.0%of the videos have a face3 of 6", "40.0%of the frames have a face6 of 15 looked at", "0.40faces per frame"):
        assert figure in text
    assert "2videos not read33.3% of all" in text
    assert "Darker than 48 of 255: 25.0% of 4 frames have a face (videos: 1); lighter: 45.5% of 11 frames" in text
    for heading in ("By label", "By part", "By method", "By detector: where the boxes of centerface came from"):
        assert heading in text


def test_names_and_messages_are_shown_and_not_obeyed(made):
    seen = report(made)
    assert f"c/{HOSTILE}" in seen.text
    assert "<b>swap</b>" in seen.text
    seen.check()


@pytest.mark.browser
@NEEDS_CHROMIUM
def test_everybody_can_read_it(made):
    check_file(Path(made) / cov.NAME)


def test_it_is_one_file_without_network_and_script(made):
    html = (Path(made) / cov.NAME).read_text()
    assert "default-src 'none'" in html
    assert not re.search(r"(?:https?:)?//|url\(|<script|@import", re.sub(r'src="data:[^"]*"', "", html).replace(made, ""))
    assert all(src.startswith("data:image/jpeg;base64,") for src in report(made).all("img", "src"))


def test_the_worst_case_comes_with_frames_that_have_no_face(made):
    html = (Path(made) / cov.NAME).read_text()
    chapter = html.split("Fewest frames with a face")[1].split("Most faces in a frame")[0]
    captions = re.findall(r"<figcaption>([^<]*)</figcaption>", chapter)
    assert captions[:3] == ["0.1 s: no face", "0.6 s: no face", "0.8 s: no face"]  # frames 1, 7 and 10; frame 4 has one
    assert captions[3:] == ["0.1 s: 1 face", "0.3 s: no face", "0.6 s: no face"]  # 1, 4 and 7 of the short fake, which its original has


def test_boxes_are_drawn_where_they_were_found(made):
    html = (Path(made) / cov.NAME).read_text()
    (data,) = re.findall(r'base64,([^"]*)"><figcaption>[^<]*: 1 face<', html)
    bgr = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR).astype(int)
    assert bgr.shape[:2] == (SIZE[1], SIZE[0])
    x, y, w, h = BOX
    blueness = bgr[..., 2] - bgr[..., 0]  # of grey: 0; of the yellow box: large
    assert blueness[y + h // 2, x - 1 : x + 2].max() > 60
    assert abs(blueness[y + h // 2, x + w // 2]) < 15
    assert abs(blueness[y + h // 2, 2]) < 15


def test_pictures_that_cannot_be_had_are_said_so(made):
    assert re.search(r"c/gone.mp4.*No pictures: missing in stage open: .*gone.mp4", report(made).text.replace("\n", " "))


def test_errors_are_counted_by_kind(made):
    text = re.sub(r"\s+", " ", report(made).text)
    assert "1 (16.7%)" in text
    assert kind_of("a: took longer than 300.5 s, of 12 frames", None) == kind_of("a: took longer than 20 s, of 7 frames", None)
    assert kind_of("/data/a b.mp4: not found", "/data/a b.mp4") == kind_of("/data/c.mp4: not found", "/data/c.mp4") == "…: not found"
    assert kind_of("zip s3://b/x.zip: the entry 'a' is damaged", None) == "zip …: the entry … is damaged"
    assert kind_of("an mp4 of 3 MB", None) == "an mp4 of # MB"


def test_it_is_made_again_only_for_another_ledger(made, tmp_path, capsys):
    v = video("a.mp4")
    out = output(tmp_path, [(v, result(v, status="missing"))])
    path = Path(out) / cov.NAME
    cov.write(out)
    path.write_text(path.read_text() + "<!-- there -->")
    cov.write(out)
    assert path.read_text().endswith("<!-- there -->")
    cov.coverage(CoverageConfig(faces=out))  # the command makes it in any case
    assert not path.read_text().endswith("<!-- there -->")
    path.write_text(path.read_text() + "<!-- there -->")
    rows = pq.read_table(tmp_path / "ledger.parquet")
    pq.write_table(rows.set_column(rows.schema.get_field_index("status"), "status", pa.array(["poison"])), tmp_path / "ledger.parquet")
    cov.write(out)
    assert not path.read_text().endswith("<!-- there -->")
    assert capsys.readouterr().out.replace("\n", "").count("Coverage report: ") == 4


@pytest.mark.parametrize(
    "spoil",
    [
        lambda out: (out / "ledger.parquet").write_bytes(b"no"),
        lambda out: (out / "index.parquet").unlink(),
        lambda out: (out / "config.json").write_text(json.dumps(asdict(SETTINGS) | {"later": 1})),
        lambda out: (out / "config.json").write_text("["),
    ],
)
def test_a_run_never_fails_for_it_and_the_command_says_why(spoil: Callable[[Path], None], tmp_path, capsys):
    v = video("a.mp4")
    out = output(tmp_path, [(v, result(v, status="missing"))])
    spoil(tmp_path)
    cov.write(out)
    assert "not made (UserError" in capsys.readouterr().out.replace("\n", "")
    with pytest.raises(UserError, match=re.escape(out)):
        cov.coverage(CoverageConfig(faces=out))


def test_nothing_was_done_yet(tmp_path):
    out = output(tmp_path, [])
    cov.coverage(CoverageConfig(faces=out))
    assert "0videos in the ledger" in report(out).text


def test_whole_frames_have_no_coverage(tmp_path):
    settings = replace(SETTINGS, crop="frame", detector=None, detector_threshold=None, detector_long_side=None)
    v = video("a.mp4")
    out = output(tmp_path, [(v, result(v, frames=()))], settings)
    cov.coverage(CoverageConfig(faces=out))
    text = report(out).text
    assert "Nobody looked for faces" in text
    assert "have a face" not in text


def test_one_video_of_each_family():
    rows = [{"family_id": family, "video_id": video_id} for family, video_id in (("a", "1"), ("b", "2"), ("a", "3"), ("c", "4"))]
    cases = choose(rows, 2)
    assert [(case.row["video_id"], case.relatives) for case in cases] == [("1", 1), ("2", 0)]


@pytest.mark.parametrize(
    ("faces", "wanted", "frames"),
    [
        ({i: 0 for i in range(12)}, "none", [2, 6, 10]),
        ({0: 1, 5: 0, 9: 1}, "none", [0, 5, 9]),
        ({0: 1, 5: 3, 9: 3, 12: 2}, "most", [5, 9, 12]),
        ({0: 0, 5: 1, 9: 0, 12: 2, 14: 1, 20: 0}, "some", [5, 12, 14]),
        ({3: 0}, "some", [3]),
    ],
)
def test_frames_are_picked(faces: dict[int, int], wanted: str, frames: list[int]):
    assert len(frames) <= FRAMES
    assert pick(faces, wanted) == frames
