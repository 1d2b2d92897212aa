"""The bench of training: the ways see the same samples, and its files say what was measured."""

import json
from pathlib import Path

import pytest
import torch
from helpers import write_face_shards

from dfdc_ray.bench import train as bench
from dfdc_ray.bench.config import BenchTrainConfig
from dfdc_ray.errors import UserError
from dfdc_ray.shards.dataset import FaceDataset, loader
from dfdc_ray.shards.manifest import read_manifest
from dfdc_ray.shards.rows import read_rows
from dfdc_ray.train import transforms

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")  # torchvision's own v2.JPEG


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_face_shards(tmp_path_factory.mktemp("bench") / "faces", families=4))


@pytest.mark.parametrize("workers", [0, 1])
def test_memory_gives_the_very_batches_of_the_shards(faces: str, tmp_path: Path, workers: int) -> None:
    rows = read_rows(read_manifest(faces))
    order = bench._first(rows, BenchTrainConfig(faces=faces, out=str(tmp_path), batch_size=8, steps=4), seed=1)
    from_shards = FaceDataset(rows, transforms.training(transforms.recipe(32, "resnet34")), order)
    in_memory = bench._InMemory(from_shards)
    for a, b in zip(loader(from_shards, workers=0), loader(in_memory, workers=workers), strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)


def test_it_writes_what_it_measured(faces: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench.train(BenchTrainConfig(faces=faces, out=str(tmp_path), image_size=32, batch_size=8, steps=2, repeats=1))
    found = json.loads((tmp_path / "bench_train.json").read_text())
    assert [row["way"] for row in found["rows"]] == ["train", "memory", "model", "input"]
    assert all(len(row["images_per_s"]) == 1 and min(row["images_per_s"]) > 0 for row in found["rows"])
    assert "| memory |" in (tmp_path / "bench_train.md").read_text()
    assert "cores beside those of the model" in capsys.readouterr().out


def test_loader_processes_take_more_pictures_than_a_process_has_file_descriptors_for(tmp_path: Path) -> None:
    faces = str(write_face_shards(tmp_path / "faces", families=6, fakes=8, frames=7, size=8))
    rows = read_rows(read_manifest(faces))
    order = bench._first(rows, BenchTrainConfig(faces=faces, out=str(tmp_path), batch_size=80, steps=2), seed=0)
    in_memory = bench._InMemory(FaceDataset(rows, transforms.evaluation(transforms.recipe(32, "resnet34")), order))
    assert len(in_memory.found) > 300
    assert len(next(iter(loader(in_memory, workers=1))).labels) == 80


def test_what_must_be_put_right(faces: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 1"):
        bench.train(BenchTrainConfig(faces=faces, out=str(tmp_path), steps=0))
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no CUDA device"):
            bench.train(BenchTrainConfig(faces=faces, out=str(tmp_path), gpu=True))
