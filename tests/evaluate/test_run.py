"""evaluate from end to end, on a small preprocess output of coloured noise and a model with random weights."""

import csv
import json
import os
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from browser import NEEDS_CHROMIUM, check_file
from helpers import pack_shards
from seen import Seen

from dfdc_ray.config import CalibrateConfig, CombineConfig, EvaluateConfig, PreprocessConfig
from dfdc_ray.corpus.index import INDEX
from dfdc_ray.corpus.splits import assign
from dfdc_ray.errors import UserError
from dfdc_ray.evaluate import calibration, files, run, tables
from dfdc_ray.evaluate.aggregate import RULES
from dfdc_ray.evaluate.combine import combine
from dfdc_ray.evaluate.run import calibrate, evaluate
from dfdc_ray.evaluate.scorer import load_scorer
from dfdc_ray.faces.crop import encode
from dfdc_ray.models import create_model
from dfdc_ray.preprocess import publish, receipts
from dfdc_ray.preprocess.plan import Video, units
from dfdc_ray.preprocess.settings import Settings, settings_of
from dfdc_ray.preprocess.unit import UnitResult, VideoResult, ledger_row
from dfdc_ray.shards.manifest import read_manifest
from dfdc_ray.shards.rows import RowTable
from dfdc_ray.shards.schema import FACES
from dfdc_ray.shards.write import parquet_bytes
from dfdc_ray.train import checkpoint, transforms

FRAMES = 4
PRIOR = 0.7
SETTINGS = settings_of(PreprocessConfig(corpus=("unused",), out="unused", frames=FRAMES))


