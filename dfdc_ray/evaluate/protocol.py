"""What must be known before and beside the numbers of an evaluation: on what they were taken, how, and what they do not say."""

import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from dfdc_ray import __version__
from dfdc_ray.config import EvaluateConfig
from dfdc_ray.corpus import splits
from dfdc_ray.evaluate.aggregate import describe
from dfdc_ray.evaluate.members import FREE, OF_CLIPS
from dfdc_ray.evaluate.metrics import LOG_LOSS_EPS, THRESHOLD
from dfdc_ray.evaluate.report import JudgedVideo
from dfdc_ray.evaluate.scorer import Scorer, weights_of
from dfdc_ray.evaluate.videos import SplitVideos
from dfdc_ray.shards.manifest import Manifest

GENERATED = "drawn_"  # how the methods of the generated corpus begin


def _one_each(manifest: Manifest) -> bool:
    """Whether no video has two frames."""
    return bool(manifest.config.get("frames") == manifest.config.get("real_multiplier") == 1)


def warnings_of(config: EvaluateConfig, scorer: Scorer, manifest: Manifest, videos: SplitVideos) -> tuple[str, ...]:
    """What must be known before any number."""
    trained, clips, found = scorer.faces_config, scorer.clips, []
    if by := manifest.config.get("regrouped_by"):
        found.append(
            f"A SPLIT THAT LEAKS, to show what that does to numbers: by {by}, so that the same people"
            + (" and frames of the same videos" if by == "frame" and not _one_each(manifest) else "")
            + " may be in training and here. Intervals take what belongs together for independent. The model is not for use."
        )
    if config.split == "train":
        found.append("TRAINING DATA: the model was fitted to these very videos. This says nothing about videos that it has not seen.")
    if config.split == "validation":
        found.append("VALIDATION DATA: the checkpoint was chosen by it, so it looks better here than on new videos. Report the test split.")
    if any((videos.methods.get(row["video_id"]) or "").startswith(GENERATED) for row in videos.labelled):
        found.append("GENERATED CORPUS: these faces are drawn. This says nothing about real fakes.")
    strangers = {group.partition("/")[0] for group in videos.groups} - {g.partition("/")[0] for g in scorer.config["train_groups"]}
    if strangers:
        found.append(
            f"ANOTHER CORPUS than those of training ({', '.join(sorted(strangers))}): its groups have other names, so that nothing but you "
            "says that the same people are not in both. --training-faces looks for the same pictures."
        )
    if alone := sum(map(splits.only_family, videos.groups)):
        orphans = sum(row["label"] == "FAKE" and videos.families[row["video_id"]] == row["video_id"] for row in videos.labelled)
        found.append(
            f"PEOPLE MAY RECUR: {alone} of the {len(videos.groups)} groups are an original and its fakes, and nobody said who is in them: "
            "the same people may be in training, which makes the numbers too good."
            + (f" Of {orphans} fakes the original is not known, and may be in training itself." if orphans else "")
        )
    differing = [
        f"{name} {trained.get(name)} in training, {manifest.config.get(name)} here"
        for name in sorted(trained.keys() | manifest.config.keys())
        if (name not in FREE or (clips and name in OF_CLIPS)) and trained.get(name) != manifest.config.get(name)
    ]
    if differing:
        found.append(f"These faces were made in another way than those of training: {'; '.join(differing)}.")
    return tuple(found)


def in_short(protocol: Mapping[str, Any]) -> str:
    """What a table on a console says of how its numbers were taken."""
    split = protocol["split_rule"] if protocol["split"] == "all" else f"the {protocol['split']} split of {protocol['split_rule']}"
    return (
        f"{split}; {protocol['frames_used']}; checkpoint of the {protocol['checkpoint_rule']}, epoch {protocol['checkpoint_epoch']}; "
        f"data hash {protocol['data_hash'][:12]}"
    )


def protocol(
    config: EvaluateConfig, scorer: Scorer, manifest: Manifest, videos: Sequence[JudgedVideo], *, frames_scored: int
) -> dict[str, Any]:
    """What the numbers were taken on, and how: plain JSON values, in the order in which a reader wants them."""
    checkpoint, faces = scorer.config, manifest.config
    of_clips = faces["sampling"] == "clips"
    return {
        "checkpoint": ", ".join(config.checkpoint),
        "checkpoint_rule": checkpoint["selection"],
        "checkpoint_epoch": checkpoint["epoch"],
        "model": checkpoint["model"],
        "faces": config.faces,
        "data_hash": manifest.data_hash,
        "data_hash_of_training": checkpoint["data_hash"],
        "split": config.split,
        "split_rule": splits.describe(checkpoint["split"]) + ("; not asked here: every labelled video" if config.split == "all" else ""),
        "groups": len({v.group_id for v in videos}),
        "videos": len(videos),
        "videos_scored": sum(v.score is not None for v in videos),
        "sampling": faces["sampling"],
        **({"clips_per_video": faces["clips"], "frames_per_clip": faces["frames"]} if of_clips else {"frames_per_video": faces["frames"]}),
        "frames_used": f"core clips only, each of {faces['frames']} frames and counted as one" if scorer.clips else "core frames only",
        "frames_sampled": sum(v.frames_sampled for v in videos),
        "frames_scored": frames_scored,
        "aggregation": describe(scorer.rule),
        "calibration": f"{scorer.calibration.describe()}; by video alone: scores of frames are as the model gives them"
        if scorer.calibration
        else "none: `dfdc-ray calibrate` fits one on validation",
        "threshold": THRESHOLD,
        "log_loss_clipping": LOG_LOSS_EPS,
        "without_a_face": "counts at the training prior, by video; not in the numbers by frame",
        "train_prior": checkpoint["prior"],
        "device": str(scorer.device),
        "versions": {"python": platform.python_version(), "dfdc-ray": __version__}
        | {name: version(name) for name in ("torch", "torchvision", "torchmetrics", "numpy", "pyarrow")},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "configuration": {
            "weights_sha256": weights_of(checkpoint),
            "faces": faces,
            **{name: checkpoint[name] for name in ("transform", "members", "train_config") if name in checkpoint},
        },
    }
