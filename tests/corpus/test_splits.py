"""Splits: groups stay whole, shares are kept, and what a rule cannot answer is an error."""

import hashlib

import pytest

from dfdc_ray.corpus.splits import assign, describe
from dfdc_ray.errors import UserError

GROUPS = [f"dfdc/group:{number}" for number in range(20_000)]
NO_PARTS: list[int | None] = [None] * len(GROUPS)


def test_parts_are_split_as_listed() -> None:
    parts = [0, 34, 35, 39, 40, 49, 34]
    splits = assign("parts:0-34/35-39/40-49", [f"dfdc/part:{part}" for part in parts], parts)
    assert splits == ["train", "train", "validation", "validation", "test", "test", "train"]
    assert assign("parts:0,2-4/1/7,5", [str(part) for part in range(6)], range(6)) == [
        "train",
        "validation",
        "train",
        "train",
        "train",
        "test",
    ]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("", "expected hash"),
        ("random:1", "expected hash"),
        ("parts:0-34/35-39", "three lists"),
        ("parts:0-34/35-39/40-49/50", "three lists"),
        ("parts:0-34//40-49", "'' is neither"),
        ("parts:0-34/a/40-49", "'a' is neither"),
        ("parts:34-0/35/40", "'34-0' is neither"),
        ("parts:-1/35/40", "'-1' is neither"),
        ("parts:0-99999999/35/40", "is neither"),
        ("parts:0-35/35-39/40-49", "part 35 is listed twice"),
        ("parts:0,0/1/2", "part 0 is listed twice"),
        ("hash:", "expected hash"),
        ("hash:0:70/20/20", "not 100 %"),
        ("hash:0:70/30", "expected hash"),
        ("hash:0:60.5/19.5/20", "expected hash"),
        ("hash:a b", "expected hash"),
    ],
)
def test_a_malformed_rule_is_refused(rule: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        assign(rule, [], [])
    with pytest.raises(UserError, match=message):
        describe(rule)


def test_a_video_that_the_rule_has_no_answer_for_is_named() -> None:
    with pytest.raises(UserError, match=r"says nothing of part 50 \(group 'dfdc/part:50'\)"):
        assign("parts:0-34/35-39/40-49", ["dfdc/part:1", "dfdc/part:50"], [1, 50])
    with pytest.raises(UserError, match="group 'ffpp/group:7' belongs to none"):
        assign("parts:0-34/35-39/40-49", ["dfdc/part:1", "ffpp/group:7"], [1, None])


def test_a_group_in_two_splits_is_refused() -> None:
    assert assign("parts:0-34/35-39/40-49", ["actor", "actor"], [1, 2]) == ["train", "train"]
    with pytest.raises(UserError, match="cuts group 'actor': people would be in train and in test"):
        assign("parts:0-34/35-39/40-49", ["actor", "actor"], [1, 45])


@pytest.mark.parametrize(("rule", "shares"), [("hash:0", (70, 15, 15)), ("hash:x", (70, 15, 15)), ("hash:0:50/0/50", (50, 0, 50))])
def test_hash_keeps_the_shares(rule: str, shares: tuple[int, int, int]) -> None:
    splits = assign(rule, GROUPS, NO_PARTS)
    for split, share in zip(("train", "validation", "test"), shares, strict=True):
        # Five standard deviations of a binomial count.
        assert abs(splits.count(split) - len(GROUPS) * share / 100) <= 5 * (len(GROUPS) * share / 100 * (1 - share / 100)) ** 0.5


def test_hash_is_sha_256_of_seed_and_group() -> None:
    for group, split in zip(GROUPS[:200], assign("hash:7", GROUPS[:200], NO_PARTS[:200]), strict=True):
        value = int(hashlib.sha256(f"7:{group}".encode()).hexdigest(), 16) / 2**256
        assert split == ("train" if value < 0.70 else "validation" if value < 0.85 else "test")


def test_groups_that_are_added_move_no_other() -> None:
    few = dict(zip(GROUPS[::3], assign("hash:3", GROUPS[::3], NO_PARTS[::3]), strict=True))
    many = dict(zip(GROUPS, assign("hash:3", GROUPS, NO_PARTS), strict=True))
    assert few.items() <= many.items()
    assert assign("hash:4", GROUPS, NO_PARTS) != list(many.values())


def test_a_report_can_say_what_the_rule_is() -> None:
    assert describe("parts:0-34/35-39/40-49") == "parts:0-34/35-39/40-49: by part, train 0-34, validation 35-39, test 40-49"
    assert describe("hash:5") == "hash:5: groups by SHA-256 with seed 5, train 70 %, validation 15 %, test 15 %"
