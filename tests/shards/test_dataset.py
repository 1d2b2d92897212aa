"""The order of the samples: the same for any number of processes, resumable at a sample, and complete."""

import itertools
import json
from collections.abc import Container
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import write_face_shards

from dfdc_ray.errors import UserError
from dfdc_ray.shards import dataset
from dfdc_ray.shards import order as orders
from dfdc_ray.shards.dataset import FaceDataset, loader
from dfdc_ray.shards.manifest import Manifest, read_manifest
from dfdc_ray.shards.order import FixedOrder, ShuffledOrder
from dfdc_ray.shards.rows import RowTable, clips_of, read_rows, samples_of, split_mask
from dfdc_ray.shards.schema import FACES
from dfdc_ray.shards.write import parquet_bytes
from dfdc_ray.train import transforms
from dfdc_ray.video.sound import WINDOW

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")  # torchvision's own v2.JPEG


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_face_shards(tmp_path_factory.mktemp("shards") / "faces", families=5, fakes=3, frames=3)


@pytest.fixture(scope="module")
def rows(faces: Path) -> RowTable:
    return read_rows(read_manifest(str(faces)))  # 5 families x (6 real + 9 fake) faces


def _flat(order: ShuffledOrder) -> list[int]:
    return [int(i) for samples in order for i in samples.positions]


def test_rows_point_at_their_images(rows: RowTable) -> None:
    assert len(rows) == 75
    assert len(rows.groups) == 20  # a row group a video
    assert np.bincount(rows.videos).tolist() == [6, 3, 3, 3] * 5
    assert rows.labels.mean() == pytest.approx(9 / 15)
    spec = {"image_size": 32, "mean": [0.0] * 3, "std": [1.0] * 3}
    images = FaceDataset(rows, transforms.evaluation(spec), FixedOrder(75, 20))
    batches = list(loader(images, workers=0))
    assert [len(b.positions) for b in batches] == [20, 20, 20, 15]
    assert torch.cat([b.positions for b in batches]).tolist() == list(range(75))
    red, blue = (torch.cat([b.images[:, channel].mean((1, 2)) for b in batches]) for channel in (0, 2))
    assert torch.equal((blue > red).float(), torch.cat([b.labels for b in batches]))  # fakes are blue, reals red (helpers)


def test_png_shards(tmp_path: Path) -> None:
    rows = read_rows(read_manifest(str(write_face_shards(tmp_path / "f", families=1, image_format="png"))))
    batch = next(iter(FaceDataset(rows, transforms.evaluation(transforms.recipe(48, "resnet34")), FixedOrder(len(rows), 4))))
    assert batch.images.shape == (4, 3, 48, 48)
    assert batch.images.dtype == torch.float32


def test_clips_are_batches_of_their_frames(tmp_path: Path) -> None:
    """Four clips of two frames for each of two videos; one frame and one whole clip are missing: what is not whole is left out."""
    faces = write_face_shards(tmp_path / "f", families=1, fakes=1, frames=8, multiplier=1, clip=2)
    rows = read_rows(read_manifest(str(faces)))
    gaps = np.ones(len(rows), bool)
    gaps[[3, 8, 9]] = False
    clips = clips_of(rows.take(gaps))
    assert clips.clip_length == 2
    assert (len(rows), len(clips)) == (16, 6)
    assert clips.column("frame").tolist() == [0, 40, 60, 20, 40, 60]
    identity = FaceDataset(clips, lambda clip: clip.float(), FixedOrder(6, 4))
    plain = FaceDataset(rows, lambda picture: picture.float(), FixedOrder(16, 16))
    frames = next(iter(plain)).images
    batches = list(loader(identity, workers=0))
    assert [tuple(b.images.shape) for b in batches] == [(4, 2, 3, 32, 36), (2, 2, 3, 32, 36)]
    found = torch.cat([b.images for b in batches])
    assert torch.equal(found, torch.stack([frames[[i, i + 1]] for i in (0, 4, 6, 10, 12, 14)]))
    assert torch.cat([b.labels for b in batches]).tolist() == [0, 0, 0, 1, 1, 1]

    seeded = FaceDataset(clips, transforms.training(transforms.recipe(32, "resnet34")), ShuffledOrder(clips, 2, 0, 1))
    assert all(b.images.shape == (2, 2, 3, 32, 32) for b in seeded)
    assert sorted(_flat(ShuffledOrder(clips, 2, 0, 1))) == list(range(6))


