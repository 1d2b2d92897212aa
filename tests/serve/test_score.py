"""predict on videos made here: a photographed face moving over a background, no face, and files that are no video."""

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from moving_face import FACE, FACE_SECONDS, HEIGHT, RATE, WIDTH, portrait_at
from scipy.special import expit, logit
from seen import Seen

from dfdc_ray.cli import main
from dfdc_ray.config import PreprocessConfig
from dfdc_ray.errors import StorageError, UserError
from dfdc_ray.evaluate.members import combined, load_members, save
from dfdc_ray.evaluate.scorer import load_scorer
from dfdc_ray.faces.crop import cut, encode
from dfdc_ray.models import create_model
from dfdc_ray.preprocess.settings import settings_of
from dfdc_ray.serve import maps
from dfdc_ray.serve.score import load_predictor, score_video
from dfdc_ray.train import checkpoint, transforms


@pytest.fixture(scope="module")
def best_of_frames(best: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, said to be trained on whole frames."""
    path = tmp_path_factory.mktemp("train") / "frames"
    settings = asdict(settings_of(PreprocessConfig(corpus=("unused",), out="unused", crop="frame")))
    loaded = checkpoint.load(str(best))
    checkpoint.save(str(path), weights=loaded.weights, config=loaded.config | {"faces_config": settings}, state=None)
    return path


def _run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["predict", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def found(folder: Path, best: Path) -> Any:
    """The score of face.mp4 with 8 frames."""
    return score_video(str(folder / "face.mp4"), *load_predictor(str(best), frames=8)).video


def test_the_face_is_found_where_it_is(found: Any) -> None:
    assert found.status == "ok"
    assert (found.width, found.height, found.frames_sampled) == (WIDTH, HEIGHT, 8)
    (track,) = found.tracks
    assert track.counted
    assert track.coverage == pytest.approx(len(track.faces) / 8)
    assert 5 <= len(track.faces) <= 7  # there for three quarters of the video
    for face in track.faces:
        assert face.time_s == pytest.approx(face.frame / RATE)
        assert FACE_SECONDS[0] <= face.time_s <= FACE_SECONDS[1]
        x, y = portrait_at(face.frame)
        centre = face.box[0] + face.box[2] / 2, face.box[1] + face.box[3] / 2
        assert centre == pytest.approx((x + FACE[0] + FACE[2] / 2, y + FACE[1] + FACE[3] / 2), abs=25)


@pytest.mark.parametrize("name", ["late.ts", "late.mkv"])
def test_times_count_from_the_first_frame(found: Any, folder: Path, best: Path, name: str) -> None:
    scorer, detector, settings = load_predictor(str(best), frames=8)
    late = score_video(str(folder / name), scorer, detector, settings)
    assert late.rows[0]["pts"] > 7000  # in the stream's time base
    assert [face.time_s for face in late.video.tracks[0].faces] == pytest.approx([face.time_s for face in found.tracks[0].faces], abs=1e-3)
    assert [frame.time_s for frame in late.video.frames] == [face.time_s for face in late.video.tracks[0].faces]


def test_score_and_verdict_follow_from_the_frames(found: Any) -> None:
    (track,) = found.tracks
    assert [frame.frame for frame in found.frames] == [face.frame for face in track.faces]
    assert found.score == pytest.approx(np.mean([frame.score for frame in found.frames]))
    assert found.verdict == ("FAKE" if found.score > 0.5 else "REAL")


def test_the_model_sees_what_the_shards_would_hold(found: Any, folder: Path, best: Path) -> None:
    """The same crops, cut from a plain full decode and encoded as preprocess does, give the same scores."""
    with av.open(str(folder / "face.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    pictures = [encode(cut(frames[face.frame], face.crop, max_side=320), "jpeg") for face in found.tracks[0].faces]
    again = load_scorer(str(best)).score([[picture] for picture in pictures])
    assert [face.score for face in found.tracks[0].faces] == pytest.approx(again.tolist(), abs=1e-6)


def test_a_page_of_each_video_also_without_a_score(folder: Path, best: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    videos = [folder / "face.mp4", folder / "text.mp4"]
    code, out, _ = _run(capsys, *videos, "--checkpoint", best, "--frames", 4, "--json", "--report", tmp_path / "pages")
    assert code == 2
    face, text = (Seen((tmp_path / "pages" / maps.name_of(str(video), ".html")).read_bytes()) for video in videos)
    assert f"{json.loads(out)['videos'][0]['score']:.3f}score, 0 real to 1 fake" in face.words
    assert "not a readable video" in text.words
    for page in (face, text):
        page.check()


def test_clips_are_scored_as_such(folder: Path, tmp_path: Path) -> None:
    """Three clips are asked for by 12 frames: one before the face comes, two with it."""
    torch.manual_seed(0)
    clips = settings_of(PreprocessConfig(corpus=("unused",), out="unused", sampling="clips", frames=4, clips=8))
    config = {"model": "r3d_18", "transform": transforms.recipe(32, "r3d_18"), "faces_config": asdict(clips)}
    checkpoint.save(str(tmp_path / "best"), weights=create_model("r3d_18").state_dict(), config=config, state=None)
    found = score_video(str(folder / "face.mp4"), *load_predictor(str(tmp_path / "best"), frames=12)).video
    assert (found.status, found.frames_sampled) == ("ok", 3)
    (track,) = found.tracks
    assert len(track.faces) == len(found.frames) == 2
    assert track.coverage == pytest.approx(2 / 3)
    (tmp_path / "file").write_text("")
    scorer, detector, settings = load_predictor(str(tmp_path / "best"), frames=4)
    with pytest.raises((UserError, StorageError), match="file"):
        maps.write(scorer, score_video(str(folder / "face.mp4"), scorer, detector, settings), str(tmp_path / "file"))


def test_several_checkpoints_and_a_combination_score_a_video_by_the_sum_of_their_logits(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that looks at frames, and one at clips."""
    torch.manual_seed(0)
    known = {"train_groups": [], "validation_groups": [], "prior": 0.5, "data_hash": "0" * 64, "selection": "x", "epoch": 1, "versions": {}}
    clips = settings_of(PreprocessConfig(corpus=("unused",), out="unused", sampling="clips", frames=4, clips=8))
    two = {name: str(tmp_path / name) for name in ("resnet34", "chroma")}
    for name, uri in two.items():
        config = known | {"model": name, "transform": transforms.recipe(64, name), "faces_config": asdict(clips), "split": "hash:0"}
        checkpoint.save(uri, weights=create_model(name).state_dict(), config=config, state=None)
    fitted = combined([load_members(uri) for uri in two.values()], [2.0, -0.5], 0.25, how="logistic combination")
    save(str(tmp_path / "both"), fitted)

    video = folder / "face.mp4"
    for given, (frames, time, bias) in ((two.values(), (0.5, 0.5, 0.0)), ([str(tmp_path / "both")], (2.0, -0.5, 0.25))):
        code, out, _ = _run(capsys, video, "--json", "--frames", 12, *(word for uri in given for word in ("--checkpoint", uri)))
        assert code == 0
        (found,) = json.loads(out)["videos"]
        assert (found["status"], found["unit"], found["frames_sampled"]) == ("ok", "clips", 3)
        pictures = score_video(str(video), *load_predictor(*given, frames=12)).pictures
        of_frames = [logit(load_scorer(two["resnet34"]).score([[picture] for picture in clip])).mean() for clip in pictures]
        of_time = logit(load_scorer(two["chroma"]).score(pictures))
        expected = expit(frames * np.array(of_frames) + time * of_time + bias)
        assert [face["score"] for face in found["tracks"][0]["faces"]] == pytest.approx(expected, abs=1e-4)
        assert found["score"] == pytest.approx(expected.mean(), abs=1e-4)


def test_a_model_that_listens_says_that_there_is_no_sound(folder: Path, tmp_path: Path) -> None:
    clips = settings_of(PreprocessConfig(corpus=("unused",), out="unused", sampling="clips", frames=4, clips=8, sound=True))
    config = {"model": "av_sync", "transform": transforms.recipe(32, "av_sync"), "faces_config": asdict(clips)}
    checkpoint.save(str(tmp_path / "best"), weights=create_model("av_sync").state_dict(), config=config, state=None)
    found = score_video(str(folder / "face.mp4"), *load_predictor(str(tmp_path / "best"), frames=12)).video
    assert (found.status, found.stage, found.score) == ("error", "sound", None)
    assert found.error == "the model listens, and it has no sound track"


def test_whole_frames_need_no_face(folder: Path, best_of_frames: Path) -> None:
    found = score_video(str(folder / "empty.mp4"), *load_predictor(str(best_of_frames), frames=3)).video
    assert found.status == "ok"
    (track,) = found.tracks
    assert track.coverage == 1
    assert [(face.box, face.crop) for face in track.faces] == [(None, (0, 0, WIDTH, HEIGHT))] * 3


def test_a_checkpoint_that_does_not_know_its_faces_is_refused(best: Path, tmp_path: Path) -> None:
    loaded = checkpoint.load(str(best))
    config = {name: value for name, value in loaded.config.items() if name != "faces_config"}
    checkpoint.save(str(tmp_path / "old"), weights=loaded.weights, config=config, state=None)
    with pytest.raises(UserError, match="faces_config"):
        load_predictor(str(tmp_path / "old"), frames=3)


def test_faces_of_another_version_are_refused(best: Path, tmp_path: Path) -> None:
    loaded = checkpoint.load(str(best))
    older = {name: value for name, value in loaded.config["faces_config"].items() if name != "detector_smaller_sides"}
    checkpoint.save(str(tmp_path / "old"), weights=loaded.weights, config=loaded.config | {"faces_config": older}, state=None)
    with pytest.raises(UserError, match="another version"):
        load_predictor(str(tmp_path / "old"), frames=2)


def test_a_model_of_a_split_that_leaks_is_not_for_use(best: Path, tmp_path: Path) -> None:
    loaded = checkpoint.load(str(best))
    leaky = loaded.config["faces_config"] | {"regrouped_by": "frame"}
    checkpoint.save(str(tmp_path / "leaky"), weights=loaded.weights, config=loaded.config | {"faces_config": leaky}, state=None)
    with pytest.raises(UserError, match="split by frame, to show how such a split leaks"):
        load_predictor(str(tmp_path / "leaky"), frames=2)


def test_human_output(capsys: pytest.CaptureFixture[str], folder: Path, best: Path) -> None:
    code, out, _ = _run(capsys, folder / "face.mp4", "--checkpoint", best, "--frames", 8)
    assert code == 0
    for words in ("score 0.", "sampled frames scored", "highest", "first box"):
        assert words in out


def test_json_is_one_document_with_failures_in_it(capsys: pytest.CaptureFixture[str], folder: Path, best: Path) -> None:
    names = ["face.mp4", "empty.mp4", "text.mp4", "absent.mp4"]
    code, out, err = _run(capsys, *(folder / name for name in names), "--checkpoint", best, "--frames", 4, "--json")
    assert code == 2
    document = json.loads(out)
    videos = {Path(video["uri"]).name: video for video in document["videos"]}
    assert [Path(video["uri"]).name for video in document["videos"]] == names
    assert {name: video["status"] for name, video in videos.items()} == {
        "face.mp4": "ok",
        "empty.mp4": "no_face",
        "text.mp4": "error",
        "absent.mp4": "error",
    }
    assert videos["face.mp4"]["frames"][0].keys() == {"frame", "time_s", "score"}
    for name in names[1:]:
        assert (videos[name]["score"], videos[name]["verdict"], videos[name]["frames"]) == (None, None, [])
        assert videos[name]["error"]
        assert name in err.replace("\n", "")
    assert videos["absent.mp4"]["stage"] == "open"


def test_csv_is_kaggles_and_leaves_failures_out(capsys: pytest.CaptureFixture[str], folder: Path, best: Path) -> None:
    code, out, err = _run(capsys, folder / "text.mp4", folder / "face.mp4", "--checkpoint", best, "--frames", 4, "--csv")
    assert code == 2
    (row,) = csv.DictReader(out.splitlines())
    assert row.keys() == {"filename", "label"}
    assert row["filename"] == "face.mp4"
    assert 0 <= float(row["label"]) <= 1
    assert "text.mp4" in err


@pytest.mark.parametrize("name", ["empty.mp4", "text.mp4", "absent.mp4"])
def test_no_score_is_said_and_exits_2(capsys: pytest.CaptureFixture[str], folder: Path, best: Path, name: str) -> None:
    code, out, _ = _run(capsys, folder / name, "--checkpoint", best, "--frames", 2)
    assert code == 2
    assert "no score" in out
    assert "REAL" not in out
    assert "FAKE" not in out


def test_misuse_is_refused(capsys: pytest.CaptureFixture[str], folder: Path, best: Path) -> None:
    video = folder / "face.mp4"
    assert _run(capsys, video, "--checkpoint", best, "--json", "--csv")[0] == 1
    assert _run(capsys, video, "--checkpoint", best, "--frames", 0)[0] == 1
    code, _, err = _run(capsys, video, video, "--checkpoint", best, "--csv")
    assert (code, "face.mp4" in err) == (1, True)
    code, _, err = _run(capsys, video, "--checkpoint", folder)
    assert (code, "checkpoint" in err) == (1, True)
