"""Small preprocess outputs made by the tests themselves: coloured noise with FACES rows, ledger.parquet and manifest.json."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dfdc_ray import storage
from dfdc_ray.config import ImportConfig, PreprocessConfig
from dfdc_ray.shards import packed
from dfdc_ray.shards.format import FORMAT_VERSION
from dfdc_ray.shards.manifest import read_manifest
from dfdc_ray.shards.pack import plan
from dfdc_ray.shards.schema import FACES
from dfdc_ray.shards.write import parquet_bytes
from dfdc_ray.video.sound import WINDOW

# Mean RGB: the two classes can be told apart by it, through any augmentation.
_COLOURS = {"REAL": (170, 90, 90), "FAKE": (90, 90, 170)}


def upload(folder: Path, uri: str) -> None:
    """Copy a folder's files."""
    for path in folder.rglob("*"):
        if path.is_file():
            storage.write_bytes(storage.join(uri, str(path.relative_to(folder))), path.read_bytes())


def preprocess_command(corpus: Path | str, out: Path | str, *more: str) -> list[str]:
    """The command line of a preprocessing run with few frames; the fixture `undisturbed` is what it makes of `small_corpus`."""
    return [sys.executable, "-m", "dfdc_ray.cli", "preprocess", "--corpus", str(corpus), "--out", str(out), "--frames", "2", *more]


def preprocess_here(config: PreprocessConfig) -> None:
    """What `preprocess` makes, without Ray, in this process; for a folder in which nothing is done yet."""
    from dfdc_ray.corpus.index import build_index
    from dfdc_ray.faces.detect import load_detector
    from dfdc_ray.faces.weights import stage_weights
    from dfdc_ray.preprocess import publish, receipts
    from dfdc_ray.preprocess.plan import units
    from dfdc_ray.preprocess.settings import settings_of
    from dfdc_ray.preprocess.unit import process_unit, process_video

    settings = settings_of(config)
    detector = None
    if settings.detector:
        stage_weights()
        detector = load_detector(settings.detector, threshold=settings.detector_threshold, long_side=settings.detector_long_side)
    output = receipts.open_output(config.out, settings)
    known = units(publish.remember(config.out, build_index(config.corpus)[0]))
    for unit in known:
        output.commit(process_unit(unit, lambda video, guide: process_video(video, settings, detector, guide)), generation=0)
    publish.publish(output, known, settings, versions={})


def import_noise(out: Path, *, families: int) -> None:
    """What `import` makes of crops of noise, one a video, a part a family: one real video and two fakes of it."""
    from dfdc_ray.preprocess.crops import import_crops

    rng = np.random.default_rng(0)
    rows = [
        {"video": f"f{family}v{number}.mp4", "label": "FAKE" if number else "REAL", "original": f"f{family}v0.mp4" if number else None}
        | {"part": family, "jpeg": cv2.imencode(".jpg", rng.integers(0, 255, (64, 64, 3), dtype=np.uint8))[1].tobytes()}
        for family in range(families)
        for number in range(3)
    ]
    crops = out.with_suffix(".parquet")
    pq.write_table(pa.Table.from_pylist(rows), crops)
    import_crops(ImportConfig(crops=(str(crops),), out=str(out)))