def test_clips_come_with_their_sound(tmp_path: Path) -> None:
    faces = write_face_shards(tmp_path / "f", families=1, fakes=1, frames=4, multiplier=1, clip=2, sound=True)
    manifest = read_manifest(str(faces))
    clips = samples_of(manifest, clips=True, sound=True)
    stored = pq.read_table(manifest.files[0].uri)["sound"].to_pylist()
    whole = [batch for batch in FaceDataset(clips, lambda clip: clip.float(), FixedOrder(len(clips), 3), sound=True)]
    assert [tuple(batch.sound.shape) for batch in whole] == [(3, 2, WINDOW), (1, 2, WINDOW)]
    expected = np.stack([np.frombuffer(window, "<i2") for window in stored]).reshape(len(clips), 2, WINDOW) / 32768
    assert np.array_equal(torch.cat([batch.sound for batch in whole]).numpy(), expected.astype(np.float32))
    mute = [batch for batch in FaceDataset(clips, lambda clip: clip.float(), FixedOrder(len(clips), 3))]
    assert all(torch.equal(a.images, b.images) and not b.sound.numel() for a, b in zip(whole, mute, strict=True))


def _heard(manifest: Manifest, frames: Container[int]) -> None:
    """Write the first shard again with sound at these of its rows alone."""
    rows = pq.read_table(manifest.files[0].uri).to_pylist()
    for number, row in enumerate(rows):
        row |= {"has_sound": number in frames, "sound": bytes(2 * WINDOW) if number in frames else None}
    Path(manifest.files[0].uri).write_bytes(parquet_bytes([rows], FACES))


def test_clips_without_sound_throughout_are_left_out_for_who_listens(tmp_path: Path) -> None:
    faces = write_face_shards(tmp_path / "f", families=1, fakes=1, frames=4, multiplier=1, clip=2)
    manifest = read_manifest(str(faces))
    with pytest.raises(UserError, match="--sampling clips --sound"):
        samples_of(manifest, clips=True, sound=True)
    _heard(manifest, {0, 1, 2, 3, 4, 6, 7})
    assert samples_of(manifest, clips=True, sound=True).column("frame").tolist() == [0, 20, 20]  # the sixth frame's clip has gone
    assert len(samples_of(manifest, clips=True)) == 4


@pytest.mark.parametrize("heard", [{0, 1, 4, 5}, {1, 2, 3, 5, 6, 7}])
def test_a_clip_that_is_cut_short_by_its_sound_is_no_clip(tmp_path: Path, heard: set[int]) -> None:
    """Two clips of four frames, neither with sound throughout: what is left of them is not a length of its own."""
    manifest = read_manifest(str(write_face_shards(tmp_path / "f", families=1, fakes=1, frames=4, multiplier=1, clip=4)))
    _heard(manifest, heard)
    with pytest.raises(UserError, match="none of these clips is whole and has sound"):
        samples_of(manifest, clips=True, sound=True)
    _heard(manifest, heard | {0, 1, 2, 3})
    assert samples_of(manifest, clips=True, sound=True).clip_length == 4


def test_single_frames_are_no_clips(rows: RowTable) -> None:
    assert rows.clip_length is None
    with pytest.raises(UserError, match="--sampling clips"):
        clips_of(rows)


def test_splits(rows: RowTable) -> None:
    masks = [split_mask(rows, "parts:0-2/3/4", split) for split in ("train", "validation", "test")]
    assert [int(m.sum()) for m in masks] == [45, 15, 15]
    assert np.sum(masks, axis=0).tolist() == [1] * 75
    assert set(rows.take(masks[1]).table["group_id"].to_pylist()) == {"toy/part-3"}


