"""Which videos an evaluation is about: all labelled ones of a split, also those without a face, and none that was trained on."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dfdc_ray import storage
from dfdc_ray.config import Judged
from dfdc_ray.corpus import splits
from dfdc_ray.errors import UserError
from dfdc_ray.shards.manifest import read_ledger

_COLUMNS = ["video_id", "family_id", "group_id", "part", "label", "method"]
_NOT_DONE = {"status": "not_done", "stage": None, "error": "preprocess was interrupted before it", "core_decoded": 0}


@dataclass(frozen=True)
class SplitVideos:
    """Ledger rows of the labelled videos, in order of video_id; how many of the folder have no label; methods and families by video_id."""

    labelled: list[dict[str, Any]]
    unlabelled: int
    methods: Mapping[str, str | None]
    families: Mapping[str, str]

    @property
    def groups(self) -> set[str]:
        return {row["group_id"] for row in self.labelled}

    @property
    def labels(self) -> np.ndarray:
        """int64 [V]: 0 real, 1 fake."""
        return np.array([row["label"] == "FAKE" for row in self.labelled], dtype=np.int64)

    @property
    def group_ids(self) -> np.ndarray:
        """str [V]."""
        return np.array([row["group_id"] for row in self.labelled], dtype=str)

    @property
    def family_ids(self) -> np.ndarray:
        """str [V]."""
        return np.array([self.families[row["video_id"]] for row in self.labelled], dtype=str)

    @property
    def sampled(self) -> dict[str, int]:
        """Core frames that could be decoded, by video_id."""
        return {row["video_id"]: row["core_decoded"] for row in self.labelled}


def split_videos(faces: str, rule: str, split: Judged) -> SplitVideos:
    """The videos of a faces folder that are in this split by the rule (all: the labelled ones). UserError if none is."""
    ledger = {row["video_id"]: row for row in read_ledger(faces).to_pylist()}
    index = _index(faces)
    rows = [ledger.get(row["video_id"], row | _NOT_DONE) for row in index]
    known = [row for row in rows if row["label"] is not None]  # Kaggle's test_videos have neither label nor part: no rule can place them
    methods, families = ({row["video_id"]: row[name] for row in index} for name in ("method", "family_id"))
    if split == "all" and known:
        return SplitVideos(known, len(rows) - len(known), methods, families)
    try:
        assigned = splits.assign(rule, [row["group_id"] for row in known], [row["part"] for row in known])
    except UserError as error:
        raise UserError(
            f"{faces}: {error} The rule is the checkpoint's: give --split all, which judges every video, by no rule."
        ) from error
    labelled = [row for row, of in zip(known, assigned, strict=True) if of == split]
    if not labelled:
        counts = ", ".join(f"{name} {assigned.count(name)}" for name in splits.SPLITS)
        raise UserError(
            f"no labelled video of {faces} is in the {split} split by the checkpoint's rule {rule} (videos: {counts}). "
            "Give another --split, or a faces folder with more groups."
        )
    return SplitVideos(labelled, len(rows) - len(known), methods, families)


def fitting_videos(faces: str, checkpoint: Mapping[str, Any], *, uri: str) -> SplitVideos:
    """The validation videos that something may be fitted to: those of groups that the checkpoint says it was chosen by.

    No others, since `evaluate` would then judge by them: it knows only the groups that the checkpoint says. UserError if there are none,
    or one was trained on.
    """
    videos = split_videos(faces, checkpoint["split"], "validation")
    refuse_trained_on(videos, checkpoint, split="validation", faces=faces, uri=uri)
    if "validation_groups" not in checkpoint:  # of an older version
        return videos
    known = set(checkpoint["validation_groups"])
    labelled = [row for row in videos.labelled if row["group_id"] in known]
    if not labelled:
        raise UserError(f"No validation video of {faces} is of a group that {uri} was chosen by: give the --faces of its training.")
    return replace(videos, labelled=labelled)


def refuse_trained_on(videos: SplitVideos, checkpoint: Mapping[str, Any], *, split: Judged, faces: str, uri: str) -> None:
    """UserError if a group or family of these videos is in the checkpoint's record of what it was trained on or (test, all) chosen by.

    Families besides groups, since the same videos may have been given other groups.
    """
    ways = {"train": "trained on"} | ({"validation": "chosen by"} if split in ("test", "all") else {})
    those_of = {"groups": videos.groups, "families": set(videos.family_ids.tolist())}
    for (kind, there), (record, how) in itertools.product(those_of.items(), ways.items()):
        if seen := sorted(there & set(checkpoint.get(f"{record}_{kind}", ()))):
            named = f"{', '.join(seen[:5])}{', ...' if len(seen) > 5 else ''}"
            those = "" if split == "all" else f"in the {split} split "
            raise UserError(
                f"{len(seen)} of the {len(there)} {kind} {those}of {faces} are what {uri} was {how} ({named}): the result would be "
                "worthless. Evaluate on the faces that it was trained from, or on other people; --split train and --split validation judge "
                "what it has seen, and say so."
            )


def _index(faces: str) -> list[dict[str, Any]]:
    """Every video that preprocess knows of, also those that it has not done, in order of video_id."""
    uri = storage.join(faces, "index.parquet")
    try:
        table = pq.read_table(pa.BufferReader(storage.read_bytes(uri)), columns=_COLUMNS)
    except FileNotFoundError as error:
        raise UserError(f"{uri} is absent. Copy the whole preprocess output, or run its `dfdc-ray preprocess` command again.") from error
    rows: list[dict[str, Any]] = table.sort_by("video_id").to_pylist()
    return rows
