"""Pictures of what a model looked at: what moves is in them, where a model attends is in them, and a model without says so."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import skimage.data
import torch

from dfdc_ray.config import PreprocessConfig
from dfdc_ray.errors import UserError
from dfdc_ray.evaluate.scorer import Scorer, load_scorer
from dfdc_ray.faces.crop import encode
from dfdc_ray.models import create_model
from dfdc_ray.preprocess.settings import settings_of
from dfdc_ray.serve import maps
from dfdc_ray.serve.judge import Evidence, TrackScore, VideoScore
from dfdc_ray.train import checkpoint, transforms

sheet = maps._sheet
FACE = skimage.data.astronaut()[30:190, 145:305]


def _scorer(folder: Path, model: str, side: int) -> Scorer:
    torch.manual_seed(0)
    settings = settings_of(PreprocessConfig(corpus=("unused",), out="unused"))
    config = {"model": model, "transform": transforms.recipe(side, model), "faces_config": asdict(settings)}
    checkpoint.save(str(folder / model), weights=create_model(model).state_dict(), config=config, state=None)
    return load_scorer(str(folder / model))


def _clip(spot: int | None) -> list[bytes]:
    """A face that stands still, in one frame of which a cheek turns red."""
    frames = [FACE.copy() for _ in range(6)]
    if spot is not None:
        frames[spot][80:110, 60:90, 0] = np.minimum(frames[spot][80:110, 60:90, 0] + 60.0, 255)
    return [encode(frame, "png") for frame in frames]


def test_what_changes_in_a_clip_is_in_its_maps(tmp_path: Path) -> None:
    scorer = _scorer(tmp_path, "r3d_18", 64)
    maps.check(scorer)
    frames, differences, own, around = (values for _, values in maps._of_clip(scorer, _clip(3)))
    assert frames.shape == differences.shape == (6, 64, 64, 3)
    loud = np.abs(differences - 0.5).mean((1, 2, 3))
    assert set(np.argsort(loud)[-2:]) == {3, 4}  # where it comes and where it goes
    assert loud[[0, 1, 2, 5]].max() < 1e-3
    red = own[3, ..., 0] - own[2, ..., 0]
    row, column = np.unravel_index(red.argmax(), red.shape)
    assert (8 <= row <= 10, 6 <= column <= 8) == (True, True)  # the cheek, in sixteenths of the crop
    assert np.abs(around[3] - 0.5).max() > 0.05
    still = [values for _, values in maps._of_clip(scorer, _clip(None))]
    assert all(np.allclose(values, 0.5, atol=1e-3) for values in still[1:])


def test_attention_is_drawn_beside_the_faces_it_is_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = _scorer(tmp_path, "efficientnet_b4_attention", 64)
    maps.check(scorer)
    drawn: list[Any] = []
    monkeypatch.setattr(maps, "_sheet", lambda rows, **more: drawn.append((rows, more)) or sheet(rows, **more))
    faces = [[encode(np.roll(FACE, 10 * n, 1), "png")] for n in range(10)]
    scores = [0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.4, 0.6, 0.5, 0.55]
    faces.append([encode(FACE, "png")])  # a passer-by, who does not count
    tracks = [TrackScore(track_id=n, score=0.5, coverage=1.0, counted=n == 0, faces=()) for n in (0, 1)]
    evidence = Evidence(
        video=VideoScore(uri="clip", status="ok", tracks=tuple(tracks)),
        rows=tuple({"time_s": 0.5 * n, "track_id": int(n == 10)} for n in range(11)),
        pictures=tuple(map(tuple, faces)),
        scores=(*scores, 0.99),
    )
    png = maps.draw(scorer, evidence, title="clip $x$.mp4")
    (rows, more), *_ = drawn
    assert [len(values) for _, values in rows] == [8, 8]
    assert more["captions"] == [f"{0.5 * n:.2f} s\n{scores[n]:.3f}" for n in (1, 3, 4, 5, 6, 7, 8, 9)]  # the highest, in their order
    assert [text.get_text() for axes in sheet(rows, **more).axes for text in axes.texts] == more["captions"]
    seen, attended = (values for _, values in rows)
    assert np.abs(seen[0] - cv2.resize(np.roll(FACE, 10, 1), (64, 64), interpolation=cv2.INTER_AREA) / 255).mean() < 0.05
    assert attended.std() > 0
    assert cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR).shape[1] > 500


def test_a_model_without_maps_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="resnet34 has no maps of its own"):
        maps.check(_scorer(tmp_path, "resnet34", 64))


def test_names_are_safe_and_do_not_meet() -> None:
    one, other = maps.name_of("s3://bucket/a/clip one.mp4"), maps.name_of("/data/b/clip one.mp4")
    assert one.startswith("clip_one-")
    assert one != other
    assert "/" not in maps.name_of("/data/../..$(x).mp4")
