"""Each model, and siamese, cutmix and stabilised training, beats chance on the kind of fake that it is made for, on people not seen before.

The faces are the generated corpus's, cut where they were drawn: no encoding and no detector, which other tests are about. So that half a
minute on one core is enough for each from scratch (Lite0 begins with ImageNet's weights), swapped faces are their middle in the video's own
pixels, and the pattern that swaps leave on them is drawn stronger than in the corpus.
"""

import hashlib
from collections.abc import Callable, Iterator
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
from dfdc_ray.demo import corpus
from dfdc_ray.demo.config import DrawnFakes
from dfdc_ray.demo.corpus import Family, Footage, film, plan_corpus
from dfdc_ray.demo.identity import CENTRE
from dfdc_ray.demo.scene import FPS
from dfdc_ray.demo.swap import Traces, make_traces
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
CLIPS: dict[DrawnFakes, int] = {"swap": 4, "colour": 1, "sound": 1}  # of a video
FRAMES: dict[DrawnFakes, int] = {"swap": 2, "colour": 8, "sound": 16}  # of a clip; what is said takes longer
CHANCE = 0.01  # how seldom scores that say nothing would part the two so well
STRIDE = 2  # frames of a clip are every second one
PLAINER = 2.5  # times the strength of the pattern that a swap leaves
MIDDLE = 48  # pixels of a swapped face that are kept, as they were drawn
WHOLE = 96  # pixels to which any other face is shrunk


@dataclass(frozen=True)
class Way:
    """How a model is trained here. epochs: passes over the clips, or over their frames. model: unset, what the way is called."""

    model: str = ""
    epochs: int = 1
    fakes: DrawnFakes = "swap"
    objective: Objective = "bce"
    cutmix: float = 0.0
    stabilise: bool = False
    weights: str = "none"
    side: int = MIDDLE
    batch: int = 8
    rate: float = 1e-3


WAYS = {
    "efficientnet_lite0": Way(weights="imagenet"),
    "meso4": Way(epochs=3, objective="l2", batch=2),
    "mesoinception4": Way(objective="l2", batch=2),
    "efficientnet_b4": Way(batch=4, rate=3e-3),
    "efficientnet_b4_attention": Way(batch=4, rate=3e-3),
    "r3d_18": Way(epochs=2),
    "r2plus1d_18": Way(epochs=2, rate=2e-3),
    "framediff_frames": Way(epochs=2),
    "chroma": Way(epochs=20, fakes="colour", rate=3e-3, side=64),
    "mfcc_lstm": Way(epochs=20, fakes="sound", rate=4e-3, side=80),
    "av_sync": Way(epochs=8, fakes="sound", objective="sync", side=64),
    "siamese": Way(model="efficientnet_lite0", objective="triplet", weights="imagenet"),
    "cutmix": Way(model="efficientnet_lite0", cutmix=0.5, weights="imagenet"),
    "stabilised": Way(model="framediff_only", stabilise=True),
}


def split_of(fakes: DrawnFakes) -> str:
    ends = (TRAIN[fakes], TRAIN[fakes] + VALIDATION, TRAIN[fakes] + VALIDATION + TEST)
    return "parts:" + "/".join(f"{first}-{end - 1}" for first, end in zip((0, *ends), ends, strict=False))


def plainer(rng: np.random.Generator) -> Traces:
    traces = make_traces(rng)
    return replace(traces, grid=PLAINER * traces.grid)


def draw(folder: Path, fakes: DrawnFakes) -> str:
    """A faces folder with the clips of each video."""
    taken = CLIPS[fakes] * FRAMES[fakes]
    (folder / "faces").mkdir(parents=True)
    families = plan_corpus(families=2 * (TRAIN[fakes] + VALIDATION + TEST), seed=7, test_families=0, fakes=fakes)[::2]
    seconds = taken * STRIDE / FPS
    files, ledger = [], []
    for part, family in enumerate(families):
        videos = []
        for footage in film(replace(family, videos=family.videos[:3]), seed=7, seconds=seconds):
            ids = identify(family, footage, part)
            videos.append([ids | face_row(footage, n, fakes) for n in range(taken)])
            ledger.append(ids | {"status": "ok", "generation": 0, "faces": taken})
        data = parquet_bytes(videos, FACES)
        path = f"faces/{part:03d}.parquet"
        (folder / path).write_bytes(data)
        files.append({"path": path, "rows": sum(map(len, videos)), "sha256": hashlib.sha256(data).hexdigest()})
    pq.write_table(pa.Table.from_pylist(ledger), folder / "ledger.parquet")
    write_manifest(folder, files, {"frames": FRAMES[fakes], "sampling": "clips"})
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


