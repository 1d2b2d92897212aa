"""The cache of a node: whole, checked copies of what a split needs, made once."""

import errno
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import pack_shards, write_face_shards
from s3_server import S3

from dfdc_ray import storage
from dfdc_ray.config import TrainConfig
from dfdc_ray.errors import StorageError, UserError
from dfdc_ray.shards import cache
from dfdc_ray.shards.cache import cached
from dfdc_ray.shards.dataset import Batch, FaceDataset
from dfdc_ray.shards.manifest import read_manifest
from dfdc_ray.shards.order import FixedOrder
from dfdc_ray.shards.rows import RowTable, read_rows, split_mask
from dfdc_ray.train import transforms
from dfdc_ray.train.plan import on_this_node, prepare


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """Six groups of a shard each."""
    return Path(pack_shards(write_face_shards(tmp_path / "plain", families=6), tmp_path / "packed", shard_mb=0.05))


def _splits(faces: Path | str) -> tuple[RowTable, RowTable]:
    rows = read_rows(read_manifest(str(faces)))
    assert len(rows.files) == 6
    train, test = (rows.take(split_mask(rows, "parts:0-2/3/4-5", split)) for split in ("train", "test"))
    return train, test


def _batches(rows: RowTable) -> list[Batch]:
    return list(FaceDataset(rows, transforms.evaluation(transforms.recipe(32, "resnet34")), FixedOrder(len(rows), 16)))


def _same(a: list[Batch], b: list[Batch]) -> bool:
    return all(torch.equal(x, y) for one, other in zip(a, b, strict=True) for x, y in zip(one, other, strict=True))


def _copies(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.parquet")}


def test_what_a_split_needs_is_copied_once_and_read_from_there(faces: Path, tmp_path: Path) -> None:
    folder = tmp_path / "node" / "cache"
    train, test = _splits(faces)
    before = _batches(train)
    (local,) = cached([train], str(folder))
    assert set(_copies(folder)) == {f"{train.sha256[i]}.parquet" for i in range(6) if f"part-{i}" in str(_groups(train))}
    assert len(_copies(folder)) == 3
    first = _copies(folder)
    both = cached([train, test], str(folder))
    assert len(_copies(folder)) == 5
    assert first.items() <= _copies(folder).items()  # none of them copied again
    shutil.rmtree(faces)
    for table in (local, both[0]):
        assert _same(_batches(table), before)
    assert len(_batches(both[1])) > 0


def _groups(rows: RowTable) -> list[str]:
    return rows.table["group_id"].unique().to_pylist()  # type: ignore[no-any-return]


def test_leftovers_of_a_killed_copy_do_not_count(faces: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    train, _ = _splits(faces)
    cached([train], str(folder))
    short, other = sorted(folder.glob("*.parquet"))[:2]
    whole = short.read_bytes()
    short.write_bytes(whole[:-1])
    (folder / f"{other.name}.tmp").write_bytes(b"half")
    (folder / "somebody-elses.tmp").write_bytes(b"x")
    cached([train], str(folder))
    assert short.read_bytes() == whole
    assert [path.name for path in folder.glob("*.tmp")] == ["somebody-elses.tmp"]


def test_a_shard_that_is_not_the_manifests_is_refused(faces: Path, tmp_path: Path) -> None:
    train, _ = _splits(faces)
    shard = next(Path(train.files[i]) for i in range(6))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=f"{shard.name} is damaged: its size and SHA-256"):
        cached(_splits(faces), str(tmp_path / "cache"))
    assert not (tmp_path / "cache" / f"{train.sha256[0]}.parquet").exists()
    assert list((tmp_path / "cache").glob("*.tmp")) == []
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard.name} is absent"):
        cached([train], str(tmp_path / "cache"))


def test_one_process_copies_and_the_others_wait(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[str] = []
    once = cache._copy_once

    def counted(copy: Any) -> None:
        copied.append(copy.uri)
        once(copy)

    monkeypatch.setattr(cache, "_copy_once", counted)
    train, test = _splits(faces)
    with ThreadPoolExecutor(4) as pool:  # a lock belongs to an open file, so threads stand for processes
        results = list(pool.map(lambda _: cached([train, test], str(tmp_path / "cache")), range(4)))
    assert len(copied) == len(set(copied)) == 5
    assert all(tables[0].files == results[0][0].files for tables in results)


def test_no_room(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, _ = _splits(faces)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=cache._SPARE + 1000))
        with pytest.raises(UserError, match=r"--cache \S+cache: 0.0 GB are to be copied there and 1.1 GB are free. Delete"):
            cached([train], str(tmp_path / "cache"))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)  # others filled the disk meanwhile
    with pytest.raises(UserError, match="it filled up while shards were copied"):
        cached([train], str(tmp_path / "cache"))
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_storage_that_fails_for_a_while(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, _ = _splits(faces)
    tries = []
    once = cache._copy_once

    def failing(copy: Any) -> None:
        tries.append(copy)
        if len(tries) == 1:
            raise StorageError("503")
        once(copy)

    monkeypatch.setattr(cache, "_copy_once", failing)
    monkeypatch.setattr(cache.time, "sleep", lambda _: None)
    cached([train], str(tmp_path / "cache"))
    assert len(tries) == 4


def test_a_folder_that_cannot_be_one(faces: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--cache .*file: .* Give a folder that can be written"):
        cached([_splits(faces)[0]], str(tmp_path / "file"))
    with pytest.raises(UserError, match="--cache s3://b/c: give a folder on the nodes' own disks"):
        prepare(TrainConfig(faces=str(faces), out=str(tmp_path / "out"), cache="s3://b/c"))


@pytest.mark.s3
def test_an_epoch_from_the_cache_asks_nothing_of_s3(s3: S3, tmp_path: Path) -> None:
    plain = write_face_shards(tmp_path / "plain", families=6)
    uri = pack_shards(plain, f"{s3.uri}/packed", shard_mb=0.05)
    config = TrainConfig(
        faces=uri, out=str(tmp_path / "out"), split="parts:0-2/3/4-5", weights="none", image_size=32, cache=str(tmp_path / "cache")
    )
    plan = prepare(config)
    before = storage.traffic()
    local = on_this_node(plan, config)
    copied = storage.traffic() - before
    needed = [i for i in range(6) if (tmp_path / "cache" / f"{plan.train.sha256[i]}.parquet").exists()]
    assert len(needed) == 4  # of training and validation
    assert copied.bytes == sum(plan.train.sizes[i] for i in needed)
    before = storage.traffic()
    assert _same(_batches(on_this_node(plan, config).train), _batches(local.train))
    assert storage.traffic() == before
    assert _same(_batches(plan.train), _batches(local.train))  # and from S3 itself
    assert storage.traffic() != before
