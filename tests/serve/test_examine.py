"""What becomes of an upload, with the real decoding process and a model of random weights."""

import io
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from moving_face import FACE_SECONDS
from PIL import Image

from dfdc_ray.errors import StorageError
from dfdc_ray.evaluate import members
from dfdc_ray.faces.crop import encode
from dfdc_ray.preprocess.supervise import Unreadable
from dfdc_ray.preprocess.unit import VideoResult
from dfdc_ray.serve.examine import Examiner, Finding, _document, _drawn, _said, card
from dfdc_ray.serve.jobs import Jobs, Limits, Refused
from dfdc_ray.serve.judge import Evidence, TrackScore, VideoScore
from dfdc_ray.serve.result import Result
from dfdc_ray.serve.score import load_predictor
from dfdc_ray.train import checkpoint


@pytest.fixture(scope="module")
def examiner(best: Path) -> Iterator[Examiner]:
    scorer, _, settings = load_predictor(str(best), frames=8)
    examiner = Examiner(scorer, settings, timeout_s=60, memory_bytes=4 << 30, longest_s=10)
    yield examiner
    examiner.close()


def upload(folder: Path, tmp_path: Path, name: str) -> Path:
    """As the server keeps it: under a name that says nothing."""
    return Path(shutil.copy(folder / name, tmp_path / "0f3a"))


def test_a_face_comes_with_its_evidence(examiner: Examiner, folder: Path, tmp_path: Path) -> None:
    steps: list[tuple[str, float | None]] = []
    found = examiner(upload(folder, tmp_path, "face.mp4"), "my clip.mp4", lambda *step: steps.append(step))
    assert list(dict.fromkeys(stage for stage, _ in steps)) == ["read", "faces", "score", "heat", "report"]
    shares = [share for stage, share in steps if stage == "faces"]
    assert (shares[0], shares[-1]) == (0, 1)
    assert shares == sorted(shares)
    assert [step for step in steps if step[0] == "score"] == [("score", None), ("score", 1)]
    assert tmp_path.name not in json.dumps(found.document)
    described = Result.model_validate(found.document)
    assert json.loads(described.model_dump_json()) == json.loads(json.dumps(found.document))  # and nothing that is not described
    (video,) = found.document["videos"]
    assert (video["uri"], video["status"], video["frames_sampled"]) == ("my clip.mp4", "ok", 8)
    faces, without = found.document["faces"], found.document["frames_without_face"]
    assert len(faces) + len(without) == 8
    assert all(frame["time_s"] < FACE_SECONDS[0] for frame in without)
    scores = {face["frame"]: face["score"] for face in video["tracks"][0]["faces"]}
    assert {face["frame"]: face["score"] for face in faces} == pytest.approx(scores)
    assert "not calibrated" in found.document["meaning"]
    assert [face["n"] for face in faces] == list(found.heat) == list(range(len(found.faces)))
    for face, heat in zip(found.faces, found.heat.values(), strict=True):
        pictures = [np.asarray(Image.open(io.BytesIO(data)).resize((64, 64)), np.float32) for data in (face, heat)]
        assert 0 < np.abs(pictures[0] - pictures[1]).mean() < 80  # the same face, with something over it
    assert found.size > sum(map(len, (*found.faces, *found.heat.values())))
    report = found.printed.decode()
    assert "my clip.mp4" in report
    assert str(tmp_path) not in report