def face_row(footage: Footage, place: int, fakes: DrawnFakes) -> dict[str, object]:
    """One of the frames that are taken, cut to a square where the face is in its clip's middle, as `preprocess` keeps one rectangle."""
    scene, n, frames = footage.scene, STRIDE * place, FRAMES[fakes]
    clip, position = divmod(place, frames)
    matrix = scene.matrices[STRIDE * (clip * frames + frames // 2)]
    x, y = matrix @ (*CENTRE, 1)
    if fakes == "swap":
        side, covered = MIDDLE, float(MIDDLE)
    else:
        side, covered = WHOLE, 2.4 * float(np.hypot(*matrix[:, 0])) * scene.identity.half_height
    picture = cv2.cvtColor(footage.frames[n], cv2.COLOR_YUV2BGR_I420)
    corner = np.array(((1, 0, covered / 2 - x), (0, 1, covered / 2 - y)))
    face = cv2.warpAffine(picture, corner * side / covered, (side, side), flags=cv2.INTER_AREA)
    at = round(n / FPS * RATE)
    sound = np.pad(footage.sound, WINDOW // 2)[at : at + WINDOW]
    return {
        "frame": n,
        "pts": n,
        "time_s": n / FPS,
        "track_id": 0,
        "clip_id": clip,
        "clip_position": position,
        "core": True,
        "image": {"bytes": cv2.imencode(".jpg", face, (cv2.IMWRITE_JPEG_QUALITY, 95))[1].tobytes(), "path": f"{n}.jpg"},
        "has_sound": True,
        "sound": (np.pad(sound, (0, WINDOW - len(sound))) * 32767).astype("<i2").tobytes(),
    }


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[DrawnFakes], str]]:
    """The faces folder of a kind of fake, drawn when it is first wanted."""
    folders: dict[DrawnFakes, str] = {}

    def of(fakes: DrawnFakes) -> str:
        if fakes not in folders:
            folders[fakes] = draw(tmp_path_factory.mktemp(fakes), fakes)
        return folders[fakes]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "make_traces", plainer)
        yield of


@pytest.mark.parametrize("way", dict.fromkeys((*NAMES, *WAYS)))
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")  # torchvision's own v2.JPEG
def test_beats_chance(way: str, drawn: Callable[[DrawnFakes], str], tmp_path: Path) -> None:
    how = WAYS.get(way, Way())
    name, folder = how.model or way, drawn(how.fakes)
    config = TrainConfig(
        faces=folder,
        out=str(tmp_path / "out"),
        split=split_of(how.fakes),
        model=name,
        weights=how.weights,
        objective=how.objective,
        cutmix=how.cutmix,
        stabilise=how.stabilise,
        balance="sample",
        epochs=how.epochs,
        batch_size=how.batch,
        learning_rate=how.rate,
        image_size=only_side(name) or how.side,
    )
    train_loop(config, prepare(config))
    rows = samples_of(read_manifest(folder), clips=takes_clips(name), sound=takes_sound(name))
    rows = rows.take(split_mask(rows, split_of(how.fakes), "test"))
    scores = score_rows(load_scorer(f"{config.out}/best"), rows, batch_size=16)
    video = np.unique(rows.videos, return_inverse=True)[1]
    means = np.bincount(video, weights=scores) / np.bincount(video)
    fake = np.bincount(video, weights=rows.labels) > 0
    assert (sum(~fake), sum(fake)) == (TEST, 2 * TEST)
    found = mannwhitneyu(means[fake], means[~fake], alternative="greater")
    print(f"{way}: video AUC {found.statistic / TEST / (2 * TEST):.3f}")
    assert found.pvalue < CHANCE
