"""Pictures of what a model looks at: attention, differences of frames, the motion of colour. `dfdc-ray predict VIDEO --maps DIR`"""

import hashlib
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.nn import functional

from dfdc_ray import storage
from dfdc_ray.errors import UserError
from dfdc_ray.evaluate import plots
from dfdc_ray.evaluate.members import Member
from dfdc_ray.evaluate.scorer import Scorer
from dfdc_ray.faces.crop import decode
from dfdc_ray.models.chroma import chroma_maps
from dfdc_ray.serve.judge import Evidence
from dfdc_ray.train import transforms

MOST = 8  # pictures in a row
_LOUDER, _COLOURS = 4.0, 8.0  # times what differences and colours are shown stronger

Row = tuple[str, np.ndarray]  # what it is, and float [n,h,w] or [n,h,w,3] in 0..1


def shows(scorer: Scorer) -> bool:
    """Whether there is anything to show."""
    return scorer.clips or any(_attends(member) for member in scorer.members)


def check(scorer: Scorer) -> None:
    """UserError if there is nothing to show."""
    if not shows(scorer):
        raise UserError(
            f"--maps: {scorer.config['model']} has no maps of its own. Attention is of efficientnet_b4_attention; differences and colours "
            "are of models that look at clips."
        )


def name_of(uri: str, suffix: str = ".png") -> str:
    """The name of a video's picture or page; two videos of one name have two."""
    stem = "".join(c if c.isalnum() or c in "-_" else "_" for c in PurePosixPath(uri).stem)
    return f"{stem}-{hashlib.sha256(uri.encode()).hexdigest()[:6]}{suffix}"


def write(scorer: Scorer, evidence: Evidence, folder: str) -> None:
    """The picture of a scored video, into a folder or s3:// prefix; none of a video without a score."""
    if evidence.pictures:
        uri = evidence.video.uri
        storage.write_bytes(storage.join(folder, name_of(uri)), draw(scorer, evidence, title=PurePosixPath(uri).name))


def draw(scorer: Scorer, evidence: Evidence, *, title: str) -> bytes:
    """PNG bytes: what there is to see in the faces of a scored video with the highest scores, or in the clip with the highest."""
    pictures, scores, times = evidence.pictures, evidence.scores, [row["time_s"] for row in evidence.rows]
    if scorer.clips:
        best = evidence.deciding[0]
        said = f"{title}: the clip from {times[best]:.2f} s on, score {scores[best]:.3f}"
        return plots.png(_sheet(_of_clip(scorer, pictures[best]), captions=(), title=said))
    chosen = sorted(evidence.deciding[:MOST])
    captions = [f"{times[i]:.2f} s\n{scores[i]:.3f}" for i in chosen]
    faces = [_tensor(pictures[i][0]) for i in chosen]
    rows = [row for member in scorer.members if _attends(member) for row in _attention(scorer, member, faces)]
    return plots.png(_sheet(rows, captions=captions, title=f"{title}: the faces with the highest scores"))


def _of_clip(scorer: Scorer, pictures: Sequence[bytes]) -> list[Row]:
    clip = torch.stack([_tensor(picture) for picture in pictures])
    shown = np.unique(np.linspace(0, len(clip) - 1, MOST).round().astype(int))
    member = next(member for member in scorer.members if member.clips)
    seen = transforms.pixels(member.transform, transforms.evaluation(member.transform)(clip))
    before = torch.cat([seen[:1], seen[:-1]])
    colours = chroma_maps(seen[None])[0]
    rows: list[Row] = [
        (f"frames, as {member.name} sees them", _rgb(seen)),
        (f"difference from the frame before, {_LOUDER:g} times", _rgb(0.5 + _LOUDER * (seen - before))),
        ("colour: own change in red and blue", _rgb(_red_and_blue(colours[:, :2]))),
        ("colour: against the regions around", _rgb(_red_and_blue(colours[:, 2:]))),
    ]
    attending = [row for member in scorer.members if _attends(member) for row in _attention(scorer, member, list(clip))[1:]]
    return [(what, values[shown]) for what, values in (*rows, *attending)]


def _attends(member: Member) -> bool:
    return hasattr(member.model, "attention")


@torch.inference_mode()
def _attention(scorer: Scorer, member: Member, faces: Sequence[torch.Tensor]) -> list[Row]:
    """The faces as the model sees them, and the same under its attention."""
    way = transforms.evaluation(member.transform)
    images = torch.stack([way(face) for face in faces])
    found: list[torch.Tensor] = []
    hook = member.model.get_submodule("attention").register_forward_hook(lambda _, __, out: found.append(torch.sigmoid(out)))
    try:
        scorer.logits(member, images)
    finally:
        hook.remove()
    seen = transforms.pixels(member.transform, images)
    maps = functional.interpolate(found[0].float().cpu(), seen.shape[-2:], mode="bilinear")
    low, high = maps.amin(), maps.amax()
    weight = (maps - low) / (high - low).clamp(min=1e-6)
    heat = torch.cat([weight, 0.4 * weight, 0 * weight], dim=1)
    return [
        (f"faces, as {member.name} sees them", _rgb(seen)),
        (f"its attention, dark {float(low):.2f} to bright {float(high):.2f}", _rgb(0.5 * seen.mean(1, keepdim=True) + 0.5 * heat)),
    ]


def _red_and_blue(ratios: torch.Tensor) -> torch.Tensor:
    """[T,2,R,R] -> RGB in 0..1: grey where nothing changes; more or less red and blue where the ratios to green do."""
    red, blue = 0.5 + _COLOURS * ratios[:, :1], 0.5 + _COLOURS * ratios[:, 1:]
    return torch.cat([red, torch.full_like(red, 0.5), blue], dim=1)


def _tensor(picture: bytes) -> torch.Tensor:
    return torch.from_numpy(decode(picture)).permute(2, 0, 1)


def _rgb(images: torch.Tensor) -> np.ndarray:
    return images.clamp(0, 1).permute(0, 2, 3, 1).numpy()


def _sheet(rows: Sequence[Row], *, captions: Sequence[str], title: str) -> Figure:
    columns = max(len(values) for _, values in rows)
    figure = Figure(figsize=(max(5.0, 1.3 * columns), 0.5 + 1.55 * len(rows)), dpi=110, layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for line, (what, values) in zip(grid, rows, strict=True):
        for axes, picture in zip(line, values, strict=False):
            axes.imshow(picture, interpolation="nearest")
        line[0].set_title(what, fontsize=8, loc="left")
    for axes, caption in zip(grid[-1], captions, strict=False):
        axes.text(0.5, -0.04, caption, transform=axes.transAxes, ha="center", va="top", fontsize=7)
    figure.suptitle(title, fontsize=9, x=0.01, ha="left", parse_math=False)
    return figure
