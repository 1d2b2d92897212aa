"""The models of a checkpoint: one, or several whose logits are added (`dfdc-ray combine`).

A combination is a checkpoint folder like any other. Its config.json has `members`, each with its model, transform and weight, and `bias`;
its model.safetensors has the weights of member k under `k.`. Groups that any member was trained on or chosen by are its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from dfdc_ray.errors import UserError
from dfdc_ray.models import create_model, takes_clips
from dfdc_ray.train import checkpoint

FREE = ("sampling", "frames", "clips", "real_multiplier")  # of the faces' configuration, what may differ without changing a face


@dataclass(frozen=True)
class Member:
    """One of the models that score: its name in dfdc_ray.models, its transform (transforms.recipe), the weight of its logits in the sum."""

    name: str
    model: torch.nn.Module
    transform: dict[str, Any]
    weight: float = 1.0

    @property
    def clips(self) -> bool:
        """Whether it looks at clips."""
        return takes_clips(self.name)


@dataclass(frozen=True)
class Members:
    """What a checkpoint scores with: the sum of the members' weighted logits and the bias. config: its config.json."""

    members: tuple[Member, ...]
    bias: float
    config: dict[str, Any]


def load_members(uri: str) -> Members:
    """UserError when there is no such checkpoint, or it is damaged or of another version."""
    loaded = checkpoint.load(uri)
    parts = loaded.config.get("members")
    if parts is None:
        model, config = checkpoint.load_model(uri)
        return Members((Member(config["model"], model, config["transform"]),), 0.0, config)
    members = []
    for number, part in enumerate(parts):
        model, prefix = create_model(part["model"]), f"{number}."
        try:
            model.load_state_dict({name.removeprefix(prefix): w for name, w in loaded.weights.items() if name.startswith(prefix)})
        except RuntimeError as error:
            raise UserError(f"{uri}: the weights do not fit {part['model']} ({error}). Combine again with this version.") from error
        members.append(Member(part["model"], model.eval(), part["transform"], part["weight"]))
    return Members(tuple(members), loaded.config["bias"], loaded.config)


def combined(checkpoints: Sequence[Members], weights: Sequence[float], bias: float, *, how: str) -> Members:
    """The weighted sum of checkpoints' logits, and the bias. UserError where they do not go together."""
    configs = [each.config for each in checkpoints]
    _check_alike(configs)
    members = [
        replace(member, weight=weight * member.weight) for weight, each in zip(weights, checkpoints, strict=True) for member in each.members
    ]
    bias += sum(weight * each.bias for weight, each in zip(weights, checkpoints, strict=True))
    first = configs[0]
    config = {
        "model": f"{how} of {', '.join(c['model'] for c in configs)}",
        "members": [{"model": m.name, "transform": m.transform, "weight": m.weight} for m in members],
        "bias": bias,
        "split": first["split"],
        "train_groups": sorted(set().union(*(c["train_groups"] for c in configs))),
        "validation_groups": sorted(set().union(*(c["validation_groups"] for c in configs))),
        "prior": sum(c["prior"] for c in configs) / len(configs),
        "data_hash": _one_or_all(configs, "data_hash"),
        "faces_config": first["faces_config"],
        "selection": _one_or_all(configs, "selection"),
        "epoch": ", ".join(str(c["epoch"]) for c in configs),
        "versions": first["versions"],
    }
    return Members(tuple(members), bias, config)


def mean(checkpoints: Sequence[Members]) -> Members:
    """The mean of the checkpoints' logits (the ensemble of Bonettini et al. 2020, https://arxiv.org/abs/2004.07676)."""
    return combined(checkpoints, [1 / len(checkpoints)] * len(checkpoints), 0.0, how="mean of logits")


def save(uri: str, members: Members) -> None:
    """Write a combination as a checkpoint folder."""
    weights = {f"{k}.{name}": w for k, member in enumerate(members.members) for name, w in member.model.state_dict().items()}
    checkpoint.save(uri, weights=weights, config=members.config, state=None)


def _check_alike(configs: Sequence[dict[str, Any]]) -> None:
    first = configs[0]
    for other in configs[1:]:
        if other["split"] != first["split"]:
            raise UserError(
                f"The checkpoints were trained by different splits ({first['split']} and {other['split']}): what one was trained on would "
                "judge the other. Combine checkpoints of one split."
            )
        faces = [{k: v for k, v in c["faces_config"].items() if k not in FREE} for c in (first, other)]
        if faces[0] != faces[1]:
            differing = [k for k in sorted(faces[0].keys() | faces[1].keys()) if faces[0].get(k) != faces[1].get(k)]
            raise UserError(f"The checkpoints' faces were made in different ways ({', '.join(differing)}): no video's faces suit both.")


def _one_or_all(configs: Sequence[dict[str, Any]], name: str) -> str:
    return "; ".join(dict.fromkeys(str(c[name]) for c in configs))
