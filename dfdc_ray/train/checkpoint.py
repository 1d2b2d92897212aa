"""Checkpoints: folders that are there whole or not at all, and say themselves whether they are intact.

    model.safetensors   weights; in its header what they were trained on and chosen by, which so goes wherever the file goes
    config.json         everything needed to use the model and to judge it; SHA-256 of the other files
    state.pt            what resuming needs besides (absent from `best`): optimizer and sums, loaded as weights only

Locally a folder is written under another name and renamed. On S3, which renames nothing, config.json is written last; a folder without it
does not count as a checkpoint, and one whose files do not match it is refused.
"""

import hashlib
import io
import itertools
import json
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dfdc_ray import storage
from dfdc_ray.console import console
from dfdc_ray.errors import UserError

if TYPE_CHECKING:
    import torch

FORMAT = 1
SEEN = ("train_groups", "validation_groups", "train_families", "validation_families", "split")
"""Of config.json, what the weights' own header says too."""
_HEADER, _MOST = "dfdc_ray", 100_000_000  # bytes: safetensors' own limit of a header


@dataclass(frozen=True)
class Checkpoint:
    """config.json and the weights, verified; `state` is state.pt where it was asked for."""

    uri: str
    config: dict[str, Any]
    weights: "dict[str, torch.Tensor]"
    state: dict[str, Any] | None


def save(uri: str, *, weights: "dict[str, torch.Tensor]", config: dict[str, Any], state: dict[str, Any] | None) -> None:
    """Write a checkpoint folder, replacing the one that is there."""
    from safetensors.torch import save as to_bytes

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    seen = {name: config[name] for name in SEEN if name in config}
    files = {"model.safetensors": to_bytes(tensors, {_HEADER: json.dumps(seen)})}
    if state is not None:
        files["state.pt"] = _torch_bytes(state)
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    files["config.json"] = json.dumps({"format": FORMAT, **config, "files": sums}, indent=1).encode()
    if storage.is_s3(uri):
        for name, data in files.items():  # config.json is the last
            storage.write_bytes(storage.join(uri, name), data)
        return
    target = storage.absolute(uri)
    new, old = _beside(target, "new"), _beside(target, "old")
    shutil.rmtree(new, ignore_errors=True)
    for name, data in files.items():
        storage.write_bytes(storage.join(new, name), data)
    if os.path.exists(target):
        shutil.rmtree(old, ignore_errors=True)
        os.rename(target, old)
    os.rename(new, target)
    shutil.rmtree(old, ignore_errors=True)


def mend(uri: str) -> None:
    """Put back a folder whose replacement was cut off between its two renames, and clear away half-written ones."""
    if storage.is_s3(uri):
        return
    target = storage.absolute(uri)
    old = _beside(target, "old")
    if os.path.exists(old) and not os.path.exists(target):
        os.rename(old, target)
    for leftover in (old, _beside(target, "new")):
        shutil.rmtree(leftover, ignore_errors=True)


def load(uri: str, *, with_state: bool = False) -> Checkpoint:
    """Read and verify a checkpoint. UserError when there is none, or it is damaged, or of another format."""
    import torch
    from safetensors.torch import load as from_bytes

    try:
        config = json.loads(storage.read_bytes(storage.join(uri, "config.json")))
        if config["format"] != FORMAT:
            raise UserError(f"{uri} has checkpoint format {config['format']!r}, but {FORMAT} is the one read here. Train again.")
        weights = from_bytes(_verified(uri, "model.safetensors", config["files"]["model.safetensors"]))
        state = None
        if with_state:
            state = torch.load(io.BytesIO(_verified(uri, "state.pt", config["files"]["state.pt"])), map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{uri} is not a whole checkpoint ({error}). Give a folder such as OUT/best of `dfdc-ray train`.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{uri}/config.json is damaged ({error!r}). Use another checkpoint, or train again.") from error
    return Checkpoint(uri, config, weights, state)


def seen_by(uri: str) -> dict[str, Any]:
    """What a file of weights says of itself, `SEEN`; empty if it is not of our training, or no safetensors file.

    Format: 8 bytes with the length of a JSON header, little-endian, then the header (https://huggingface.co/docs/safetensors).
    """
    with storage.open_input(uri) as file:
        size = int.from_bytes(file.read(8), "little")
        if not uri.endswith(".safetensors") or size > _MOST:
            return {}
        try:
            found: dict[str, Any] = json.loads(json.loads(file.read(size)).get("__metadata__", {}).get(_HEADER, "{}"))
        except (ValueError, AttributeError, TypeError):
            return {}  # loading the weights says what is wrong
    return found


def newest(folder: str) -> Checkpoint | None:
    """The intact checkpoint of the highest step, with its state; None if there is none. Broken ones are named and passed by."""
    for name in steps(folder):
        try:
            return load(storage.join(folder, name), with_state=True)
        except UserError as error:
            console.print(f"Passing by a broken checkpoint: {error}", highlight=False, soft_wrap=True, markup=False)
    return None


def step_name(step: int) -> str:
    """Folder name of the checkpoint after so many steps."""
    return f"step-{step:09d}"


def prune(folder: str, *, last: str, keep: int) -> None:
    """Delete all but the newest whole checkpoints up to the one just saved, `last`, and what a writer that was killed left half-written.

    Those of higher steps are broken: `newest` passed them by. Kept, they would be counted in place of intact ones.
    """
    unfinished = [entry.name for entry in storage.list_dir(folder) if entry.name.startswith(".step-")]
    found = steps(folder)
    whole = (name for name in found if name <= last and storage.exists(storage.join(folder, name, "config.json")))  # which comes last
    kept = list(itertools.islice(whole, keep))
    for name in [name for name in found if name not in kept] + unfinished:
        storage.delete(storage.join(folder, name))


def steps(folder: str) -> list[str]:
    """Names of the checkpoint folders, newest first."""
    if not storage.exists(folder):
        return []
    return sorted((e.name for e in storage.list_dir(folder) if e.is_dir and e.name.startswith("step-")), reverse=True)


def _verified(uri: str, name: str, sha256: str) -> bytes:
    data = storage.read_bytes(storage.join(uri, name))
    if hashlib.sha256(data).hexdigest() != sha256:
        raise UserError(f"{uri}/{name} is damaged or just being replaced (its SHA-256 is another). Try again, or use another checkpoint.")
    return data


def _beside(path: str, suffix: str) -> str:
    """A hidden name in the same folder, so that a rename stays within one filesystem."""
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.{suffix}")


def _torch_bytes(state: dict[str, Any]) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()
