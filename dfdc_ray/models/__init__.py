"""The registry of models, and where their first weights come from.

Every model takes float32 [N,3,S,S], or clips [N,T,3,S,S], and returns logits [N]; sigmoid(logit) is the probability of fake. Its class says
where its pretrained weights come from (PRETRAINED: by name), what its input looks like (CHANNELS: mean and standard deviation of R, G and B
in 0..1; SIDE: the only S it takes, or None; CLIPS: whether it looks at clips; SOUND: whether it wants their sound too, float32 [N,T,3200]),
the prefixes of the parameters that depend on the task (HEAD: the first is its last layer), and the layer whose maps say where it looked
(MAPS: the last before they are pooled; evaluate/heat.py; a class without it has no such layer). A model that can begin with another one's
weights has `adapt(state)`, which renames them; one that must see training clips before its first step has `features(clips, sound)` and
`fit(features)`.
"""

import importlib
import pickle
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfdc_ray import storage
from dfdc_ray.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn

_CLASSES = {
    "resnet34": "resnet34.ResNet34",
    "efficientnet_lite0": "efficientnet_lite0.EfficientNetLite0",
    "meso4": "mesonet.Meso4",
    "mesoinception4": "mesonet.MesoInception4",
    "efficientnet_b4": "efficientnet_b4.EfficientNetB4",
    "efficientnet_b4_attention": "efficientnet_b4.EfficientNetB4Attention",
    "seresnext50": "seresnext50.SEResNeXt50",
    "r3d_18": "video_resnet.R3D18",
    "r2plus1d_18": "video_resnet.R2Plus1D18",
    "resnet34_3d": "video_resnet.ResNet34In3D",
    "framediff_frames": "framediff.FrameDiffFrames",
    "framediff_only": "framediff.FrameDiffOnly",
    "framediff_early": "framediff.FrameDiffEarly",
    "framediff_late": "framediff.FrameDiffLate",
    "chroma": "chroma.Chroma",
    "mfcc_lstm": "audiovisual.MfccLstm",
    "av_sync": "audiovisual.AVSync",
}
NAMES = tuple(_CLASSES)
NO_FILE = ("imagenet", "kinetics", "none")  # weights that are no file

_DOWNLOAD_TIMEOUT_S = 30.0  # without an answer; torch.hub itself would wait for ever


def create_model(name: str) -> "nn.Module":
    """A model with random weights from torch's generator. UserError if there is none of that name."""
    model: nn.Module = _class(name)()
    return model


def channels(name: str) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation of R, G and B in 0..1 that a model takes its input with. UserError if there is none of that name."""
    found: tuple[Sequence[float], Sequence[float]] = _class(name).CHANNELS
    return found


def takes_clips(name: str) -> bool:
    """Whether a model looks at clips, not at single frames. UserError if there is none of that name."""
    return bool(_class(name).CLIPS)


def takes_sound(name: str) -> bool:
    """Whether a model wants the sound of its clips too. UserError if there is none of that name."""
    return bool(getattr(_class(name), "SOUND", False))


def pretrained(name: str) -> str:
    """The first weights that can be had for a model: imagenet, kinetics, or none. UserError if there is none of that name."""
    return next(iter(_class(name).PRETRAINED), "none")


def only_side(name: str) -> int | None:
    """The only size that a model takes, pixels a side; None if it takes any. UserError if there is none of that name."""
    side: int | None = _class(name).SIDE
    return side


def check_side(name: str, side: int) -> None:
    """UserError if the model does not take pictures of so many pixels a side."""
    only = only_side(name)
    if side != (only or side):
        raise UserError(f"--model {name} takes pictures of {only} pixels a side alone: give --image-size {only}.")


def _class(name: str) -> Any:
    if name not in _CLASSES:
        raise UserError(f"--model {name}: there is no such model. Known: {', '.join(NAMES)}.")
    module, found = _CLASSES[name].split(".")
    return getattr(importlib.import_module(f"dfdc_ray.models.{module}"), found)


def load_weights(model: "nn.Module", weights: str) -> None:
    """Fill the model in place: "imagenet", "kinetics", "none" (leave it as it is), or the path or URI of a state dict (.safetensors, .pth).

    The head is taken over if its shape fits and else stays as it is. UserError names what is missing, unexpected or of another shape.
    """
    if weights == "none":
        return
    state = _pretrained(model, weights) if weights in NO_FILE else _read(weights)
    if hasattr(model, "adapt"):
        state = model.adapt(state)  # type: ignore[operator]
    head: tuple[str, ...] = model.HEAD  # type: ignore[assignment]
    own = model.state_dict()
    state = {k: v for k, v in state.items() if not (k.startswith(head) and (k not in own or own[k].shape != v.shape))}
    others = [k for k, v in state.items() if k in own and own[k].shape != v.shape]
    problems = [
        *(f"missing: {k}" for k in own if k not in state and not k.startswith(head)),
        *(f"unexpected: {k}" for k in state if k not in own),
        *(f"shape of {k}: {tuple(state[k].shape)}, the model has {tuple(own[k].shape)}" for k in others),
    ]
    if problems:
        more = [f"and {len(problems) - 8} more"] if len(problems) > 8 else []
        raise UserError(f"--weights {weights} does not fit {type(model).__name__}:\n  " + "\n  ".join(problems[:8] + more))
    model.load_state_dict(state, strict=False)


def restore(model: "nn.Module", weights: "Mapping[str, torch.Tensor]", uri: str, advice: str) -> None:
    """Fill the model in place, as a checkpoint at `uri` has it whole. UserError, with advice, where that is of another model or version."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{uri}: the weights do not fit {type(model).__name__} ({error}). {advice}") from error


def _pretrained(model: "nn.Module", weights: str) -> "Mapping[str, torch.Tensor]":
    """Those that a package carries; or torchvision's or timm's, fetched at most once on a machine: the others wait at a lock, then find the
    file. Its name holds the beginning of its SHA-256, which torch.hub checks.
    """
    import torch
    from filelock import FileLock
    from torchvision.models import WeightsEnum

    known: Mapping[str, Any] = model.PRETRAINED  # type: ignore[assignment]
    if weights not in known:
        there = f"there are {' and '.join(known)}" if known else "there are none"
        raise UserError(f"--weights {weights}: of {type(model).__name__} {there}. --weights none trains from scratch; a file is taken too.")
    source = known[weights]
    if callable(source):
        packaged: Mapping[str, torch.Tensor] = source()
        return packaged
    url = source.url if isinstance(source, WeightsEnum) else source
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    timeout = socket.getdefaulttimeout()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):
            socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT_S)
            return torch.hub.load_state_dict_from_url(url, progress=False, check_hash=True, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:  # no network, or a damaged file
        raise UserError(
            f"The pretrained weights could not be loaded ({error}).\n"
            f"With a network they are fetched from {url}\n"
            f"Without one, place that file at {file}\n"
            "or anywhere else and give --weights FILE; --weights none trains from scratch."
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def _read(uri: str) -> "Mapping[str, torch.Tensor]":
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    advice = "Give imagenet, kinetics, none, or a state dict saved as .safetensors or .pth."
    try:
        with storage.open_input(uri) as file:
            state = load(file.read()) if uri.endswith(".safetensors") else torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"--weights {uri}: there is no such file. {advice}") from error
    except (SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"--weights {uri} cannot be read ({error}). {advice}") from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise UserError(f"--weights {uri} holds no plain state dict (names and tensors). {advice}")
    return state