def test_several_checkpoints_are_named_by_their_weights(best: Path, folder: Path, tmp_path: Path) -> None:
    loaded = checkpoint.load(str(best))
    known = dict.fromkeys(members._NEEDED, "") | {"split": "hash:0", "prior": 0.5, "versions": {}}
    known |= {"train_groups": [], "validation_groups": []} | loaded.config
    for name in "ab":
        weights = {key: value * (1 + 1e-3 * (name == "b")) for key, value in loaded.weights.items()}
        checkpoint.save(str(tmp_path / name), weights=weights, config=known, state=None)
    scorer, _, settings = load_predictor(str(tmp_path / "a"), str(tmp_path / "b"), frames=2)
    a, b = (checkpoint.load(str(tmp_path / name)).config["files"]["model.safetensors"] for name in "ab")
    assert card(scorer, settings)["weights_sha256"] == f"{a}; {b}"
    examiner = Examiner(scorer, settings, timeout_s=60, memory_bytes=4 << 30, longest_s=10)
    try:
        found = examiner(upload(folder, tmp_path, "face.mp4"), "a.mp4", lambda *_: None)
        assert found.document["checkpoint"] == f"weights {a[:12]}, weights {b[:12]}"
        assert f"{a}; {b}" in found.printed.decode()
    finally:
        examiner.close()


def test_no_face_is_a_result_without_a_verdict(examiner: Examiner, folder: Path, tmp_path: Path) -> None:
    found = examiner(upload(folder, tmp_path, "empty.mp4"), "a.mp4", lambda *_: None)
    (video,) = found.document["videos"]
    assert (video["status"], video["score"], video["error"]) == ("no_face", None, "no face in 8 sampled frames")
    assert len(found.document["frames_without_face"]) == 8
    assert (found.faces, found.heat, found.document["meaning"]) == ((), {}, None)


def test_a_face_without_sound_is_not_said_to_be_absent() -> None:
    """A model that listens scores the clips that have sound alone; here the first of two with a face."""
    rows = [{"frame": frame, "time_s": frame / 25, "track_id": 0} for frame in (0, 50)]
    result = VideoResult({}, faces=rows, sampled=((0, 0.0), (50, 2.0), (100, 4.0)))
    evidence = Evidence(video=VideoScore(uri="a.mp4", status="ok", score=0.5), rows=tuple(rows[:1]), scores=(0.5,))
    config = {"model": "av_sync", "files": {"model.safetensors": "0"}}
    scorer = SimpleNamespace(config=config, members=(), rule="mean", calibration=None, clips=True)
    found = _document(scorer, SimpleNamespace(frames=16, clips=3), evidence, result, heat=set(), has_maps=False)
    assert [face["frame"] for face in found["faces"]] == [0]
    assert found["frames_without_face"] == [{"frame": 100, "time_s": 4.0}]


def test_what_cannot_be_read_is_refused_with_what_to_do(examiner: Examiner, folder: Path, tmp_path: Path) -> None:
    text = upload(folder, tmp_path, "text.mp4")
    with pytest.raises(Refused, match=r"^Not a readable video: .*\. Try an MP4 with H.264") as refused:
        examiner(text, "a.mp4", lambda *_: None)
    assert "not a video" not in str(refused.value)  # nothing of the file
    cut = upload(folder, tmp_path, "face.mp4")
    cut.write_bytes(cut.read_bytes()[:20_000])
    with pytest.raises(Refused, match=r"end is missing.*download or copy it again"):
        examiner(cut, "a.mp4", lambda *_: None)
    cut.unlink()
    with pytest.raises(Refused) as refused:
        examiner(cut, "a.mp4", lambda *_: None)
    assert str(tmp_path) not in str(refused.value)


def test_a_still_picture_is_refused(examiner: Examiner, folder: Path, tmp_path: Path) -> None:
    picture = upload(folder, tmp_path, "face.mp4")
    Image.new("RGB", (64, 64), "gray").save(picture, "PNG")
    with pytest.raises(Refused, match="single picture"):
        examiner(picture, "a.mp4", lambda *_: None)


def test_a_long_video_is_refused_before_it_is_decoded(best: Path, folder: Path, tmp_path: Path) -> None:
    scorer, _, settings = load_predictor(str(best), frames=8)
    examiner = Examiner(scorer, settings, timeout_s=60, memory_bytes=4 << 30, longest_s=1)
    steps: list[str] = []
    try:
        with pytest.raises(Refused, match=r"2 s long, and at most 1 s are taken\. Cut it shorter\."):
            examiner(upload(folder, tmp_path, "face.mp4"), "a.mp4", lambda stage, _: steps.append(stage))
    finally:
        examiner.close()
    assert set(steps) == {"read"}


