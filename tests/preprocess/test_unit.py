"""One unit in this process, with the real detector on generated videos."""

from dataclasses import replace
from itertools import pairwise

import av
import cv2
import numpy as np
import pytest

from dfdc_ray.config import PreprocessConfig
from dfdc_ray.corpus.index import build_index
from dfdc_ray.corpus.zips import open_video
from dfdc_ray.faces.detect import Detector, load_detector
from dfdc_ray.faces.weights import stage_weights
from dfdc_ray.preprocess.plan import Unit, units
from dfdc_ray.preprocess.settings import Settings, settings_of
from dfdc_ray.preprocess.unit import UnitResult, process_unit, process_video
from dfdc_ray.video.sound import sound_around


@pytest.fixture(scope="module")
def settings() -> Settings:
    return settings_of(PreprocessConfig(corpus=("x",), out="y", frames=4, real_multiplier=4))


@pytest.fixture(scope="module")
def detector(settings) -> Detector:
    stage_weights()
    return load_detector(settings.detector, threshold=settings.detector_threshold, long_side=settings.detector_long_side)


@pytest.fixture(scope="module")
def unit(small_corpus) -> Unit:
    return next(u for u in units(build_index([str(small_corpus)])[0]) if len(u.videos) > 2)


@pytest.fixture(scope="module")
def done(unit, settings, detector) -> UnitResult:
    return process_unit(unit, lambda video, guide: process_video(video, settings, detector, guide))


def decode(picture: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)


def test_every_video_has_a_ledger_row_and_faces(done, unit):
    assert [v.ledger["video_id"] for v in done.videos] == [v.video_id for v in unit.videos]
    assert {v.ledger["status"] for v in done.videos} == {"ok"}


def test_the_original_gives_four_times_the_frames_and_marks_the_shared_ones(done):
    original = done.videos[0]
    assert original.ledger["frames_wanted"] == 16
    assert original.ledger["core_decoded"] == 4
    assert len({row["frame"] for row in original.faces if row["core"]}) == 4


def test_fakes_take_the_core_frames_and_boxes_of_their_original(done):
    original, *fakes = done.videos
    core = {(row["frame"], tuple(row["box"])) for row in original.faces if row["core"]}
    for fake in fakes:
        assert fake.ledger["box_source"] == "original"
        assert {(row["frame"], tuple(row["box"])) for row in fake.faces} == core
        assert all(row["core"] for row in fake.faces)
    assert original.ledger["box_source"] == "self"


def test_crops_are_what_their_rectangle_says(done):
    for row in done.videos[0].faces:
        picture = decode(row["image"]["bytes"])
        x, y, w, h = row["crop"]
        assert picture.shape == (h, w, 3)  # below 320 px nothing is scaled
        assert x >= 0
        assert y >= 0
        assert x + w <= row["frame_width"]
        assert y + h <= row["frame_height"]
        bx, by, bw, bh = row["box"]
        assert x <= bx
        assert y <= by
        assert bx + bw <= x + w + 1
        assert by + bh <= y + h + 1


def test_clips_are_steady_and_shared(unit, settings, detector):
    """Every clip of a track is whole, cut out by one rectangle, and the same in the original and its fakes."""
    clips = replace(settings, sampling="clips", frames=3, clips=2, stride=1, real_multiplier=2)
    result = process_unit(unit, lambda video, guide: process_video(video, clips, detector, guide))
    found = []
    for video in result.videos:
        assert video.ledger["status"] == "ok"
        by_clip: dict = {}
        for row in video.faces:
            by_clip.setdefault((row["track_id"], row["clip_id"]), []).append(row)
        for rows in by_clip.values():
            assert [row["clip_position"] for row in rows] == [0, 1, 2]
            assert {b["frame"] - a["frame"] for a, b in pairwise(rows)} == {1}
            assert len({(*row["crop"], *row["box"]) for row in rows}) == 1
        found.append({(key, rows[0]["frame"], *rows[0]["box"]) for key, rows in by_clip.items() if rows[0]["core"]})
    original, *fakes = found
    assert {key[1] for key, *_ in original} == {0, 1}
    assert len({row["clip_id"] for row in result.videos[0].faces}) == 4
    assert all(fake == original for fake in fakes)
    assert {v.ledger["box_source"] for v in result.videos[1:]} == {"original"}

    long = replace(clips, frames=500)
    (short, *_) = process_unit(unit, lambda video, guide: process_video(video, long, detector, guide)).videos
    assert (short.ledger["status"], short.ledger["stage"]) == ("error", "probe")
    assert "no clip of the length that was asked for lies within its" in short.ledger["error"]


