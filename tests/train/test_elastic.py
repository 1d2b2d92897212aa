"""A run whose number of processes changes in the midst of an epoch: what it learns is what one process would have."""

import contextlib
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from helpers import write_face_shards
from torch import distributed, multiprocessing, nn

from dfdc_ray.config import TrainConfig
from dfdc_ray.train import checkpoint, loop
from dfdc_ray.train.plan import checkpoints, prepare

pytestmark = [
    pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning"),  # torchvision's own v2.JPEG
    pytest.mark.timeout(180),
]


class Plain(nn.Module):
    """Without batch norm, whose statistics are of one process's share: the mean of two halves' gradients is that of the whole."""

    HEAD = ("fc.",)
    CHANNELS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    SIDE = None
    CLIPS = False

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.ReLU())
        self.fc = nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(x).mean((2, 3)))[:, 0]


class Stopped(Exception):
    pass


def _process(rank: int, world_size: int, meeting: str, config: TrainConfig, steps: int | None) -> None:
    """Train; after so many steps, if given, die between two of them."""
    real, done = loop.step, [0]

    def stepping(*args: Any, **options: Any) -> torch.Tensor:
        if done[0] == steps:
            raise Stopped
        done[0] += 1
        with open(f"{config.out}.seen", "a") as seen:
            seen.writelines(f"{position}\n" for position in args[2].positions.tolist())
        return real(*args, **options)

    if world_size > 1:
        distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world_size)
    with contextlib.ExitStack() as changed:
        changed.enter_context(contextlib.suppress(Stopped))
        changed.enter_context(mock.patch("dfdc_ray.models.resnet34.ResNet34", Plain))
        changed.enter_context(mock.patch.object(loop, "step", stepping))
        changed.enter_context(mock.patch.object(loop, "use_bf16", return_value=False))  # it would round two halves otherwise than a whole
        loop.train_loop(config, prepare(config), rank=rank, world_size=world_size)
    if world_size > 1:
        distributed.destroy_process_group()


def _train(config: TrainConfig, workers: int, steps: int | None = None) -> None:
    if workers == 1:
        _process(0, 1, "", config, steps)
        return
    with socket.create_server(("127.0.0.1", 0)) as server:
        meeting = f"tcp://127.0.0.1:{server.getsockname()[1]}"
    multiprocessing.spawn(_process, (workers, meeting, config, steps), nprocs=workers)


def test_from_two_workers_to_one_and_back_within_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))  # where the processes find this module
    faces = str(write_face_shards(tmp_path / "faces"))
    whole = TrainConfig(
        faces=faces,
        out=str(tmp_path / "whole"),
        split="parts:0-5/6-7/8-9",
        weights="none",
        epochs=2,
        batch_size=16,
        image_size=32,
        learning_rate=1e-2,
    )
    elastic = replace(whole, out=str(tmp_path / "elastic"), checkpoint_minutes=1e-9)  # after every step
    at = []
    for workers, steps in ((2, 2), (1, 2), (2, None)):
        _train(replace(elastic, workers=workers), workers, steps)
        found = checkpoint.newest(checkpoints(elastic))
        assert found is not None
        at.append(found.config["step"])
    assert at == [2, 4, 12]
    seen = [int(line) for line in Path(f"{elastic.out}.seen").read_text().splitlines()]  # processes wait for each other at every step
    for epoch in (seen[:96], seen[96:]):
        assert sorted(epoch) == list(range(96))  # six families of 16 faces: each once

    _train(whole, 1)
    expected = checkpoint.newest(checkpoints(whole))
    assert expected is not None
    for name, value in expected.weights.items():
        torch.testing.assert_close(found.weights[name], value, rtol=1e-4, atol=1e-5)
