"""What the tests of scoring and of the score page share: videos and a checkpoint."""

from dataclasses import asdict
from pathlib import Path

import moving_face
import pytest
import torch

from dfdc_ray.config import PreprocessConfig
from dfdc_ray.models import create_model
from dfdc_ray.preprocess.settings import settings_of
from dfdc_ray.train import checkpoint, transforms

SETTINGS = settings_of(PreprocessConfig(corpus=("unused",), out="unused", frames=32, real_multiplier=4))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """face.mp4 (a face from 0.5 s on), empty.mp4 (the background alone), text.mp4 (no video)."""
    return moving_face.write_videos(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="session")
def best(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("train") / "best"
    config = {"model": "resnet34", "transform": transforms.recipe(64, "resnet34"), "faces_config": asdict(SETTINGS)}
    checkpoint.save(str(path), weights=create_model("resnet34").state_dict(), config=config, state=None)
    return path