def test_a_fake_without_its_original_is_detected_by_itself(unit, settings, detector):
    orphan = Unit(unit.unit_id, unit.family_id, unit.videos[1:2])
    (result,) = process_unit(orphan, lambda video, guide: process_video(video, settings, detector, guide)).videos
    assert result.ledger["box_source"] == "self"
    assert result.ledger["frames_wanted"] == 4


def test_a_fake_of_another_scene_is_detected_by_itself(small_corpus, settings, detector):
    first, second = [u for u in units(build_index([str(small_corpus)])[0]) if len(u.videos) > 2][:2]
    guide = process_video(first.videos[0], settings, detector, None).guide
    assert guide is not None
    result = process_video(second.videos[1], settings, detector, guide)
    assert result.ledger["box_source"] == "self"
    assert result.ledger["status"] == "ok"


def test_whole_frames(unit, settings):
    whole = replace(settings, crop="frame", max_side=200, detector=None)
    result = process_unit(unit, lambda video, guide: process_video(video, whole, None, guide))
    original, fake = result.videos[:2]
    assert len(original.faces) == 16
    assert {row["frame"] for row in fake.faces} == {row["frame"] for row in original.faces if row["core"]}
    row = fake.faces[0]
    assert row["box"] is None
    assert row["crop"] == [0, 0, row["frame_width"], row["frame_height"]]
    assert max(decode(row["image"]["bytes"]).shape) == 200


def test_a_listed_video_without_a_file_is_missing_and_the_rest_goes_on(unit, settings, detector):
    gone = Unit(unit.unit_id, unit.family_id, (replace(unit.videos[0], uri=None), unit.videos[1]))
    first, second = process_unit(gone, lambda video, guide: process_video(video, settings, detector, guide)).videos
    assert first.ledger["status"] == "missing"
    assert second.ledger["status"] == "ok"


def test_a_bad_file_is_an_error_with_its_stage(unit, settings, detector, tmp_path):
    path = tmp_path / "page.mp4"
    path.write_text("<html>not a video</html>")
    result = process_video(replace(unit.videos[0], uri=str(path)), settings, detector, None)
    assert result.ledger["status"] == "error"
    assert result.ledger["stage"] == "probe"
    assert result.faces == []


def test_twice_the_same_gives_the_same(done, unit, settings, detector):
    again = process_video(unit.videos[0], settings, detector, None)
    assert again.faces == done.videos[0].faces


def test_reading_in_the_midst_of_a_stage_is_told(unit, settings):
    """A file on a disk, in a zip or not, is read as it is needed."""
    told: list[str] = []
    process_video(unit.videos[0], replace(settings, crop="frame"), None, None, on_stage=told.append)
    assert told[:2] == ["probe", "open"]
    around = {(before, after) for before, stage, after in zip(told, told[1:], told[2:], strict=False) if stage == "open"}
    assert {stage for pair in around for stage in pair} - {"open"} == {"probe", "decode"}


def test_the_sound_around_each_frame_is_kept_when_asked_for(unit, settings, detector, done, tmp_path):
    video = unit.videos[0]
    result = process_video(video, replace(settings, sound=True), detector, None)
    assert result.ledger["sound"] == "ok"
    with open_video(video.uri) as file:
        windows, _ = sound_around(file, [row["time_s"] for row in result.faces])
    for row, window in zip(result.faces, windows, strict=True):
        assert row["has_sound"]
        assert np.array_equal(np.frombuffer(row["sound"], "<i2"), window)
    assert {(row["has_sound"], row["sound"]) for row in done.videos[0].faces} == {(None, None)}
    assert done.videos[0].ledger["sound"] is None

    with open_video(video.uri) as file, av.open(file) as before, av.open(str(tmp_path / "mute.mp4"), "w") as after:
        stream = after.add_stream_from_template(before.streams.video[0])
        for packet in before.demux(before.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                after.mux(packet)
    mute = process_video(replace(video, uri=str(tmp_path / "mute.mp4")), replace(settings, sound=True), detector, None)
    assert (mute.ledger["status"], mute.ledger["sound"]) == ("ok", "none")
    assert {(row["has_sound"], row["sound"]) for row in mute.faces} == {(False, None)}
