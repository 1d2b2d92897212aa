"""Splits: which group of videos is for training, validation and test. Computed from a recorded rule, never baked into data.

    parts:0-34/35-39/40-49   by DFDC's part: training / validation / test; a list such as 0,2-4 is allowed
    hash:SEED                by a hash of the group: 70 / 15 / 15 %; hash:SEED:60/20/20 for other percentages

The hash of a group depends on nothing but the seed and its name, so groups that are added later move none of the others.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from dfdc_ray.errors import UserError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
DEFAULT_SHARES = (70, 15, 15)
_FORMS = "hash:SEED, hash:SEED:70/15/15 or parts:0-34/35-39/40-49 (training/validation/test)"


def assign(rule: str, group_ids: Sequence[str], parts: Sequence[int | None]) -> list[Split]:
    """The split of each video, from its group and its part (given at equal positions).

    Raises UserError when the rule is malformed, has no answer for a video, or cuts a group.
    """
    parsed = _parse(rule)
    splits: dict[str, Split] = {}
    result = []
    for group, part in zip(group_ids, parts, strict=True):
        split = parsed.split(group, part)
        if splits.setdefault(group, split) != split:
            raise UserError(f"split rule {rule!r} cuts group {group!r}: people would be in {splits[group]} and in {split}. Use hash:0.")
        result.append(split)
    return result


def only_family(group_id: str) -> bool:
    """Whether a group is no more than an original and its fakes, so that its people may be in other groups too (corpus/index.py)."""
    return group_id.partition("/")[2].startswith("family:")


def describe(rule: str) -> str:
    """One line for the header of a report. Raises UserError when the rule is malformed."""
    return _parse(rule).text


@dataclass(frozen=True)
class _Rule:
    split: Callable[[str, int | None], Split]
    text: str


def _parse(rule: str) -> _Rule:
    kind, _, rest = rule.partition(":")
    if kind == "parts":
        return _by_parts(rule, rest)
    if kind == "hash":
        return _by_hash(rule, rest)
    raise UserError(f"split rule {rule!r}: expected {_FORMS}")


def _by_parts(rule: str, rest: str) -> _Rule:
    lists = rest.split("/")
    if len(lists) != len(SPLITS):
        raise UserError(f"split rule {rule!r}: expected three lists of parts, as in parts:0-34/35-39/40-49")
    split_of: dict[int, Split] = {}
    for split, listed in zip(SPLITS, lists, strict=True):
        for item in listed.split(","):
            match = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", item)
            first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
            if first > last:
                raise UserError(f"split rule {rule!r}: {item!r} is neither a part nor a range of parts such as 35-39")
            for part in range(first, last + 1):
                if part in split_of:
                    raise UserError(f"split rule {rule!r}: part {part} is listed twice")
                split_of[part] = split

    def by_part(group: str, part: int | None) -> Split:
        if part is None:
            raise UserError(
                f"split rule {rule!r} needs DFDC's parts, and group {group!r} belongs to none: a rule such as hash:0 suits any corpus."
            )
        if part not in split_of:
            raise UserError(
                f"split rule {rule!r} says nothing of part {part} (group {group!r}): a rule that lists it does, or one such as hash:0."
            )
        return split_of[part]

    named = ", ".join(f"{split} {listed}" for split, listed in zip(SPLITS, lists, strict=True))
    return _Rule(by_part, f"{rule}: by part, {named}")


def _by_hash(rule: str, rest: str) -> _Rule:
    match = re.fullmatch(r"([^:/\s]+)(?::([0-9]{1,3})/([0-9]{1,3})/([0-9]{1,3}))?", rest)
    if match is None:
        raise UserError(f"split rule {rule!r}: expected {_FORMS}")
    seed = match[1]
    shares = tuple(int(share) for share in match.groups()[1:]) if match[2] else DEFAULT_SHARES
    if sum(shares) != 100:
        raise UserError(f"split rule {rule!r}: {shares[0]} + {shares[1]} + {shares[2]} is not 100 %")

    def by_hash(group: str, _part: int | None) -> Split:
        # The first 64 bits of SHA-256 as a number in [0, 1), compared in whole numbers so that no rounding comes in.
        value = int.from_bytes(hashlib.sha256(f"{seed}:{group}".encode()).digest()[:8], "big")
        percent = value * 100 >> 64
        if percent < shares[0]:
            return "train"
        return "validation" if percent < shares[0] + shares[1] else "test"

    named = ", ".join(f"{split} {share} %" for split, share in zip(SPLITS, shares, strict=True))
    return _Rule(by_hash, f"{rule}: groups by SHA-256 with seed {seed}, {named}")
