"""Each model beats chance on the kind of fake that it is made for, on people whom it has not seen; `mfcc_lstm` does not yet.

The faces are the generated corpus's, cut where they were drawn: no encoding and no detector, which other tests are about. `make test-long`
trains all but `chroma`, each for a minute or so on one core.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import write_manifest
from scipy.stats import mannwhitneyu

from dfdc_ray.config import Objective, TrainConfig
from dfdc_ray.demo.config import DrawnFakes
from dfdc_ray.demo.corpus import Family, Footage, film, plan_corpus
from dfdc_ray.demo.identity import CENTRE
from dfdc_ray.demo.scene import FPS
from dfdc_ray.evaluate.scorer import load_scorer, score_rows
from dfdc_ray.models import NAMES, only_side, takes_clips, takes_sound
from dfdc_ray.shards.manifest import read_manifest
from dfdc_ray.shards.rows import samples_of, split_mask
from dfdc_ray.shards.schema import FACES
from dfdc_ray.shards.write import parquet_bytes
from dfdc_ray.train.loop import train_loop
from dfdc_ray.train.plan import prepare
from dfdc_ray.video.sound import RATE, WINDOW

VALIDATION, TEST = 2, 10  # families, of two persons each, with one real video and two fakes
TRAIN: dict[DrawnFakes, int] = {"swap": 14, "colour": 14, "sound": 32}  # the streams of av_sync learn from reals alone
FRAMES: dict[DrawnFakes, int] = {"swap": 8, "colour": 8, "sound": 16}  # of a clip; what is said takes longer
CHANCE = 0.01  # how seldom scores that say nothing would part the two so well
STRIDE = 2  # frames of a clip are every second one
SIDE = 96  # pixels of a stored face


@dataclass(frozen=True)
class Way:
    """How a model is trained here. epochs: passes over the clips, or over their frames."""

    epochs: int
    fakes: DrawnFakes = "swap"
    objective: Objective = "bce"
    weights: str = "none"
    side: int = 64
    batch: int = 8
    rate: float = 1e-3
    slow: bool = True


WAYS = {
    "efficientnet_lite0": Way(epochs=2, weights="imagenet", batch=16),
    "meso4": Way(epochs=8, objective="l2", batch=16),
    "mesoinception4": Way(epochs=8, objective="l2", batch=16),
    "framediff_only": Way(epochs=6),
    "chroma": Way(epochs=20, fakes="colour", rate=3e-3, slow=False),
    "av_sync": Way(epochs=12, fakes="sound", objective="sync"),
}
OF_FRAMES, OF_CLIPS = Way(epochs=4, batch=16), Way(epochs=10)


def split_of(fakes: DrawnFakes) -> str:
    ends = (TRAIN[fakes], TRAIN[fakes] + VALIDATION, TRAIN[fakes] + VALIDATION + TEST)
    return "parts:" + "/".join(f"{first}-{end - 1}" for first, end in zip((0, *ends), ends, strict=False))


def draw(folder: Path, fakes: DrawnFakes) -> str:
    """A faces folder with a clip of each video."""
    frames = FRAMES[fakes]
    (folder / "faces").mkdir(parents=True)
    families = plan_corpus(families=2 * (TRAIN[fakes] + VALIDATION + TEST), seed=7, test_families=0, fakes=fakes)[::2]
    seconds = frames * STRIDE / FPS
    files, ledger = [], []
    for part, family in enumerate(families):
        videos = []
        for footage in film(replace(family, videos=family.videos[:3]), seed=7, seconds=seconds):
            ids = identify(family, footage, part)
            videos.append([ids | face_row(footage, n, position) for position, n in enumerate(range(0, frames * STRIDE, STRIDE))])
            ledger.append(ids | {"status": "ok", "generation": 0, "faces": frames})
        data = parquet_bytes(videos, FACES)
        path = f"faces/{part:03d}.parquet"
        (folder / path).write_bytes(data)
        files.append({"path": path, "rows": sum(map(len, videos)), "sha256": hashlib.sha256(data).hexdigest()})
    pq.write_table(pa.Table.from_pylist(ledger), folder / "ledger.parquet")
    write_manifest(folder, files, {"frames": frames, "sampling": "clips"})
    return str(folder)


def identify(family: Family, footage: Footage, part: int) -> dict[str, object]:
    return {
        "corpus": "drawn",
        "video_id": f"drawn/{footage.video.name}",
        "family_id": f"drawn/{family.videos[0].name}",
        "group_id": f"drawn/part:{part}",
        "part": part,
        "label": "FAKE" if footage.video.original else "REAL",
        "method": footage.video.method,
    }


def face_row(footage: Footage, n: int, position: int) -> dict[str, object]:
    """Frame n, cut to a square of twice the face's half-height about the face in the clip's middle, as `preprocess` keeps one rectangle."""
    scene = footage.scene
    matrix = scene.matrices[len(scene.matrices) // 2]
    x, y = matrix @ (*CENTRE, 1)
    half = 1.2 * float(np.hypot(*matrix[:, 0])) * scene.identity.half_height
    picture = cv2.cvtColor(footage.frames[n], cv2.COLOR_YUV2BGR_I420)
    face = cv2.warpAffine(picture, np.array(((1, 0, half - x), (0, 1, half - y))) * SIDE / (2 * half), (SIDE, SIDE), flags=cv2.INTER_AREA)
    at = round(n / FPS * RATE)
    sound = np.pad(footage.sound, WINDOW // 2)[at : at + WINDOW]
    return {
        "frame": n,
        "pts": n,
        "time_s": n / FPS,
        "track_id": 0,
        "clip_id": 0,
        "clip_position": position,
        "core": True,
        "image": {"bytes": cv2.imencode(".jpg", face, (cv2.IMWRITE_JPEG_QUALITY, 95))[1].tobytes(), "path": f"{n}.jpg"},
        "has_sound": True,
        "sound": (np.pad(sound, (0, WINDOW - len(sound))) * 32767).astype("<i2").tobytes(),
    }


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> dict[DrawnFakes, str]:
    """Folders by kind of fake, filled by `of` as they are wanted."""
    return {}


@pytest.fixture
def folder(request: pytest.FixtureRequest, faces: dict[DrawnFakes, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    fakes = way_of(request.getfixturevalue("name")).fakes
    if fakes not in faces:
        faces[fakes] = draw(tmp_path_factory.mktemp(fakes), fakes)
    return faces[fakes]


def way_of(name: str) -> Way:
    return WAYS.get(name, OF_CLIPS if takes_clips(name) else OF_FRAMES)


# mfcc_lstm learns lips and sound only where nothing else is drawn: test_audiovisual.py, docs/models.md.
HERE = [pytest.param(name, marks=[pytest.mark.slow] if way_of(name).slow else []) for name in NAMES if name != "mfcc_lstm"]


@pytest.mark.parametrize("name", HERE)
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")  # torchvision's own v2.JPEG
def test_beats_chance(name: str, folder: str, tmp_path: Path) -> None:
    way = way_of(name)
    config = TrainConfig(
        faces=folder,
        out=str(tmp_path / "out"),
        split=split_of(way.fakes),
        model=name,
        weights=way.weights,
        objective=way.objective,
        balance="sample",
        epochs=way.epochs,
        batch_size=way.batch,
        learning_rate=way.rate,
        image_size=only_side(name) or way.side,
    )
    train_loop(config, prepare(config))
    rows = samples_of(read_manifest(folder), clips=takes_clips(name), sound=takes_sound(name))
    rows = rows.take(split_mask(rows, split_of(way.fakes), "test"))
    scores = score_rows(load_scorer(f"{config.out}/best"), rows, batch_size=16)
    video = np.unique(rows.videos, return_inverse=True)[1]
    means = np.bincount(video, weights=scores) / np.bincount(video)
    fake = np.bincount(video, weights=rows.labels) > 0
    assert (sum(~fake), sum(fake)) == (TEST, 2 * TEST)
    found = mannwhitneyu(means[fake], means[~fake], alternative="greater")
    print(f"{name}: video AUC {found.statistic / TEST / (2 * TEST):.3f}")
    assert found.pvalue < CHANCE