@pytest.mark.parametrize("world_size", [2, 4])
def test_order_is_the_same_for_any_world_size(rows: RowTable, world_size: int) -> None:
    one = ShuffledOrder(rows, 8, seed=3, epochs=2)
    ranks = [list(replace(one, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert {len(r) for r in ranks} == {2 * one.steps_per_epoch} == {20}
    for step, samples in enumerate(one):
        index = np.empty(8, int)
        seeds: list = [None] * 8
        for rank in range(world_size):
            index[rank::world_size] = ranks[rank][step].positions
            seeds[rank::world_size] = ranks[rank][step].seeds
        assert index.tolist() == samples.positions.tolist()
        assert seeds == samples.seeds


def test_an_epoch_leaves_no_sample_out_and_wraps_round(rows: RowTable) -> None:
    order = _flat(ShuffledOrder(rows, 8, seed=0, epochs=1))
    assert len(order) == 80
    assert sorted(order[:75]) == list(range(75))
    assert order[75:] == order[:5]


def test_order_depends_on_seed_and_epoch(rows: RowTable) -> None:
    order = ShuffledOrder(rows, 5, seed=0, epochs=2)
    first, second = order.epoch_order(0).tolist(), order.epoch_order(1).tolist()
    assert first == ShuffledOrder(rows, 25, seed=0, epochs=9).epoch_order(0).tolist()
    assert first != second
    assert first != replace(order, seed=1).epoch_order(0).tolist()


def test_resumes_at_the_exact_sample(rows: RowTable) -> None:
    whole = list(ShuffledOrder(rows, 8, seed=0, epochs=3))
    rest = list(ShuffledOrder(rows, 8, seed=0, epochs=3, epoch=1, start=24))
    by_number = ShuffledOrder(rows, 8, seed=0, epochs=3)
    assert len(by_number) == len(whole)
    for number in np.random.default_rng(0).permutation(len(whole)):  # in whatever order they are asked for
        assert np.array_equal(by_number[number].positions, whole[number].positions)
        assert by_number[number].seeds == whole[number].seeds
    assert [s.positions.tolist() for s in rest] == [s.positions.tolist() for s in whole[10 + 3 :]]
    assert [s.seeds for s in rest] == [s.seeds for s in whole[10 + 3 :]]


def test_a_set_smaller_than_a_batch(rows: RowTable) -> None:
    order = _flat(ShuffledOrder(rows.take(np.arange(3)), 8, seed=0, epochs=1))
    assert len(order) == 8
    assert np.bincount(order).min() >= 2


def test_windows_bound_how_long_a_row_group_is_needed(rows: RowTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "WINDOW_BYTES", int(rows.groups[:, 2].sum() / 5))
    order = ShuffledOrder(rows, 5, seed=0, epochs=1).epoch_order(0)
    group = rows.column("group")[order]
    spans = [np.ptp(np.flatnonzero(group == g)) for g in range(20)]
    assert max(spans) <= 35  # about a fifth of 75 rows, and no more than the row group that crosses its border
    assert np.mean(np.diff(group) == 0) < 0.5  # mixed within the window


def test_sampling_draws_both_classes_equally_often(rows: RowTable) -> None:
    order = ShuffledOrder(rows, 10, seed=0, epochs=1, balance="sample")
    drawn = order.epoch_order(0)
    assert len(drawn) == 90 == order.steps_per_epoch * 10
    assert rows.labels[drawn].mean() == 0.5
    assert set(drawn.tolist()) == set(range(75))
    repeated = {i for i in drawn.tolist() if drawn.tolist().count(i) > 1}
    again = order.epoch_order(1).tolist()
    assert repeated != {i for i in again if again.count(i) > 1}  # others each epoch


def test_groups_are_drawn_equally_often_and_both_classes_within_each(rows: RowTable) -> None:
    uneven = rows.take(np.flatnonzero((rows.column("part") < 3) | (rows.column("row") == 0)))  # families 3 and 4: one face a video
    order = ShuffledOrder(uneven, 10, seed=0, epochs=1, balance="groups")
    drawn = order.epoch_order(0)
    names = np.array(uneven.table["group_id"].cast("string").to_pylist())[drawn]
    groups, counts = np.unique(names, return_counts=True)
    assert len(groups) == 5
    assert len(set(counts.tolist())) == 1
    assert all(uneven.labels[drawn][names == group].mean() == 0.5 for group in groups)
    assert order.drawn == (len(drawn) / 2, len(drawn) / 2)
    assert len(uneven) <= len(drawn) < len(uneven) + 10  # quotas are whole
    small = uneven.column("part")[drawn] >= 3
    assert set(drawn[small].tolist()) == set(np.flatnonzero(uneven.column("part") >= 3).tolist())
    large = set(drawn[~small].tolist())
    again = order.epoch_order(1)
    assert large != set(again[uneven.column("part")[again] < 3].tolist())  # others each epoch


def test_world_size_may_change_at_any_step_and_every_sample_is_still_drawn_once(rows: RowTable) -> None:
    """Two ranks, then one, then two, within one epoch."""
    seen: list[int] = []
    for start, end, world_size in ((0, 20, 2), (20, 50, 1), (50, 80, 2)):
        for rank in range(world_size):
            order = ShuffledOrder(rows, 10, seed=0, epochs=1, start=start, rank=rank, world_size=world_size)
            steps = (end - start) // 10
            seen += [int(i) for samples in itertools.islice(order, steps) for i in samples.positions]
    whole = _flat(ShuffledOrder(rows, 10, seed=0, epochs=1))
    assert sorted(seen) == sorted(whole)  # 75 faces, and the 5 with which the last batch is filled up
    assert set(seen) == set(range(75))


def test_uneven_ranks_are_refused(rows: RowTable) -> None:
    with pytest.raises(ValueError, match="does not divide"):
        ShuffledOrder(rows, 8, seed=0, epochs=1, world_size=3)


def test_loader_workers_change_nothing(rows: RowTable) -> None:
    def batches(count: int) -> list[dataset.Batch]:
        order = ShuffledOrder(rows, 15, seed=1, epochs=1)
        return list(loader(FaceDataset(rows, transforms.training(transforms.recipe(32, "resnet34")), order), workers=count))

    plain = batches(0)
    assert len(plain) == 5
    for a, b in zip(plain, batches(2), strict=True):
        assert torch.equal(a.positions, b.positions)
        assert torch.equal(a.images, b.images)  # augmentation too


def test_augmentation_differs_between_epochs_and_leaves_torchs_generator_alone(rows: RowTable) -> None:
    some = rows.take(np.arange(4))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second = FaceDataset(some, transforms.training(transforms.recipe(32, "resnet34")), ShuffledOrder(some, 4, seed=0, epochs=2))
    assert torch.equal(torch.rand(3), expected)
    images = [batch.images[batch.positions.argsort()] for batch in (first, second)]
    assert not torch.allclose(images[0], images[1])


def test_the_cache_is_bounded(rows: RowTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "CACHE_BYTES", int(rows.groups[:, 2].max() * 3))
    with dataset._Images(rows.files, rows.groups, sound=False) as images:
        for group in range(20):
            assert len(images.read([(group, 0)])) == 1
            assert images.bytes <= dataset.CACHE_BYTES
        assert len(images.cache) < 20
        assert len(images.read([(group, 1) for group in range(20)])) == 20  # more than the bound at a time, if a batch needs it


def _read_all(folder: Path) -> None:
    rows = read_rows(read_manifest(str(folder)))
    list(FaceDataset(rows, transforms.evaluation(transforms.recipe(32, "resnet34")), FixedOrder(len(rows), 4)))


def test_a_shard_with_wrong_bytes_is_named(tmp_path: Path) -> None:
    """Also where they are in the midst of a picture, which would still be decoded, or in Parquet's own."""
    folder = write_face_shards(tmp_path / "f", families=1, size=64)
    shard = next((folder / "faces").iterdir())
    whole = shard.read_bytes()
    picture = pq.read_table(shard)["image"][0]["bytes"].as_py()
    for at in (whole.index(picture) + len(picture) // 2, whole.index(picture) - 40):
        shard.write_bytes(whole[:at] + bytes(4) + whole[at + 4 :])
        with pytest.raises(UserError, match=rf"{shard.name} is not a face shard, or it is damaged \("):
            _read_all(folder)


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    folder = write_face_shards(tmp_path / "f", families=1)
    shard = next((folder / "faces").iterdir())
    rows = pq.read_table(shard).to_pylist()
    rows[0]["image"]["bytes"] = b"no picture"
    shard.write_bytes(parquet_bytes([rows], FACES))
    with pytest.raises(UserError, match=f"{shard.name}, row group 0, row 0: the image is damaged"):
        _read_all(folder)


def test_absent_damaged_and_changed_shards(tmp_path: Path) -> None:
    folder = write_face_shards(tmp_path / "f", families=1)
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    content["files"][0]["rows"] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="the manifest says"):
        read_rows(read_manifest(str(folder)))
    shard = next((folder / "faces").iterdir())
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(UserError, match="damaged"):
        read_rows(read_manifest(str(folder)))
    shard.unlink()
    with pytest.raises(UserError, match="absent"):
        read_rows(read_manifest(str(folder)))
