"""The generated corpus: its form, that it repeats, and that nothing simpler than the pictures tells fake from real."""

import csv
import io
import json
import zipfile
from pathlib import Path
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dfdc_ray.demo.config import DemoCorpusConfig
from dfdc_ray.demo.corpus import (
    COLOUR_FAKE,
    DEMO_SPLIT,
    FAKES,
    SOUND_FAKES,
    SPARE,
    Footage,
    demo_corpus,
    demo_split,
    film,
    identity,
    other_sound,
    plan_corpus,
    write_corpus,
)
from dfdc_ray.demo.encode import encode_mp4
from dfdc_ray.demo.identity import CENTRE, stream
from dfdc_ray.demo.scene import FPS, HEIGHT, WIDTH
from dfdc_ray.demo.voice import speak
from dfdc_ray.errors import UserError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("corpus")
    write_corpus(out, families=3, seed=7, seconds=0.32, test_families=1, workers=2)
    return out


def read_zip(path: Path) -> tuple[dict[str, dict], dict[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        (folder,) = {name.split("/")[0] for name in archive.namelist()}
        metadata = json.loads(archive.read(f"{folder}/metadata.json"))
        videos = {name.split("/")[1]: archive.read(name) for name in archive.namelist() if name.endswith(".mp4")}
    return metadata, videos


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_form_is_dfdcs(corpus: Path) -> None:
    zips = sorted(corpus.glob("*.zip"))
    assert [path.name for path in zips] == ["dfdc_train_part_00.zip", "dfdc_train_part_01.zip"]
    groups = dict(list(csv.reader((corpus / "groups.csv").open()))[1:])
    part_of_group: dict[str, int] = {}
    for part, path in enumerate(zips):
        metadata, videos = read_zip(path)
        assert zipfile.ZipFile(path).namelist()[0].startswith(f"dfdc_train_part_{part}/")
        assert set(metadata) == set(videos)
        reals = {name for name, entry in metadata.items() if entry["label"] == "REAL"}
        assert len(reals) == (2, 1)[part]
        for name, entry in metadata.items():
            assert len(name) == 14
            assert name[:10].isalpha()
            assert name[:10].islower()
            assert entry["split"] == "train"
            assert entry["original"] is None if name in reals else entry["original"] in reals
            assert part_of_group.setdefault(groups[name], part) == part
        assert len(metadata) == len(reals) * (1 + FAKES)
    assert len(part_of_group) == 2
    truth = list(csv.DictReader((corpus / "test_truth.csv").open()))
    assert sorted(row["label"] for row in truth) == ["0", "1"]
    assert {row["filename"] for row in truth} == {path.name for path in (corpus / "test_videos").iterdir()}
    assert not {row["filename"] for row in truth} & set(groups)
    assert "GENERATED" in (corpus / "README.txt").read_text()


def test_videos_are_h264_with_b_frames_one_gop_and_aac(corpus: Path) -> None:
    metadata, videos = read_zip(corpus / "dfdc_train_part_00.zip")
    for data in videos.values():
        with av.open(io.BytesIO(data)) as container:
            video, audio = container.streams.video[0], container.streams.audio[0]
            assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
            assert (video.width, video.height, video.average_rate, video.pix_fmt) == (WIDTH, HEIGHT, FPS, "yuv420p")
            frames = list(container.decode(video=0))
            assert len(frames) == round(0.32 * FPS)
            assert sum(frame.key_frame for frame in frames) == 1
            assert any(frame.pict_type == av.video.frame.PictureType.B for frame in frames)
    assert len(metadata) == len(videos)


def test_same_seed_gives_the_same_files_with_any_number_of_processes(corpus: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path / "again", families=3, seed=7, seconds=0.32, test_families=1, workers=1)
    assert files(tmp_path / "again") == files(corpus)


def test_another_seed_gives_other_frames() -> None:
    plans = [plan_corpus(families=1, seed=seed, test_families=0)[0] for seed in (0, 1)]
    first, second = (next(film(family, seed=seed, seconds=0.1)) for seed, family in enumerate(plans))
    assert first.video.name != second.video.name
    assert not np.array_equal(first.frames[0], second.frames[0])


def test_finished_corpus_stays_and_anything_else_is_refused(corpus: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}
    write_corpus(corpus, families=3, seed=7, seconds=0.32, test_families=1)
    assert {path: path.stat().st_mtime_ns for path in corpus.rglob("*")} == before
    with pytest.raises(UserError, match="seed 7 there, 8 wanted"):
        write_corpus(corpus, families=3, seed=8, seconds=0.32, test_families=1)
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(UserError, match="not empty"):
        demo_corpus(DemoCorpusConfig(out=str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_corpus_of_other_fakes_is_refused_by_name(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"generated corpus \(fakes swap there, sound wanted, version 1 there, 2 wanted\)"):
        write_corpus(corpus, families=3, seed=7, seconds=0.32, test_families=1, fakes="sound")
    marker = json.loads((corpus / "corpus.json").read_text())
    (tmp_path / "corpus.json").write_text(json.dumps(marker | {"version": 2, "fakes": "sound"}))
    with pytest.raises(UserError, match=r"generated corpus \(fakes sound there, swap wanted, version 2 there, 1 wanted\)"):
        write_corpus(tmp_path, families=3, seed=7, seconds=0.32, test_families=1)


def test_interrupted_run_is_begun_again(tmp_path: Path) -> None:
    (tmp_path / ".partial" / "videos").mkdir(parents=True)
    (tmp_path / ".partial" / "videos" / "half.mp4").write_bytes(b"x")
    write_corpus(tmp_path, families=1, seed=0, seconds=0.1, test_families=0, workers=1)
    assert not (tmp_path / ".partial").exists()
    assert (tmp_path / "corpus.json").exists()


@pytest.mark.parametrize(("families", "rule"), [(5, "parts:0/1/2"), (8, "parts:0-1/2/3"), (48, "parts:0-4/5/6-7")])
def test_split_rule_covers_all_parts(families: int, rule: str) -> None:
    assert demo_split(families) == rule
    plan = plan_corpus(families=families, seed=0, test_families=0)
    last = int(rule.replace("/", "-").split("-")[-1])
    assert {family.part for family in plan} == set(range(last + 1))


def test_default_split_tests_at_least_12_unseen_identities() -> None:
    first, last = (int(part) for part in DEMO_SPLIT.split("/")[2].split("-"))
    plan = plan_corpus(families=DemoCorpusConfig.families, seed=0, test_families=0)
    assert sum(first <= family.part <= last for family in plan if family.part is not None) >= 12


def test_too_small_to_split_or_to_make() -> None:
    with pytest.raises(UserError, match="too few"):
        demo_split(4)
    with pytest.raises(UserError, match="families >= 1"):
        write_corpus("unused", families=0, seed=0)


def head_box(footage: Footage, n: int) -> tuple[float, float, float, float]:
    """Centre and half-axes of the face in frame n."""
    matrix, identity = footage.scene.matrices[n], footage.scene.identity
    x, y = matrix @ (*CENTRE, 1)
    scale = float(np.hypot(*matrix[:, 0]))
    return x, y, scale * identity.half_width, scale * identity.half_height


def rgb(footage: Footage, n: int) -> np.ndarray:
    return cv2.cvtColor(footage.frames[n], cv2.COLOR_YUV2RGB_I420)


def test_fakes_differ_from_their_original_in_the_face_and_nowhere_else() -> None:
    """Delivery changes brightness, so the frames correlate outside the face, and less so inside."""
    (family,) = plan_corpus(families=1, seed=3, test_families=0)
    original, *fakes = film(family, seed=3, seconds=0.24)
    x, y, w, h = head_box(original, 5)
    ys, xs = np.mgrid[:HEIGHT, :WIDTH]
    outside = ((xs - x) / (1.1 * w)) ** 2 + ((ys - y) / (1.1 * h)) ** 2 > 1
    inside = ((xs - x) / (0.5 * w)) ** 2 + ((ys - y) / (0.5 * h)) ** 2 < 1
    real = rgb(original, 5).mean(2)
    assert len(fakes) == FAKES
    for fake in fakes:
        assert len(fake.frames) == len(original.frames)
        other = rgb(fake, 5).mean(2)
        assert np.corrcoef(real[outside], other[outside])[0, 1] > 0.99
        assert np.corrcoef(real[inside], other[inside])[0, 1] < 0.95


def test_sound_fakes_keep_the_picture_and_change_the_sound() -> None:
    (family,) = plan_corpus(families=1, seed=3, test_families=0, fakes="sound")
    original, *fakes = film(family, seed=3, seconds=1.0)
    assert [fake.video.method for fake in fakes] == [*SOUND_FAKES, *SOUND_FAKES]
    assert np.array_equal(original.sound, original.scene.voice.sound)
    for fake in fakes:
        assert fake.sound.shape == original.sound.shape
        assert np.corrcoef(rgb(original, 5).ravel(), rgb(fake, 5).ravel())[0, 1] > 0.99
        assert abs(np.corrcoef(fake.sound, original.sound)[0, 1]) < 0.3
        same_words = fake.sound.tobytes() in original.scene.spoken.sound.tobytes()
        assert same_words == (fake.video.method == SOUND_FAKES[0])


def test_colour_fakes_have_patches_that_move_where_the_lamp_s_colour_moves_everywhere() -> None:
    (family,) = plan_corpus(families=1, seed=3, test_families=0, fakes="colour")
    original, *fakes = film(family, seed=3, seconds=1.0)
    assert [fake.video.method for fake in fakes] == [COLOUR_FAKE] * FAKES
    x, y, w, h = (int(v) for v in head_box(original, 5))
    inner, beside = np.s_[y - h // 4 : y + h // 4, x - w // 4 : x + w // 4], np.s_[:, : x - 2 * w]

    def redness(footage: Footage, place: tuple[slice, slice]) -> np.ndarray:
        """Log of red over blue, [frames, H / 8, W / 8]."""
        small = [cv2.resize(rgb(footage, n)[place], None, fx=1 / 8, fy=1 / 8, interpolation=cv2.INTER_AREA) for n in range(0, 25, 3)]
        return np.array([np.log((p[..., 0] + 5.0) / (p[..., 2] + 5.0)) for p in small])

    def apart(footage: Footage) -> float:
        """How much places of the face change otherwise than all of it."""
        change = redness(footage, inner)
        change = change - change.mean(0)
        return float((change - change.mean((1, 2), keepdims=True)).std())

    assert redness(original, beside).mean((1, 2)).std() > 0.05  # the lamp
    for fake in fakes:
        assert np.corrcoef(redness(fake, beside).mean((1, 2)), redness(original, beside).mean((1, 2)))[0, 1] > 0.99  # delivery's grading
        assert apart(fake) > 2 * apart(original)


def test_sound_alone_does_not_tell_a_shift() -> None:
    """Nothing begins or ends more abruptly in shifted sound: as the largest change of loudness within 10 ms."""
    real, fake, rolled = [], [], []
    for family in plan_corpus(families=30, seed=0, test_families=0, fakes="sound"):
        i = identity(0, family.index)
        spoken = speak(stream(0, "voice", str(family.index)), seconds=1 + 2 * SPARE, pitch_hz=i.pitch_hz, formant_scale=i.formant_scale)
        shifted = other_sound(family.videos[1], SimpleNamespace(identity=i, spoken=spoken), seed=0, seconds=1.0)  # type: ignore[arg-type]
        real.append(abruptness(spoken.cut(SPARE, 1.0).sound))
        fake.append(abruptness(shifted))
        rolled.append(abruptness(np.roll(spoken.cut(0.0, 1.0).sound, 6000)))
    assert roc_auc_score([0] * 30 + [1] * 30, real + rolled) > 0.8  # a first word that comes after a cut one is heard
    assert 0.35 < roc_auc_score([0] * 30 + [1] * 30, real + fake) < 0.65


def abruptness(sound: np.ndarray) -> float:
    """Of the logarithm of the energy in steps of 5 ms, the largest change over two of them."""
    energy = np.log((sound[: len(sound) // 80 * 80].reshape(-1, 80) ** 2).mean(1) + 1e-6)
    return float(np.abs(energy[2:] - energy[:-2]).max())


def cheap_features(footage: Footage) -> list[float]:
    """Bits per second, mean colour of frame and face, sharpness of frame and face: what must not tell fake from real."""
    data = encode_mp4(footage.frames, footage.sound, crf=footage.crf)
    rows = []
    with av.open(io.BytesIO(data)) as container:
        for n, frame in enumerate(container.decode(video=0)):
            if n % 5:
                continue
            picture = frame.to_ndarray(format="rgb24")
            x, y, w, h = head_box(footage, n)
            face = picture[max(0, int(y - h)) : int(y + h), max(0, int(x - w)) : int(x + w)]
            sharpness = [np.log(cv2.Laplacian(cv2.cvtColor(p, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var()) for p in (picture, face)]
            rows.append([*picture.mean((0, 1)), *face.mean((0, 1)), *sharpness])
    return [np.log(len(data) / (len(footage.frames) / FPS)), *np.mean(rows, axis=0)]


def shortcut_auc(families: int, seed: int, seconds: float) -> float:
    """Grouped cross-validated AUC of a logistic regression on the cheap features."""
    features, labels, groups = [], [], []
    for family in plan_corpus(families=families, seed=seed, test_families=0):
        for footage in film(family, seed=seed, seconds=seconds):
            features.append(cheap_features(footage))
            labels.append(footage.video.original is not None)
            groups.append(family.group)
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
    folds = GroupKFold(min(8, families // 2))
    scores = cross_val_predict(model, features, labels, groups=groups, cv=folds, method="predict_proba")[:, 1]
    return float(roc_auc_score(labels, scores))


@pytest.mark.slow
def test_no_shortcut() -> None:
    """Issue's promise on the whole default corpus: bit rate, mean colour and sharpness alone stay under AUC 0.7, either way round."""
    auc = shortcut_auc(DemoCorpusConfig.families, 0, 1.0)
    assert max(auc, 1 - auc) < 0.7, auc