def _faces(video: Video, rng: np.random.Generator, *, clips: bool) -> list[dict[str, Any]]:
    """Core frames 0, 10, ... of track 0; a passer-by in one of them; for reals an extra frame after each."""
    rows = []
    for frame, track, core in [(10 * i, 0, True) for i in range(FRAMES)] + [(0, 1, True)] + [(10 * i + 5, 0, False) for i in range(FRAMES)]:
        if core or video.label == "REAL":
            picture = rng.integers(0, 255, (32, 32, 3)).astype(np.uint8)
            ids = {name: getattr(video, name) for name in ("corpus", "video_id", "family_id", "group_id", "part", "label", "method")}
            image = {"bytes": encode(picture, "jpeg"), "path": None}
            rows.append(ids | {"frame": frame, "track_id": track, "core": core, "image": image})
            if clips:  # the first two and the last two core frames of a track; no other has both of its frames
                rows[-1] |= {"clip_id": frame // 20 if core else 2 + frame, "clip_position": frame // 10 % 2 if core else 0}
    return rows


def _row(name: str, part: int, original: str | None = None, label: str | None = "REAL") -> dict[str, Any]:
    method = "drawn_swap" if label == "FAKE" else None
    ids = {"corpus": "c", "video_id": f"c/{name}", "family_id": f"c/{original or name}", "group_id": f"c/part:{part}", "part": part}
    return ids | {"uri": "unused", "label": label, "method": method, "original": original and f"c/{original}", "size_bytes": 1}


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten parts, each a group with one real and three fakes; the last part has a video of every kind of trouble."""
    # As in Kaggle's test_videos: neither label nor part.
    rows = [_row("test_videos/x.mp4", 9, label=None) | {"part": None, "group_id": "c/family:test_videos/x.mp4"}]
    for part in range(10):
        rows += [_row(f"r{part}.mp4", part), *(_row(f"f{part}{n}.mp4", part, f"r{part}.mp4", "FAKE") for n in range(3))]
    return _written(tmp_path_factory.mktemp("evaluate") / "faces", rows, SETTINGS)


def _written(out: Path, rows: list[dict[str, Any]], settings: Settings) -> Path:
    index = pa.Table.from_pylist(rows, schema=INDEX)
    trouble = {"c/f90.mp4": "no_face", "c/f91.mp4": "error", "c/r9.mp4": "extra_only"}
    output = receipts.open_output(str(out), settings)
    publish.remember(str(out), index)
    rng = np.random.default_rng(0)
    for unit in units(index):
        results = []
        for video in unit.videos:
            kind = trouble.get(video.video_id, "ok")
            found = [
                row
                for row in _faces(video, rng, clips=settings.sampling == "clips")
                if kind == "ok" or (kind == "extra_only" and not row["core"])
            ]
            status = "ok" if kind == "extra_only" else kind
            error = {"stage": "decode", "error": "broken"} if kind == "error" else {}
            results.append(VideoResult(ledger_row(video, status=status, core_decoded=FRAMES, **error), found))
        output.commit(UnitResult(unit, results), generation=0)
    publish.publish(output, units(index), settings, versions={})
    return out


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights, said to be trained on parts 0 to 5."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("train") / "best"
    config = {
        "model": "resnet34",
        "transform": transforms.recipe(32, "resnet34"),
        "split": "parts:0-5/6/7-9",
        "train_groups": [f"c/part:{part}" for part in range(6)],
        "prior": PRIOR,
        "data_hash": "0" * 64,
        "faces_config": asdict(SETTINGS),
        "selection": "lowest validation video log loss",
        "epoch": 3,
    }
    checkpoint.save(str(folder), weights=create_model("resnet34").state_dict(), config=config, state=None)
    return folder


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the curves, which take longer to draw than these few faces to judge; but for tests marked `drawn`, and test_report.py."""
    if "drawn" not in request.keywords:
        monkeypatch.setattr(files, "_pictures", lambda report: dict.fromkeys(tables.PICTURES, b"\x89PNG"))


def _evaluate(faces: Path, best: Path, out: Path, **options: Any) -> dict[str, Any]:
    evaluate(EvaluateConfig(faces=str(faces), checkpoint=(str(best),), out=str(out), batch_size=5, **options))
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


@pytest.fixture(scope="module")
def report_of_test(faces: Path, best: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the report on the test split."""
    out = tmp_path_factory.mktemp("report")
    _evaluate(faces, best, out)
    return out


def _changed(best: Path, folder: Path, **changes: Any) -> Path:
    """The same checkpoint with another config.json."""
    folder.mkdir()
    os.link(best / "model.safetensors", folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(json.loads((best / "config.json").read_text()) | changes))
    return folder


def test_every_labelled_video_of_the_split_is_counted(faces: Path, report_of_test: Path) -> None:
    report = json.loads((report_of_test / "report.json").read_text())
    assert report["video"]["metrics"]["n"] == 12  # parts 7 to 9
    assert (report["video"]["metrics"]["reals"], report["video"]["metrics"]["fakes"]) == (3, 9)
    assert report["videos_unlabelled"] == 1
    status = {v["video_id"]: v["status"] for v in report["videos"] if v["score"] is None}
    assert status == {"c/f90.mp4": "no_face", "c/f91.mp4": "error", "c/r9.mp4": "no_core_face"}
    assert {v["counted_as"] for v in report["videos"] if v["score"] is None} == {PRIOR}
    assert report["frame"]["metrics"]["n"] == report["protocol"]["frames_scored"] == 9 * FRAMES
    assert report["protocol"]["groups"] == report["video"]["groups"] == 3
    assert report["protocol"]["checkpoint_epoch"] == 3
    assert report["protocol"]["log_loss_clipping"] == 1e-15
    assert report["protocol"]["data_hash"] == json.loads((faces / "manifest.json").read_text())["data_hash"]
    assert any("GENERATED" in warning for warning in report["warnings"])


def test_scores_are_those_of_the_core_frames_of_the_main_track(faces: Path, best: Path, report_of_test: Path) -> None:
    """Computed again from the shards' bytes; 1e-5 since convolutions of another batch size round differently."""
    scorer = load_scorer(str(best))
    found = {row["video_id"]: row["score"] for row in csv.DictReader((report_of_test / "scores.csv").read_text().splitlines())}
    pictures: dict[str, list[bytes]] = {}
    for path in (faces / "faces").glob("*.parquet"):
        for row in pq.read_table(path).to_pylist():
            if row["core"] and row["track_id"] == 0 and found.get(row["video_id"]):
                pictures.setdefault(row["video_id"], []).append(row["image"]["bytes"])
    assert sorted(map(len, pictures.values())) == [FRAMES] * 9
    for video_id, main_track in pictures.items():
        assert float(found[video_id]) == pytest.approx(scorer.score([[picture] for picture in main_track]).mean(), abs=1e-5)


def _check_mistakes(out: Path, faces: Path, *, each: int) -> None:
    """The page shows every wrong verdict, the surest first, with pictures of its faces, and they are in the shards where it says."""
    report = json.loads((out / "report.json").read_text())
    page = Seen((out / "report.html").read_bytes())
    page.check()
    cards = page.html.split('<div class="case">')[1:]
    assert len(cards) == len(report["worst"]) > 0
    for video_id, card in zip(report["worst"], cards, strict=True):
        seen = Seen(card)
        assert f"<h3><bdi>{video_id}</bdi></h3>" in card
        assert len(seen.all("img", "src")) == 2 * each  # each beside its heat map
        (link,) = seen.all("a", "href")
        shard = pq.read_table(out / unquote(link)).to_pylist()
        rows = [shard[int(number)] for number in re.findall(r"\d+", re.findall(r", rows? ([\d, ]+)", seen.text)[-1])]
        assert len(rows) == each
        assert {row["video_id"] for row in rows} == {video_id}
        assert all(row["core"] for row in rows)
        if rows[0]["clip_id"] is None:
            assert re.findall(r"frame (\d+)", seen.text) == [str(row["frame"]) for row in rows]
        assert f"{faces}/" in seen.text


def test_mistakes_are_shown_as_pictures_with_their_place_in_the_shards(faces: Path, report_of_test: Path) -> None:
    _check_mistakes(report_of_test, faces, each=3)


@pytest.mark.browser
@NEEDS_CHROMIUM
def test_everybody_can_read_the_page(report_of_test: Path) -> None:
    check_file(report_of_test / "report.html")


def test_the_page_has_the_numbers_of_the_report(report_of_test: Path) -> None:
    video = json.loads((report_of_test / "report.json").read_text())["video"]
    m, auc = video["metrics"], video["intervals"]["auc"]
    words = Seen((report_of_test / "report.html").read_bytes()).words
    for tile in (
        f"{m['auc']:.4f}ROC AUC by video95 %: {auc['low']:.4f} to {auc['high']:.4f}",
        f"{m['log_loss']:.4f}log loss by videoconstant prior: {video['baselines']['constant_prior']['log_loss']:.4f}",
        f"{m['accuracy']:.4f}accuracy at 0.5 by videoalways fake: {video['baselines']['always_fake']['accuracy']:.4f}",
        "12videos3 real, 9 fake, 3 groups3 without a score",
    ):
        assert tile in words


def test_the_same_again_gives_the_same_report(faces: Path, best: Path, report_of_test: Path, tmp_path: Path) -> None:
    first, again = json.loads((report_of_test / "report.json").read_text()), _evaluate(faces, best, tmp_path)
    for report in (first, again):
        del report["protocol"]["date"]
    assert first == again


def test_packed_faces_give_the_same_report(faces: Path, best: Path, report_of_test: Path, tmp_path: Path) -> None:
    first = json.loads((report_of_test / "report.json").read_text())
    packed = _evaluate(Path(pack_shards(faces, tmp_path / "packed")), best, tmp_path / "report", cache=str(tmp_path / "cache"))
    assert packed["protocol"].pop("data_hash") != first["protocol"].pop("data_hash")
    for report in (first, packed):
        del report["protocol"]["date"], report["protocol"]["faces"]
        report["scores"] = [(v.pop("score"), v.pop("counted_as")) for v in report["videos"]]
    assert packed["protocol"] == first["protocol"]
    assert packed["videos"] == first["videos"]
    for found, expected in zip(packed["scores"], first["scores"], strict=True):
        assert found == (pytest.approx(expected[0], abs=1e-5), pytest.approx(expected[1], abs=1e-5))
    _check_mistakes(tmp_path / "report", tmp_path / "packed", each=3)
    assert 0 < len(list((tmp_path / "cache").glob("*.parquet"))) < len(read_manifest(str(tmp_path / "packed")).files)


def test_groups_that_were_trained_on_are_refused(faces: Path, best: Path, tmp_path: Path) -> None:
    changed = _changed(best, tmp_path / "changed", train_groups=["c/part:0", "c/part:8"])
    with pytest.raises(UserError, match=r"1 of the 3 groups in the test split .* trained on \(c/part:8\)"):
        _evaluate(faces, changed, tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_the_same_videos_under_other_groups_are_refused(faces: Path, best: Path, tmp_path: Path) -> None:
    families = sorted({row["family_id"] for row in pq.read_table(faces / "index.parquet").to_pylist()})
    seen = {"train_groups": ["c/family:a.mp4"], "validation_groups": ["c/family:b.mp4"], "train_families": families[:2]}
    changed = _changed(best, tmp_path / "changed", **seen, split="parts:0-9/20/30")
    with pytest.raises(UserError, match=rf"2 of the \d+ families of .* trained on \({families[0]}, {families[1]}\)"):
        _evaluate(faces, changed, tmp_path / "report", split="all")


def test_groups_that_the_checkpoint_was_chosen_by_are_refused_as_test(faces: Path, best: Path, tmp_path: Path) -> None:
    changed = _changed(best, tmp_path / "changed", validation_groups=["c/part:6", "c/part:7"])
    with pytest.raises(UserError, match=r"1 of the 3 groups in the test split .* chosen by \(c/part:7\)"):
        _evaluate(faces, changed, tmp_path / "report")
    assert _evaluate(faces, changed, tmp_path / "report", split="validation")["video"]["groups"] == 1


def test_groups_of_another_corpus_cannot_be_compared_by_name(faces: Path, best: Path, report_of_test: Path, tmp_path: Path) -> None:
    assert not any("ANOTHER" in warning for warning in json.loads((report_of_test / "report.json").read_text())["warnings"])
    changed = _changed(best, tmp_path / "changed", train_groups=["dfdc/part:7", "dfdc/part:8"])
    (warning,) = (w for w in _evaluate(faces, changed, tmp_path / "report")["warnings"] if "ANOTHER" in w)
    assert warning.startswith("ANOTHER CORPUS than those of training (c): ")


def test_all_of_another_corpus_is_judged_whatever_the_rule(faces: Path, best: Path, tmp_path: Path) -> None:
    """By the checkpoint's rule nothing of it is in the test split."""
    changed = _changed(
        best, tmp_path / "changed", train_groups=["dfdc/part:0"], train_families=[], validation_families=[], split="parts:0-9/20/30"
    )
    report = _evaluate(faces, changed, tmp_path / "report", split="all")
    assert (report["video"]["metrics"]["n"], report["video"]["groups"], report["videos_unlabelled"]) == (40, 10, 1)
    assert report["protocol"]["split"] == "all"
    with pytest.raises(UserError, match=r"6 of the 10 groups of .* trained on \(c/part:0"):
        _evaluate(faces, best, tmp_path / "report", split="all")


def test_training_data_is_judged_on_request_and_says_so(faces: Path, best: Path, tmp_path: Path) -> None:
    report = _evaluate(faces, best, tmp_path / "report", split="train")
    assert report["protocol"]["groups"] == 6
    assert report["warnings"][0].startswith("TRAINING DATA")
    assert "TRAINING DATA" in (tmp_path / "report" / "report.md").read_text()


def test_one_group_and_the_split_that_chose_the_checkpoint(faces: Path, best: Path, tmp_path: Path) -> None:
    report = _evaluate(faces, best, tmp_path / "report", split="validation")
    assert report["warnings"][0].startswith("VALIDATION DATA")
    assert report["video"]["intervals"]["auc"] is None
    assert report["video"]["metrics"]["auc"] is not None


def test_faces_made_in_another_way_are_pointed_out(faces: Path, best: Path, tmp_path: Path) -> None:
    changed = _changed(best, tmp_path / "changed", faces_config=asdict(SETTINGS) | {"margin": 0.1, "frames": 99, "landmarks": "centerface"})
    report = _evaluate(faces, changed, tmp_path / "report")
    (warning,) = (w for w in report["warnings"] if "another way" in w)
    assert "margin 0.1 in training" in warning
    assert "frames" not in warning
    assert "landmarks" not in warning  # they change no picture


def test_two_checkpoints_and_their_combination(faces: Path, best: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(1)
    config = json.loads((best / "config.json").read_text()) | {"validation_groups": ["c/part:6"], "versions": {}}
    for name, model in (("a", "resnet34"), ("b", "efficientnet_lite0")):
        weights = create_model(model).state_dict()
        changed = config | {"model": model, "transform": transforms.recipe(32, model)}
        checkpoint.save(str(tmp_path / name), weights=weights, config=changed, state=None)
    both = (str(tmp_path / "a"), str(tmp_path / "b"))
    evaluate(EvaluateConfig(faces=str(faces), checkpoint=both, out=str(tmp_path / "mean")))
    report = json.loads((tmp_path / "mean" / "report.json").read_text())
    assert report["protocol"]["model"] == "mean of logits of resnet34, efficientnet_lite0"
    assert report["protocol"]["checkpoint"] == ", ".join(both)
    assert report["frame"]["metrics"]["n"] == 9 * FRAMES

    combine(CombineConfig(checkpoint=both, out=str(tmp_path / "both"), faces=str(faces), by="logistic"))
    fitted = re.search(r"On the 4 validation videos: log loss \S+ of the mean, (\S+) of the combination", capsys.readouterr().out)
    assert fitted
    validated = _evaluate(faces, tmp_path / "both", tmp_path / "validated", split="validation")
    assert validated["video"]["metrics"]["log_loss"] == pytest.approx(float(fitted[1]), abs=1e-4)  # it is judged as it was fitted
    calibrate(CalibrateConfig(faces=str(faces), checkpoint=str(tmp_path / "both")))
    again = _evaluate(faces, tmp_path / "both", tmp_path / "again")
    assert again["protocol"]["model"] == "logistic combination of resnet34, efficientnet_lite0"
    assert again["video"]["metrics"]["n"] == 12


@pytest.mark.drawn
def test_clips_are_counted_as_such(faces: Path, best: Path, tmp_path: Path) -> None:
    """Of two frames, two a video. The passer-by and the extra frames are in no whole clip."""
    clips = replace(SETTINGS, sampling="clips", frames=2, clips=2, stride=10)
    rows = pq.read_table(faces / "index.parquet").to_pylist()
    of_clips = _written(tmp_path / "clips", rows, clips)
    config = json.loads((best / "config.json").read_text()) | {"validation_groups": ["c/part:6"], "versions": {}}
    torch.manual_seed(0)
    for name, model, settings in (("space", "efficientnet_lite0", SETTINGS), ("time", "chroma", clips)):
        changed = config | {"model": model, "transform": transforms.recipe(32, model), "faces_config": asdict(settings)}
        checkpoint.save(str(tmp_path / name), weights=create_model(model).state_dict(), config=changed, state=None)
    for number, given in enumerate((["time"], ["space", "time"], ["time", "space"])):
        checkpoints = tuple(str(tmp_path / name) for name in given)
        evaluate(EvaluateConfig(faces=str(of_clips), checkpoint=checkpoints, out=str(tmp_path / f"report{number}"), batch_size=3))
        report = json.loads((tmp_path / f"report{number}" / "report.json").read_text())
        assert report["video"]["metrics"]["n"] == 12
        _check_mistakes(tmp_path / f"report{number}", of_clips, each=2)
        assert report["frame"]["metrics"]["n"] == report["protocol"]["frames_scored"] == 9 * 2
        whole = [v for v in report["videos"] if v["score"] is not None]
        assert {(v["frames_scored"], v["frames_sampled"]) for v in whole} == {(2, 2)}
        assert {v["status"] for v in report["videos"] if v["score"] is None} == {"no_face", "error", "no_core_face"}
        assert (report["protocol"]["clips_per_video"], report["protocol"]["frames_per_clip"]) == (2, 2)
        assert report["protocol"]["frames_used"] == "core clips only, each of 2 frames and counted as one"
        assert not any("another way" in warning for warning in report["warnings"])
    assert report["protocol"]["model"] == "mean of logits of chroma, efficientnet_lite0"

    combine(CombineConfig(checkpoint=checkpoints, out=str(tmp_path / "both"), faces=str(of_clips), by="logistic"))
    longer = _changed(tmp_path / "time", tmp_path / "longer", faces_config=asdict(replace(clips, frames=4)))
    with pytest.raises(UserError, match=r"different ways \(frames\)"):
        combine(CombineConfig(checkpoint=(str(tmp_path / "time"), str(longer)), out=str(tmp_path / "x")))
    warned = _evaluate(of_clips, longer, tmp_path / "report")["warnings"]
    assert any("frames 4 in training, 2 here" in warning for warning in warned)
    with pytest.raises(UserError, match="--sampling clips"):
        _evaluate(faces, tmp_path / "time", tmp_path / "none")


def test_a_video_that_a_listening_model_cannot_judge_is_explained(faces: Path, best: Path, tmp_path: Path) -> None:
    clips = replace(SETTINGS, sampling="clips", frames=2, clips=2, stride=10, sound=True)
    of_clips = _written(tmp_path / "clips", pq.read_table(faces / "index.parquet").to_pylist(), clips)
    mute = {"c/f70.mp4": "silent", "c/f71.mp4": "damaged: Invalid data"}
    for file in read_manifest(str(of_clips)).files:
        rows = pq.read_table(file.uri).to_pylist()
        for row in rows:
            row |= {"has_sound": row["video_id"] not in mute, "sound": bytes(6400)}
        Path(file.uri).write_bytes(parquet_bytes([rows], FACES))
    ledger = pq.read_table(of_clips / "ledger.parquet").to_pylist()
    told = [row | {"sound": mute.get(row["video_id"], "ok")} for row in ledger]
    pq.write_table(pa.Table.from_pylist(told), of_clips / "ledger.parquet")
    config = json.loads((best / "config.json").read_text()) | {"model": "av_sync", "transform": transforms.recipe(32, "av_sync")}
    weights = create_model("av_sync").state_dict()
    checkpoint.save(str(tmp_path / "heard"), weights=weights, config=config | {"faces_config": asdict(clips)}, state=None)
    videos = _evaluate(of_clips, tmp_path / "heard", tmp_path / "report")["videos"]
    errors = {v["video_id"]: v["error"] for v in videos if v["score"] is None}
    assert errors == {
        "c/f70.mp4": "its sound track is silent, and the model listens",
        "c/f71.mp4": "no face is there with sound throughout one of its core clips (damaged: Invalid data)",
        "c/f90.mp4": None,
        "c/f91.mp4": "broken",
        "c/r9.mp4": "no face is there with sound throughout one of its core clips",
    }


def test_an_empty_split_is_explained(faces: Path, best: Path, tmp_path: Path) -> None:
    changed = _changed(best, tmp_path / "changed", split="parts:0-9/10/11", train_groups=[])
    with pytest.raises(UserError, match="no labelled video"):
        _evaluate(faces, changed, tmp_path / "report")


def test_the_splits_of_this_file_are_what_it_says() -> None:
    assert assign("parts:0-5/6/7-9", ["a", "b", "c"], [5, 6, 9]) == ["train", "validation", "test"]


def test_an_incomplete_copy_of_the_faces_is_named(faces: Path, best: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(faces, copy)
    (copy / "index.parquet").unlink()
    with pytest.raises(UserError, match=r"index\.parquet is absent"):
        _evaluate(copy, best, tmp_path / "report")


def _validation_scores(monkeypatch: pytest.MonkeyPatch, real: float, fakes: list[float], *, first_frame: float | None = None) -> None:
    """Scores of the faces of part 6, the validation, in place of the model's (which has random weights)."""
    scores = {"c/r6.mp4": real} | {f"c/f6{n}.mp4": score for n, score in enumerate(fakes)}

    def given(_: Any, rows: RowTable, **__: Any) -> np.ndarray:
        of_rows = np.array([scores[name] for name in rows.table["video_id"].cast(pa.string()).to_pylist()])
        fake_first = (rows.column("frame") == 0) & (rows.labels == 1)
        return of_rows if first_frame is None else np.where(fake_first, first_frame, of_rows)

    monkeypatch.setattr(run, "score_rows", given)


def _fitted(folder: Path) -> calibration.Calibration:
    weights = json.loads((folder / "config.json").read_text())["files"]["model.safetensors"]
    fitted = calibration.load(str(folder), weights=weights)
    assert fitted is not None
    return fitted


@pytest.fixture
def checkpointed(best: Path, tmp_path: Path) -> Path:
    """A copy of `best`, to be calibrated."""
    shutil.copytree(best, tmp_path / "best")
    return tmp_path / "best"


def _scores_given(report: dict[str, Any]) -> dict[str, float]:
    return {v["video_id"]: v["raw_score"] for v in report["videos"] if v["score"] is not None}


def test_calibration_is_fitted_on_validation_and_used_from_then_on(
    faces: Path, checkpointed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _evaluate(faces, checkpointed, tmp_path / "before")
    assert before["protocol"]["calibration"].startswith("none")
    assert "| calibrated |" not in (tmp_path / "before" / "report.md").read_text()

    with monkeypatch.context() as patch:
        _validation_scores(patch, 0.2, [0.3, 0.6, 0.9])
        calibrate(CalibrateConfig(faces=str(faces), checkpoint=str(checkpointed)))
    fitted = _fitted(checkpointed)
    assert fitted.rule == "mean"  # all rules say the same of frames that are all the same
    assert (fitted.a, fitted.b) == pytest.approx(calibration.fit(np.array([0.3, 0.6, 0.9, 0.2]), np.array([1, 1, 1, 0])))

    after = _evaluate(faces, checkpointed, tmp_path / "after")
    assert "1 real and 3 fake validation videos" in after["protocol"]["calibration"]
    raw = _scores_given(before)
    assert _scores_given(after) == raw
    found = [v["score"] for v in after["videos"] if v["score"] is not None]
    assert found == pytest.approx(fitted(np.array(list(raw.values()))).tolist(), abs=1e-5)
    assert {v["counted_as"] for v in after["videos"] if v["score"] is None} == {PRIOR}
    assert "| calibrated |" in (tmp_path / "after" / "report.md").read_text()

    assert fitted.frames == FRAMES
    assert not [warning for warning in after["warnings"] if "calibration is of" in warning]
    calibration.save(str(checkpointed), replace(fitted, frames=1))  # as of crops, one a video
    warnings = _evaluate(faces, checkpointed, tmp_path / "of one")["warnings"]
    assert any(f"the calibration is of 1 frames a video, and here are {FRAMES}" in warning for warning in warnings)


def test_the_rule_that_fits_validation_best_is_kept_and_used(
    faces: Path, checkpointed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fakes that show it in one frame of four, and the less the more their other frames do: only the highest frame tells them."""
    before = _evaluate(faces, checkpointed, tmp_path / "before")
    with monkeypatch.context() as patch:
        _validation_scores(patch, 0.5, [0.2, 0.3, 0.4], first_frame=0.9)
        calibrate(CalibrateConfig(faces=str(faces), checkpoint=str(checkpointed)))
    assert _fitted(checkpointed).rule == "max"
    losses = dict(re.findall(r"│ (\w+) +│ +([\d.]+|-) │", capsys.readouterr().out))
    assert list(losses) == list(RULES)
    assert losses["mean"] == "-"  # by which reals look more like fakes
    assert losses["max"] == losses["top_quarter"]  # of four frames

    after = _evaluate(faces, checkpointed, tmp_path / "after")
    assert after["rule"] == "max"
    assert after["rules"] == before["rules"]  # all of them, as the model gives them
    assert after["protocol"]["aggregation"].startswith("video: highest over the frames of a track")
    assert "| max (in use) |" in (tmp_path / "after" / "report.md").read_text()
    mean, highest = map(_scores_given, (before, after))
    assert all(highest[name] > mean[name] for name in mean)


def test_a_model_that_ranks_validation_the_wrong_way_is_not_calibrated(
    faces: Path, checkpointed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _validation_scores(monkeypatch, 0.9, [0.1, 0.2, 0.3])
    with pytest.raises(UserError, match="nothing to calibrate"):
        calibrate(CalibrateConfig(faces=str(faces), checkpoint=str(checkpointed)))
    assert not (checkpointed / calibration.FILE).exists()


def test_nothing_is_fitted_to_groups_that_the_checkpoint_does_not_know_of(
    faces: Path, best: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`evaluate --split all` would take what calibration had seen for new."""
    of_others = {"train_groups": ["d/part:0"], "split": "parts:0-5/6-7/8-9"}
    stranger = _changed(best, tmp_path / "stranger", **of_others, validation_groups=["d/part:6"], versions={})
    command = CalibrateConfig(faces=str(faces), checkpoint=str(stranger))
    with pytest.raises(UserError, match=r"No validation video of .* chosen by: give the --faces of its training"):
        calibrate(command)
    with pytest.raises(UserError, match="chosen by: give the --faces"):
        combine(CombineConfig(checkpoint=(str(stranger),) * 2, out=str(tmp_path / "both"), faces=str(faces), by="logistic"))
    assert _evaluate(faces, stranger, tmp_path / "report", split="all")["video"]["metrics"]["n"] == 40

    half = _changed(best, tmp_path / "half", **of_others, validation_groups=["c/part:6"])
    with monkeypatch.context() as patch:
        _validation_scores(patch, 0.2, [0.3, 0.6, 0.9])
        calibrate(CalibrateConfig(faces=str(faces), checkpoint=str(half)))
    assert (_fitted(half).reals, _fitted(half).fakes) == (1, 3)
    with pytest.raises(UserError, match=r"chosen by \(c/part:6\)"):
        _evaluate(faces, half, tmp_path / "report", split="all")


def test_robustness_judges_the_same_videos_after_each_change(
    faces: Path, best: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"nothing": lambda picture: picture, "black": torch.zeros_like}
    monkeypatch.setattr(run, "CHANGES", changes)
    report = _evaluate(faces, best, tmp_path / "report", robustness=True)
    nothing, black = report["robustness"]
    assert (nothing["change"], black["change"]) == ("nothing", "black")
    assert nothing["video"] == report["video"]["metrics"]
    assert nothing["frame"] == report["frame"]["metrics"]
    assert black["frame"]["auc"] == 0.5  # every face is the same
    assert black["video"]["n"] == report["video"]["metrics"]["n"]
    assert "| black | " in (tmp_path / "report" / "report.md").read_text()


def test_near_duplicates_of_training_are_looked_for_on_request(faces: Path, best: Path, tmp_path: Path) -> None:
    trained_here = _changed(best, tmp_path / "best", data_hash=read_manifest(str(faces)).data_hash)
    report = _evaluate(faces, trained_here, tmp_path / "report", training_faces=str(faces), cache=str(tmp_path / "cache"))
    judged = _evaluate(faces, trained_here, tmp_path / "again", cache=str(tmp_path / "cache of the judged"))
    assert judged["near_duplicates"] is None
    assert len(list((tmp_path / "cache").iterdir())) > len(list((tmp_path / "cache of the judged").iterdir()))  # training's shards too
    assert report["near_duplicates"] == []  # noise is like no other noise
    assert "0 of the 9 videos with a face are within 4 of 64 bits" in (tmp_path / "report" / "report.md").read_text()
    several = _changed(trained_here, tmp_path / "several", data_hash=f"{read_manifest(str(faces)).data_hash}; {'1' * 64}")
    of_one = _evaluate(faces, several, tmp_path / "of one", training_faces=str(faces))
    assert [warning for warning in of_one["warnings"] if "(111111111111), which were not looked at" in warning]
    with pytest.raises(UserError, match="give the --faces of its training"):
        _evaluate(faces, best, tmp_path / "other", training_faces=str(faces))
    with pytest.raises(UserError, match="what was trained on"):
        _evaluate(faces, trained_here, tmp_path / "other", training_faces=str(faces), split="train")


def test_faces_are_sliced_by_how_they_look(report_of_test: Path) -> None:
    videos = json.loads((report_of_test / "report.json").read_text())["videos"]
    assert all((v["lightness"] is None) == (v["score"] is None) for v in videos)
    light = [v["lightness"] for v in videos if v["lightness"] is not None]
    assert 40 < min(light) <= max(light) < 70  # noise of all colours
    text = (report_of_test / "report.md").read_text()
    assert "## By lightness of the face" in text
    assert "## By skin tone" in text


@pytest.mark.drawn
def test_a_split_in_which_no_video_has_a_face(faces: Path, best: Path, tmp_path: Path) -> None:
    copy = tmp_path / "faces"
    shutil.copytree(faces, copy)
    ledger = [row | {"status": "no_face", "core_decoded": 0} for row in pq.read_table(copy / "ledger.parquet").to_pylist()]
    pq.write_table(pa.Table.from_pylist(ledger, schema=receipts.LEDGER), copy / "ledger.parquet")
    content = json.loads((copy / "manifest.json").read_text())
    only = [file for file in content["files"] if {row["part"] for row in pq.read_table(copy / file["path"]).to_pylist()} <= set(range(6))]
    (copy / "manifest.json").write_text(json.dumps(content | {"files": only}))
    config = json.loads((best / "config.json").read_text()) | {"validation_groups": ["c/part:6"], "versions": {}}
    checkpoint.save(str(tmp_path / "a"), weights=checkpoint.load(str(best)).weights, config=config, state=None)
    with pytest.raises(UserError, match="has a face"):
        combine(CombineConfig(checkpoint=(str(tmp_path / "a"),) * 2, out=str(tmp_path / "b"), faces=str(copy), by="logistic"))
    report = _evaluate(copy, best, tmp_path / "report")
    assert report["protocol"]["videos_scored"] == 0
    assert report["frame"]["metrics"]["n"] == 0
    assert report["video"]["metrics"]["n"] == 12
