"""Self-blended fakes: where they differ from the face that they are made of, and what training gets of them."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from helpers import write_face_shards

from dfdc_ray.errors import UserError
from dfdc_ray.shards.dataset import FaceDataset
from dfdc_ray.shards.manifest import read_manifest
from dfdc_ray.shards.order import ShuffledOrder
from dfdc_ray.shards.rows import RowTable, read_rows
from dfdc_ray.train.blend import SelfBlend, _softened, face_mask, self_blend_of, self_blended

LANDMARKS = np.array([[70, 80], [130, 80], [100, 110], [80, 140], [120, 140]], np.float32)


def _face() -> torch.Tensor:
    """Noise, so that every change of a pixel shows."""
    return torch.randint(60, 200, (3, 240, 200), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_the_mask_is_on_the_face() -> None:
    mask = face_mask(LANDMARKS, 240, 200)
    assert mask.shape == (240, 200)
    assert set(np.unique(mask)) == {0.0, 1.0}
    assert all(mask[int(y), int(x)] == 1 for x, y in LANDMARKS)
    assert mask[180, 100] == 1  # the chin
    assert mask[20, 100] == mask[100, 30] == mask[220, 100] == 0
    turned = face_mask(np.stack([LANDMARKS[:, 1], 200 - LANDMARKS[:, 0]], axis=1), 200, 240)  # by a right angle
    assert np.mean(turned != np.rot90(mask)) < 0.02


def test_a_turned_head_has_a_mask_as_wide_as_a_face() -> None:
    turned = LANDMARKS.copy()
    turned[:, 0] = turned[:, 0].mean() + 0.05 * (turned[:, 0] - turned[:, 0].mean())
    share = face_mask(turned, 240, 200).mean() / face_mask(LANDMARKS, 240, 200).mean()
    assert 0.5 < share < 1


def test_what_blending_left_as_it_was_is_called_no_fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfdc_ray.train.blend.self_blended", lambda picture, landmarks: picture.clone())
    assert not SelfBlend(1.0, LANDMARKS[None], np.array([[0, 0, 200, 240]]))(_face(), 0, True)[1]


def test_the_mask_is_bent_and_soft() -> None:
    """Its outline is another each time, by several pixels, and its edge is no step."""
    mask = face_mask(LANDMARKS, 240, 200)
    bent = []
    for seed in range(10):
        torch.manual_seed(seed)
        bent.append(_softened(mask).numpy())
    assert all(b.min() >= 0 and b.max() <= 1 + 1e-5 for b in bent)
    assert all(0.02 < np.mean((b > 0.1) & (b < 0.9)) < 0.4 for b in bent)
    widths = [[(b[row] > 0.5).sum() for row in range(40, 180, 20)] for b in bent]
    assert np.std(widths, axis=0).min() > 2


def test_a_fake_differs_from_its_face_within_the_face() -> None:
    face, mask = _face(), torch.from_numpy(face_mask(LANDMARKS, 240, 200)) > 0
    untouched = 0
    for seed in range(20):
        torch.manual_seed(seed)
        fake = self_blended(face, LANDMARKS)
        assert fake.shape == face.shape
        assert fake.dtype == torch.uint8
        torch.manual_seed(seed)
        assert torch.equal(self_blended(face, LANDMARKS), fake)
        difference = (fake.int() - face.int()).abs().float().mean(0)
        assert difference[mask].mean() > 2
        untouched += bool((difference[:, :15] == 0).all())
    assert 4 <= untouched <= 16  # the source is the changed copy in half of the cases: then nothing changes far from the face


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> RowTable:
    faces = write_face_shards(tmp_path_factory.mktemp("blend") / "faces", families=12, image_format="png")
    return read_rows(read_manifest(str(faces)), more=("landmarks", "crop"))


def _batches(rows: RowTable, share: float | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pictures, labels and positions of an epoch."""
    fake = None if share is None else self_blend_of(rows, share)
    batches = list(FaceDataset(rows, lambda picture: picture.float(), ShuffledOrder(rows, 8, 0, 1), fake))
    return tuple(torch.cat([getattr(b, name) for b in batches]).numpy() for name in ("images", "labels", "positions"))  # type: ignore[return-value]


def test_a_share_of_the_reals_becomes_fakes(rows: RowTable) -> None:
    plain, labels, positions = _batches(rows, None)
    for share, low, high in ((0.5, 0.25, 0.75), (1.0, 1, 1)):
        pictures, blended, same = _batches(rows, share)
        assert np.array_equal(same, positions)
        assert (blended[labels == 1] == 1).all()
        assert low <= blended[labels == 0].mean() <= high
        changed = (pictures != plain).any(axis=(1, 2, 3))
        assert changed[blended != labels].all()
        assert 0.25 < changed[labels == 1].mean() < 0.75  # or what is changed could be told for a fake
        if share < 1:
            assert 0.25 < changed[blended == 0].mean() < 0.75
        again = _batches(rows, share)
        assert all(np.array_equal(a, b) for a, b in zip(again, (pictures, blended, same), strict=True))
    assert np.array_equal(rows.labels, _labels_of(rows))


def _labels_of(rows: RowTable) -> np.ndarray:
    return np.array([label == "FAKE" for label in rows.table["label"].cast("string").to_pylist()], np.float32)


def test_landmarks_are_moved_into_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """A crop of 400x480 pixels of the frame at (300, 100), stored at half its size."""
    given: list[np.ndarray] = []
    monkeypatch.setattr("dfdc_ray.train.blend.self_blended", lambda picture, landmarks: given.append(landmarks) or picture)
    in_frame = (LANDMARKS * 2 + (300, 100))[None].astype(np.float32)
    SelfBlend(1.0, in_frame, np.array([[300, 100, 400, 480]], np.int32))(_face(), 0, True)
    assert given[0] == pytest.approx(LANDMARKS)
    assert not SelfBlend(1.0, in_frame * np.nan, np.array([[300, 100, 400, 480]], np.int32))(_face(), 0, True)[1]


def test_of_how_many_reals_fakes_are_made() -> None:
    known = np.stack([LANDMARKS] * 4)
    known[2:] = np.nan
    assert SelfBlend(0.5, known, np.zeros((4, 4), np.int32)).made(np.array([1, 0, 0, 0])) == pytest.approx(0.5 / 3)


def test_without_landmarks_it_is_said_where_they_come_from(rows: RowTable) -> None:
    nulls = pa.nulls(len(rows), rows.table.schema.field("landmarks").type)
    at = rows.table.schema.get_field_index("landmarks")
    with pytest.raises(UserError, match="preprocess with --detector centerface, import with --landmarks"):
        self_blend_of(replace(rows, table=rows.table.set_column(at, "landmarks", nulls)), 0.5)
