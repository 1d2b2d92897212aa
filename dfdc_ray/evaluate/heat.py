"""Heat maps: which places of a face, or of a clip's frames, spoke for a fake. Grad-CAM (Selvaraju et al. 2017), by captum."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from captum.attr import LayerGradCam
from matplotlib import colormaps
from torch.nn import functional

from dfdc_ray.evaluate.members import Member
from dfdc_ray.evaluate.scorer import Scorer
from dfdc_ray.faces.crop import cut, decode, encode
from dfdc_ray.train import transforms
from dfdc_ray.train.validation import to_device

SIDE = 224  # pixels of a page's pictures, at most
_BATCH, _CLIPS = 16, 2  # pictures of models of single frames, and clips, at a time
_OPACITY = 0.55  # of the hottest place


@dataclass(frozen=True)
class Shown:
    """A face as the model sees it and under its heat map, JPEGs for a page. heat: None without maps; the face is then as stored."""

    face: bytes
    heat: bytes | None
    at: int = 0  # which frame of a clip it is


def shown(
    scorer: Scorer, pictures: Sequence[Sequence[bytes]], *, of_clip: int = 3, on_batch: Callable[[float], None] = lambda share: None
) -> list[list[Shown]]:
    """For each encoded face one, for each clip so many of its frames, the first among them; the hottest place is that of all pictures.

    on_batch: as of heat_maps.
    """
    wanted = [np.unique(np.linspace(0, len(each) - 1, of_clip if scorer.clips else 1).round().astype(int)).tolist() for each in pictures]
    maps = heat_maps(scorer, pictures, on_batch=on_batch)
    if maps is None:
        return [[Shown(_small(decode(each[at])), None, at) for at in some] for each, some in zip(pictures, wanted, strict=True)]
    seen, heat = maps if scorer.clips else (maps[0][:, None], maps[1][:, None])
    return [[Shown(_small(seen[n, at]), _small(overlay(seen[n, at], heat[n, at])), at) for at in some] for n, some in enumerate(wanted)]


def _small(rgb: np.ndarray) -> bytes:
    height, width = rgb.shape[:2]
    return encode(cut(rgb, (0, 0, width, height), max_side=SIDE), "small")


def explains(member: Member) -> bool:
    """Whether a model has maps before its last pooling, in whose places the score can be shared out."""
    return hasattr(member.model, "MAPS")


def drawn(scorer: Scorer) -> str:
    """Of several models, some of which have no maps, those that have; "" where the maps are of all."""
    with_maps = [member.name for member in scorer.members if explains(member)]
    return "" if len(with_maps) == len(scorer.members) else ", ".join(with_maps)


def heat_maps(
    scorer: Scorer, pictures: Sequence[Sequence[bytes]], *, on_batch: Callable[[float], None] = lambda share: None
) -> tuple[np.ndarray, np.ndarray] | None:
    """The pictures as the first of the models with maps sees them, uint8 [N,S,S,3] (of clips [N,T,S,S,3]), and their heat, float32 0..1 of
    the same size: what raised the logit, the hottest place of all pictures 1. None where no model has maps.

    pictures: encoded faces, one each, or the frames of each clip, as `Scorer.score` takes them. Of several models the maps are added as
    their logits are. on_batch: told after each batch which share of the work is done, 0 to 1; what it raises ends it.
    """
    members = [member for member in scorer.members if explains(member)]
    if not members or not pictures:
        return None
    faces = [torch.stack([torch.from_numpy(decode(one)).permute(2, 0, 1) for one in each]) for each in pictures]
    seen = _seen(members[0], faces)
    total = torch.zeros(())
    for number, member in enumerate(members):
        weight = member.weight / (1 if member.clips else len(faces[0]))  # a clip's logit is the mean of its frames'
        found = []
        for first, part in _heat(scorer, member, faces):
            found.append(part)
            on_batch((number + (first + len(part)) / len(faces)) / len(members))
        total = total + weight * functional.interpolate(torch.cat(found), seen.shape[-2:], mode="bilinear")
    total = total.clamp(min=0)
    heat: np.ndarray = (total / total.max().clamp(min=torch.finfo(torch.float32).tiny)).numpy()
    rgb = (seen.clamp(0, 1) * 255).round().to(torch.uint8).movedim(-3, -1).numpy()
    return (rgb, heat) if scorer.clips else (rgb[:, 0], heat[:, 0])


def overlay(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """uint8 [H,W,3] and float [H,W] in 0..1 -> uint8 [H,W,3]: cold places as they are, hot ones from violet to yellow."""
    colours = colormaps["plasma"](heat)[..., :3] * 255
    weight = _OPACITY * np.sqrt(heat)[..., None]
    mixed: np.ndarray = (picture * (1 - weight) + colours * weight).round().astype(np.uint8)
    return mixed


def _seen(member: Member, faces: Sequence[torch.Tensor]) -> torch.Tensor:
    """float32 [N,T,3,S,S], RGB in 0..1, of what a model is given."""
    way = transforms.evaluation(member.transform)
    return transforms.pixels(member.transform, torch.stack([way(each) for each in faces]))


def _heat(scorer: Scorer, member: Member, faces: Sequence[torch.Tensor]) -> Iterator[tuple[int, torch.Tensor]]:
    """By batch, which of the faces is its first, and float32 [n,T,h,w], below 0 for what spoke against a fake: Grad-CAM of the logit at the
    model's maps; those of fewer frames are stretched over all.
    """
    cam = LayerGradCam(member.model, member.model.get_submodule(str(member.model.MAPS)))
    way = transforms.evaluation(member.transform)
    step = _CLIPS if member.clips else max(1, _BATCH // len(faces[0]))
    for first in range(0, len(faces), step):
        clips = torch.stack([way(each) for each in faces[first : first + step]])
        n, t = clips.shape[:2]
        (images,) = to_device(clips if member.clips else clips.flatten(0, 1), torch.empty(0), scorer.device)
        heat = cam.attribute(images, relu_attributions=False).detach().float().cpu()
        if member.clips:
            heat = heat if heat.ndim == 5 else heat.unflatten(0, (n, -1)).transpose(1, 2)  # of a network that sees frame by frame
            yield first, functional.interpolate(heat, (t, *heat.shape[-2:]), mode="trilinear")[:, 0]
        else:
            yield first, heat.unflatten(0, (n, t))[:, :, 0]
