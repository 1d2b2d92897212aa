"""Near-duplicates are found through compression and scaling, and different pictures are not taken for one."""

import cv2
import numpy as np
import pytest
import torch
from helpers import write_face_shards

from dfdc_ray.evaluate import duplicates
from dfdc_ray.evaluate.duplicates import CLOSE, near_duplicates
from dfdc_ray.evaluate.robustness import CHANGES
from dfdc_ray.shards.manifest import read_manifest
from dfdc_ray.shards.rows import RowTable, read_rows


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> RowTable:
    return read_rows(read_manifest(str(write_face_shards(tmp_path_factory.mktemp("shards") / "faces", families=3, fakes=1, frames=3))))


def _picture(seed: int) -> torch.Tensor:
    small = np.random.default_rng(seed).integers(0, 255, (6, 6, 3)).astype(np.uint8)
    return torch.from_numpy(cv2.resize(small, (96, 96), interpolation=cv2.INTER_CUBIC)).permute(2, 0, 1)


def _bits(one: torch.Tensor, other: torch.Tensor) -> int:
    a, b = (duplicates._hash(picture).numpy().view(np.uint64) for picture in (one, other))
    return int(np.bitwise_count(a ^ b)[0])


@pytest.mark.parametrize("change", ["JPEG, quality 50", "half the size and back", "blur, sigma 2 pixels"])
def test_a_copy_in_another_quality_is_close(change: str) -> None:
    bits = [_bits(_picture(seed), CHANGES[change](_picture(seed))) for seed in range(10)]
    assert np.quantile(bits, 0.8) <= CLOSE


def test_other_pictures_are_far() -> None:
    assert min(_bits(_picture(a), _picture(b)) for a in range(10) for b in range(a)) > CLOSE


def test_the_middle_core_face_of_each_video_is_held_against_all_of_training(rows: RowTable) -> None:
    middle = duplicates._middle(rows)
    assert len(middle) == 6
    core = rows.take(rows.column("core"))
    for name, frame in zip(middle.table["video_id"].to_pylist(), middle.column("frame"), strict=True):
        frames = sorted(core.column("frame")[np.array([v == name for v in core.table["video_id"].to_pylist()])])
        assert frame == frames[1]

    pairs = near_duplicates(rows, rows)
    assert [pair.bits for pair in pairs] == [0] * 6
    assert [pair.video_id for pair in pairs] == sorted(set(rows.table["video_id"].to_pylist()))