def test_a_crowd_is_refused_before_it_is_scored(examiner: Examiner, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfdc_ray.serve.examine.MOST_FACES", 5)
    steps: list[str] = []
    with pytest.raises(Refused, match=r"There are 6 faces in the frames that were looked at, and at most 5 are scored"):
        examiner(upload(folder, tmp_path, "face.mp4"), "a.mp4", lambda stage, _: steps.append(stage))
    assert steps[-1] == "faces"


def _refused(examiner: Examiner, monkeypatch: pytest.MonkeyPatch, answer: VideoResult | Exception, **changes: object) -> str:
    def process(video: object, guide: object) -> VideoResult:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(examiner._worker, "process", process)
    monkeypatch.setattr(examiner, "settings", replace(examiner.settings, **changes))
    with pytest.raises(Refused) as refused:
        examiner(Path("/tmp/0f3a"), "a.mp4", lambda *_: None)
    return str(refused.value)


def _failed(stage: str, error: str) -> VideoResult:
    return VideoResult({"status": "error", "stage": stage, "error": error, "frames_wanted": 0})


def test_the_words_of_libraries_are_kept_from_whoever_sent_a_video(examiner: Examiner, monkeypatch: pytest.MonkeyPatch) -> None:
    said = _refused(examiner, monkeypatch, _failed("detect", "error: OpenCV(4.12.0) dnn.cpp:211: error: (-215) size > 0 in function 'f'"))
    assert said == (
        "This video could not be read (at the stage detect). It may be damaged. Try an MP4 with H.264, which any phone or editor can write."
    )


def test_a_video_too_short_for_a_clip_is_said_to_be(examiner: Examiner, monkeypatch: pytest.MonkeyPatch) -> None:
    result = _failed("probe", "no clip of the length that was asked for lies within its 12 frames")
    said = _refused(examiner, monkeypatch, result, sampling="clips", frames=16, clips=4, stride=2)
    assert said == (
        "This video is too short: the model looks at runs of 16 frames, every 2. of the video, for which it must have 31 frames or more. "
        "Send a longer one."
    )
    said = _refused(examiner, monkeypatch, result, sampling="clips", frames=16, clips=4, stride=1)
    assert "runs of 16 frames, for which it must have 16 frames or more." in said


@pytest.mark.parametrize(
    ("stage", "error", "advice"),
    [
        ("probe", "the file is damaged after frame 80: Invalid data found when processing input", "Download or copy it again; if"),
        ("probe", "none of its 3 frames can be decoded (h264: Invalid data found when processing input)", "Download or copy it again; if"),
        ("decode", "2 of 8 wanted frames could not be decoded (the first is frame 3 of 80)", "Download or copy it again; if"),
        ("probe", "its video stream (vp9) has no keyframe, or no frames at all", "Try an MP4 with H.264"),
        ("open", "no video stream in this mp3 file, only audio", "Try an MP4 with H.264"),
    ],
)
def test_every_bad_file_comes_with_what_to_do(
    examiner: Examiner, monkeypatch: pytest.MonkeyPatch, stage: str, error: str, advice: str
) -> None:
    assert f"{error[1:]}. {advice}" in _refused(examiner, monkeypatch, _failed(stage, error))


@pytest.mark.parametrize(
    "error", ["rotated by 10 degrees: Convert it upright.", "the file is cut short or damaged: Download or copy it again."]
)
def test_what_says_already_what_to_do_gets_no_more_advice(examiner: Examiner, monkeypatch: pytest.MonkeyPatch, error: str) -> None:
    assert _refused(examiner, monkeypatch, _failed("probe", error)) == error[:1].upper() + error[1:]


def test_a_machine_in_trouble_is_not_the_video_s_fault(examiner: Examiner, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "could not be read" in _refused(examiner, monkeypatch, Unreadable("/tmp/0f3a: could not be read within 1 s"))
    with pytest.raises(StorageError, match="did not start"):
        _refused(examiner, monkeypatch, StorageError("the decoding process did not start"))


def test_giving_up_ends_the_decoding(examiner: Examiner, folder: Path, tmp_path: Path) -> None:
    def stop(stage: str, _: float | None) -> None:
        if stage == "faces":
            raise KeyError

    with pytest.raises(KeyError):
        examiner(upload(folder, tmp_path, "face.mp4"), "a.mp4", stop)
    assert examiner._worker.pid is None
    assert examiner(upload(folder, tmp_path, "face.mp4"), "a.mp4", lambda *_: None).faces


@pytest.mark.parametrize("stage", ["score", "heat"])
def test_what_was_removed_stops_within_a_batch(
    examiner: Examiner, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    batches: list[float | None] = []
    for module in ("scorer", "heat"):
        monkeypatch.setattr(f"dfdc_ray.evaluate.{module}._BATCH", 2)  # of 6 faces

    def work(path: Path, name: str, progress: Callable[[str, float | None], None]) -> Finding:
        def watched(at: str, share: float | None) -> None:
            progress(at, share)
            if at == stage:
                batches.append(share)
            if name == "removed" and batches == [None, pytest.approx(1 / 3)]:
                jobs.delete(ids["removed"])

        return examiner(path, name, watched)

    jobs, ids = Jobs(tmp_path, work, Limits(max_bytes=1 << 20)), {}
    try:
        with jobs.receive() as upload, jobs.receive() as other:
            for one, name in ((upload, "removed"), (other, "other")):
                one.write((folder / "face.mp4").read_bytes())
                ids[name] = one.finish(name)
        end = time.monotonic() + 60
        while (found := jobs.look(ids["other"])) is not None and found.state != "done":
            assert time.monotonic() < end, found
            time.sleep(0.02)
        assert jobs.look(ids["removed"]) is None
        whole = [None, *(pytest.approx(n / 3) for n in (1, 2, 3))]
        assert batches == [*whole[:2], *whole]
    finally:
        jobs.close()


def test_of_too_many_faces_those_that_decide_get_heat_maps_first(examiner: Examiner, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = encode(np.zeros((64, 64, 3), np.uint8), "jpeg")
    tracks = tuple(TrackScore(track_id=n, score=0.5, coverage=0.5, counted=n == 0, faces=()) for n in (0, 1))
    evidence = Evidence(
        video=VideoScore(uri="a.mp4", status="ok", tracks=tracks),
        rows=tuple({"track_id": int(n % 2)} for n in range(6)),
        pictures=((picture,),) * 6,
        scores=(0.1, 0.8, 0.2, 0.9, 0.3, 0.7),
    )
    for most, chosen in ((3, {0, 2, 4}), (2, {2, 4}), (4, {0, 2, 4, 3})):
        monkeypatch.setattr("dfdc_ray.serve.examine.MOST_HEAT", most)
        assert set(_drawn(examiner.scorer, evidence, lambda _: None)[1]) == chosen


def test_messages_name_no_place() -> None:
    path = Path("/tmp/dfdc-ray-serve-x/0f3a")
    said = _said(f"{path}: could not be read; {path.parent} is absent, see /etc/passwd or b'/x'", path)
    assert said == "The video: could not be read; the file is absent, see the file or b'/x'"


def test_the_card_names_no_place(examiner: Examiner, best: Path) -> None:
    about = card(examiner.scorer, examiner.settings)
    assert (about["model"], about["calibrated"], about["heat_maps"], about["maps"]) == ("resnet34", False, True, False)
    assert str(best.parent) not in json.dumps(about)
