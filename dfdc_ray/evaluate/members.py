"""The models of a checkpoint: one, or several whose logits are added (`dfdc-ray combine`).

A combination is a checkpoint folder like any other. Its config.json has `members`, each with its model, transform and weight, and `bias`;
its model.safetensors has the weights of member k under `k.`. Groups that any member was trained on or chosen by are its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from dfdc_ray.errors import UserError
from dfdc_ray.models import create_model, restore, takes_clips, takes_sound
from dfdc_ray.train import checkpoint

# Of the faces' configuration, what may differ without changing a face; and what of it matters to a model that looks at clips.
FREE = ("sampling", "frames", "clips", "stride", "real_multiplier", "sound", "landmarks")
OF_CLIPS = ("sampling", "frames", "stride")
_NEEDED = ("split", "train_groups", "validation_groups", "prior", "data_hash", "faces_config", "selection", "epoch", "versions")


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

    @property
    def sound(self) -> bool:
        """Whether it listens."""
        return takes_sound(self.name)


@dataclass(frozen=True)
class Members:
    """What a checkpoint scores with: the sum of the members' weighted logits and the bias. config: its config.json."""

    members: tuple[Member, ...]
    bias: float
    config: dict[str, Any]

    @property
    def clips(self) -> bool:
        """Whether a member looks at clips."""
        return any(member.clips for member in self.members)

    @property
    def sound(self) -> bool:
        """Whether a member listens."""
        return any(member.sound for member in self.members)


def load_members(uri: str) -> Members:
    """UserError when there is no such checkpoint, or it is damaged or of another version."""
    loaded = checkpoint.load(uri)
    config = loaded.config
    parts = {f"{number}.": part for number, part in enumerate(config["members"])} if "members" in config else {"": config}
    members = []
    for prefix, part in parts.items():
        model = create_model(part["model"])
        weights = {name.removeprefix(prefix): w for name, w in loaded.weights.items() if name.startswith(prefix)}
        restore(model, weights, uri, "Make it again with this version.")
        members.append(Member(part["model"], model.eval(), part["transform"], part.get("weight", 1.0)))
    return Members(tuple(members), config.get("bias", 0.0), config)


def combined(checkpoints: Sequence[Members], weights: Sequence[float], bias: float, *, how: str) -> Members:
    """The weighted sum of checkpoints' logits, and the bias. UserError where they do not go together."""
    configs = [each.config for each in checkpoints]
    _check_alike(checkpoints)
    members = [
        replace(member, weight=weight * member.weight) for weight, each in zip(weights, checkpoints, strict=True) for member in each.members
    ]
    bias += sum(weight * each.bias for weight, each in zip(weights, checkpoints, strict=True))
    rules = [c["rule"] for c in configs if "rule" in c]  # by which members that are logistic combinations were fitted: there is one
    first = next((each for each in checkpoints if each.clips), checkpoints[0]).config  # whose faces suit all
    config = {
        "model": f"{how} of {', '.join(c['model'] for c in configs)}",
        "members": [{"model": m.name, "transform": m.transform, "weight": m.weight} for m in members],
        "bias": bias,
        "split": first["split"],
        **{name: sorted(set().union(*(c.get(name, ()) for c in configs))) for name in checkpoint.SEEN if name != "split"},
        "prior": sum(c["prior"] for c in configs) / len(configs),
        "data_hash": _one_or_all(configs, "data_hash"),
        "faces_config": first["faces_config"],
        "selection": _one_or_all(configs, "selection"),
        "epoch": ", ".join(str(c["epoch"]) for c in configs),
        "versions": first["versions"],
        **({"rule": rules[0]} if rules else {}),
        "files": {"model.safetensors": "; ".join(dict.fromkeys(c["files"]["model.safetensors"] for c in configs))},  # until it is saved
    }
    return Members(tuple(members), bias, config)


def mean(checkpoints: Sequence[Members]) -> Members:
    """The mean of the checkpoints' logits (the ensemble of Bonettini et al. 2020, https://arxiv.org/abs/2004.07676)."""
    return combined(checkpoints, [1 / len(checkpoints)] * len(checkpoints), 0.0, how="mean of logits")


def save(uri: str, members: Members) -> None:
    """Write a combination as a checkpoint folder. Its sum is among the weights too, so that a calibration knows it by their hash."""
    weights = {f"{k}.{name}": w for k, member in enumerate(members.members) for name, w in member.model.state_dict().items()}
    weights["sum"] = torch.tensor([*(member.weight for member in members.members), members.bias], dtype=torch.float64)
    checkpoint.save(uri, weights=weights, config=members.config, state=None)


def _check_alike(checkpoints: Sequence[Members]) -> None:
    for each in checkpoints:
        if absent := [name for name in _NEEDED if name not in each.config]:
            raise UserError(f"A checkpoint of {each.config['model']} is of an older version, without {', '.join(absent)}: train it again.")
    first = checkpoints[0].config
    for each in checkpoints[1:]:
        if each.config["split"] != first["split"]:
            raise UserError(
                f"The checkpoints were trained by different splits ({first['split']} and {each.config['split']}): what one was trained on "
                "would judge the other. Combine checkpoints of one split."
            )
    everywhere = {name for each in checkpoints for name in each.config["faces_config"]} - set(FREE)
    for names, those in ((everywhere, checkpoints), (OF_CLIPS, [each for each in checkpoints if each.clips])):
        differing = [name for name in sorted(names) if len({str(each.config["faces_config"].get(name)) for each in those}) > 1]
        if differing:
            raise UserError(f"The checkpoints' faces were made in different ways ({', '.join(differing)}): no video's faces suit all.")


def _one_or_all(configs: Sequence[dict[str, Any]], name: str) -> str:
    return "; ".join(dict.fromkeys(str(c[name]) for c in configs))