def write_face_shards(
    folder: Path,
    *,
    families: int = 10,
    fakes: int = 2,
    frames: int = 4,
    multiplier: int = 2,
    size: int = 32,
    families_per_part: int = 1,
    image_format: str = "jpeg",
    labels: tuple[str | None, str | None] = ("REAL", "FAKE"),
    clip: int | None = None,
    sound: bool = False,
) -> Path:
    """One real video and `fakes` fakes a family, one shard a family, one row group a video.

    Family i is in part and group i // families_per_part.
    Every `multiplier`-th frame of a real video is a core frame, and all frames of a fake are. Images are size x (size + 4) pixels.
    clip: so many frames make a clip, and what is said of frames goes for clips. sound: noise around each frame.
    """
    rng = np.random.default_rng(0)
    (folder / "faces").mkdir(parents=True)
    files, ledger = [], []
    for family in range(families):
        part = family // families_per_part
        videos = []
        for number in range(1 + fakes):
            label = labels[number > 0]
            ids = {
                "corpus": "toy",
                "video_id": f"toy/f{family:02d}v{number}.mp4",
                "family_id": f"toy/f{family:02d}v0.mp4",
                "group_id": f"toy/part-{part}",
                "part": part,
                "label": label,
            }
            step = 1 if number else multiplier
            of = clip or 1
            rows = [_row(rng, ids, i, core=i // of % step == 0, size=size, image_format=image_format) for i in range(frames * step)]
            rows = [row | {"has_sound": True, "sound": _sound(rng)} for row in rows] if sound else rows
            videos.append([row | {"clip_id": clip and i // of, "clip_position": clip and i % of} for i, row in enumerate(rows)])
            ledger.append(ids | {"status": "ok", "generation": 0, "faces": frames * step})
        data = parquet_bytes(videos, FACES)
        sha256 = hashlib.sha256(data).hexdigest()
        path = f"faces/family-{family:02d}.{sha256[:16]}.parquet"
        (folder / path).write_bytes(data)
        files.append({"path": path, "rows": sum(map(len, videos)), "sha256": sha256})
    pq.write_table(pa.Table.from_pylist(ledger), folder / "ledger.parquet")
    pq.write_table(pa.Table.from_pylist([row | {"method": None} for row in ledger]), folder / "index.parquet")
    write_manifest(folder, files, {"frames": frames})
    return folder


def write_manifest(folder: Path, files: list[dict[str, Any]], config: dict[str, Any]) -> None:
    """files: path, rows and sha256 of each shard."""
    data_hash = hashlib.sha256("".join(str(f["sha256"]) for f in files).encode()).hexdigest()
    manifest = {"format": FORMAT_VERSION, "kind": "plain", "data_hash": data_hash, "config": config, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def pack_shards(faces: Path, out: Path | str, *, seed: int = 0, shard_mb: float = 0.12, row_group_mb: float = 0.02) -> str:
    """What `dfdc-ray pack` writes, without Ray."""
    source = read_manifest(str(faces))
    settings = packed.Settings(faces_data_hash=source.data_hash, seed=seed, shard_mb=shard_mb, row_group_mb=row_group_mb)
    packed.open_output(str(out), settings)
    receipts = {shard.number: packed.commit(str(out), shard, settings) for shard in plan(source, seed=seed, shard_bytes=shard_mb * 1e6)}
    packed.publish(str(out), source, receipts, settings, copied=packed.companions(source), versions={})
    return str(out)


def _sound(rng: np.random.Generator) -> bytes:
    return rng.integers(-9999, 9999, WINDOW).astype("<i2").tobytes()


def _row(rng: np.random.Generator, ids: dict[str, Any], frame: int, *, core: bool, size: int, image_format: str) -> dict[str, Any]:
    picture = np.clip(rng.normal(_COLOURS[ids["label"] or "REAL"], 25, (size, size + 4, 3)), 0, 255).astype(np.uint8)
    extension = {"jpeg": ".jpg", "png": ".png"}[image_format]
    encoded = cv2.imencode(extension, picture[..., ::-1])[1].tobytes()
    return ids | {
        "frame": frame * 10,
        "pts": frame * 1000,
        "time_s": frame / 3,
        "track_id": 0,
        "core": core,
        "box": [4.0, 4.0, 20.0, 24.0],
        "crop": [0, 0, size + 4, size],
        "landmarks": [float(at * size) for at in (0.35, 0.4, 0.7, 0.4, 0.5, 0.55, 0.4, 0.7, 0.65, 0.7)],
        "det_score": 0.9,
        "detector": "toy",
        "box_source": "self",
        "frame_width": 64,
        "frame_height": 64,
        "image": {"bytes": encoded, "path": f"{frame}{extension}"},
    }
