"""Self-blended images (Shiohara and Yamasaki 2022, https://arxiv.org/abs/2204.08376): fakes made of real faces while training.

A face is laid over itself through a soft mask, after one of the two copies has been changed a little in colour, sharpness, place and size.
What a detector can learn of it is the seam and the mismatch that every swap leaves, and nothing of any one method.

After the paper are the kinds of change, that the changed copy is the source or the target by chance, the shift, the scale and the ratio of
the blending; and that half of the pictures beside them are changed too, as their reals are, or a changed picture would be told for a fake.
Ours are the strength of the colours, how the mask is bent, and the mask: theirs is the hull of 68 or 81 landmarks, ours an
ellipse through the five that a detector gives, from above the brows to the chin.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import pyarrow.compute as pc
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from dfdc_ray.errors import UserError
from dfdc_ray.shards.rows import RowTable

_RATIOS = (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)  # of the blending, one of them by chance: the paper's, section 3.2
_SHIFT, _SCALE = (0.03, 0.015), 0.05  # of the source: share of the picture's width and height, and of its size: section 3.2
_GRID, _BEND = 6, 0.03  # the mask is bent by a field of so many random vectors a side, each up to this share of the picture's side
_SMALLEST = 16  # pixels: in a smaller picture there is no seam to see
_COLOURS = v2.ColorJitter(brightness=0.1, contrast=0.1, saturation=0.3, hue=0.05)


def self_blended(picture: torch.Tensor, landmarks: np.ndarray) -> torch.Tensor:
    """A fake of a real face: uint8 [3,H,W] RGB, the same shape. Draws from torch's generator.

    landmarks: float [5,2], x y of right eye, left eye, nose, right and left mouth corner in pixels of the picture.
    """
    height, width = picture.shape[-2:]
    mask = _softened(face_mask(landmarks, height, width))
    changed = _changed(picture)
    source, target = (changed, picture) if float(torch.rand(())) < 0.5 else (picture, changed)
    angle_free = {"angle": 0.0, "shear": [0.0, 0.0], "interpolation": functional.InterpolationMode.BILINEAR}
    moved = [round(side * share * (2 * float(torch.rand(())) - 1)) for side, share in zip((width, height), _SHIFT, strict=True)]
    scale = 1 + _SCALE * (2 * float(torch.rand(())) - 1)
    both = torch.cat([source.float(), mask[None]])
    both = functional.affine(both, translate=moved, scale=scale, fill=[0.0], **angle_free)
    ratio = _RATIOS[int(torch.randint(len(_RATIOS), ()))]
    weight = both[3:] * ratio
    return (both[:3] * weight + target.float() * (1 - weight)).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class SelfBlend:
    """Makes such fakes of a share of the real pictures, and changes half of all others; for FaceDataset.

    landmarks: float32 [N,5,2] in pixels of the frame, nan where they are not known; crops: int32 [N,4], x y w h of what was cut out.
    """

    share: float
    landmarks: np.ndarray
    crops: np.ndarray

    def __call__(self, picture: torch.Tensor, position: int, real: bool) -> tuple[torch.Tensor, bool]:
        """The picture in place of this, and whether it is a fake made here."""
        made = self._blended(picture, position) if real and float(torch.rand(())) < self.share else None
        if made is not None:
            return made, True
        return (_changed(picture) if float(torch.rand(())) < 0.5 else picture), False

    def made(self, labels: np.ndarray) -> float:
        """Of which share of the reals of the table a fake is made, on the average: one without landmarks stays as it is."""
        known = ~np.isnan(self.landmarks).any((1, 2))
        return self.share * float(known[labels == 0].mean())

    def _blended(self, picture: torch.Tensor, position: int) -> torch.Tensor | None:
        """None where it has no landmarks, or is too small."""
        points, (x, y, w, h) = self.landmarks[position], self.crops[position]
        height, width = picture.shape[-2:]
        if np.isnan(points).any() or min(height, width) < _SMALLEST:
            return None
        made = self_blended(picture, (points - (x, y)) * (width / w, height / h))
        return None if torch.equal(made, picture) else made  # of landmarks so close together that the mask is nowhere


def self_blend_of(rows: RowTable, share: float) -> SelfBlend:
    """For the reals of a table that has the columns landmarks and crop. UserError if none of them has landmarks."""
    lists = rows.table["landmarks"].combine_chunks()
    known = pc.is_valid(lists).to_numpy(zero_copy_only=False)
    landmarks = np.full((len(rows), 5, 2), np.nan, np.float32)
    landmarks[known] = lists.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, 5, 2)
    if not (known & (rows.labels == 0)).any():
        raise UserError(
            "--self-blend wants landmarks, and no real face here has them: preprocess with --detector centerface, import with --landmarks."
        )
    return SelfBlend(share, landmarks, rows.table["crop"].combine_chunks().flatten().to_numpy().reshape(-1, 4))


def face_mask(landmarks: np.ndarray, height: int, width: int) -> np.ndarray:
    """float32 [H,W], 1 within the face and 0 outside: an ellipse, upright as the eyes are level, from above the brows to the chin.

    Its centre is between the nose and the middle of eyes and mouth; its half axes are the distance of the eyes, or on a turned head 0.8
    times that from the eyes' middle to the mouth's, and 1.35 times the latter: on a frontal face about the outline without ears and hair.
    """
    eyes, mouth = landmarks[:2].mean(0), landmarks[3:].mean(0)
    across, down = landmarks[1] - landmarks[0], mouth - eyes
    tall = float(np.hypot(*down))
    axes = max(1.0, 0.8 * tall, float(np.hypot(*across))), max(1.0, 1.35 * tall)
    centre = (0.5 * (eyes + mouth) + landmarks[2]) / 2
    angle = float(np.degrees(np.arctan2(across[1], across[0])))
    mask = np.zeros((height, width), np.float32)
    cv2.ellipse(mask, ((float(centre[0]), float(centre[1])), (2 * axes[0], 2 * axes[1]), angle), 1.0, -1)
    return mask


def _softened(mask: np.ndarray) -> torch.Tensor:
    """The mask bent and blurred at random, float32 [H,W] in 0..1."""
    height, width = mask.shape
    side = min(height, width)
    bend = (2 * torch.rand(2, _GRID, _GRID).numpy() - 1) * _BEND * side
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    dx, dy = (cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC) for field in bend)
    bent = cv2.remap(mask, columns + dx, rows + dy, cv2.INTER_LINEAR)
    sigma = side * (0.005 + 0.02 * float(torch.rand(())))
    soft = cv2.GaussianBlur(bent, (0, 0), sigma)
    # Cut and blurred a second time, so that the seam lies within the face by a varying width.
    inner = (soft > 0.5 + 0.4 * float(torch.rand(()))).astype(np.float32)
    return torch.from_numpy(cv2.GaussianBlur(inner, (0, 0), sigma))


def _changed(picture: torch.Tensor) -> torch.Tensor:
    """In colour, and either sharpened or of a lower resolution."""
    height, width = picture.shape[-2:]
    shift = torch.randint(-20, 21, (3, 1, 1))
    coloured: torch.Tensor = _COLOURS((picture.int() + shift).clamp(0, 255).to(torch.uint8))
    if float(torch.rand(())) < 0.5:
        return functional.adjust_sharpness(coloured, 1 + float(torch.rand(())))
    factor = 2 if float(torch.rand(())) < 0.5 else 4
    small = functional.resize(coloured, [max(1, height // factor), max(1, width // factor)], antialias=True)
    return functional.resize(small, [height, width], antialias=True)
