"""Bad input on the real way from a folder to the ledger: each kind ends as its case says (tests/bad_input), and harms nothing beside it."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bad_input import files, odd_videos, poison, zips
from bad_input.case import FRAMES_WANTED, Case, Outcome, run, stop_workers

VIDEOS = [*odd_videos.BAD, *odd_videos.ODD]
CORPORA = [*files.CASES, *zips.CASES]
COUNTED = ("frames_wanted", "frames_decoded", "box_source", "status")


def by_kind(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=[case.kind for case in cases])


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Outcome]:
    """What the good family alone gives, with faces or without."""
    done: dict[bool, Outcome] = {}

    def get(faces: bool) -> Outcome:
        if faces not in done:
            nothing = Case(kind="nothing bad", make=lambda corpus: None, faces=faces)
            done[faces] = run(nothing, tmp_path_factory.mktemp("undisturbed"))
        return done[faces]

    return get


@pytest.fixture(scope="module", autouse=True)
def _no_process_left() -> Iterator[None]:
    yield
    stop_workers()


def test_there_are_enough_and_each_is_one() -> None:
    kinds = [case.kind for case in (*VIDEOS, *CORPORA, *poison.CASES)]
    assert len(set(kinds)) == len(kinds) >= 90


def test_the_good_family(undisturbed: Callable[[bool], Outcome]) -> None:
    for faces in (False, True):
        outcome = undisturbed(faces)
        assert outcome.refusal is None
        assert {name: row["status"] for name, row in outcome.ledger.items()} == {"good.mp4": "ok", "fake.mp4": "ok"}
        assert {name: len(rows) for name, rows in outcome.rows.items()} == {"good.mp4": FRAMES_WANTED, "fake.mp4": FRAMES_WANTED}
        assert outcome.ledger["fake.mp4"]["box_source"] == ("original" if faces else None)


@by_kind(VIDEOS)
def test_videos(case: Case, tmp_path: Path, undisturbed: Callable[[bool], Outcome]) -> None:
    check(case, run(case, tmp_path), undisturbed(case.faces))


@by_kind(CORPORA)
def test_corpora(case: Case, tmp_path: Path, undisturbed: Callable[[bool], Outcome]) -> None:
    check(case, run(case, tmp_path), undisturbed(case.faces))


@pytest.mark.timeout(120)
@by_kind(poison.CASES)
def test_poison(case: Case, tmp_path: Path, undisturbed: Callable[[bool], Outcome]) -> None:
    check(case, run(case, tmp_path), undisturbed(case.faces))


def check(case: Case, outcome: Outcome, undisturbed: Outcome) -> None:
    if case.status == "refused":
        assert outcome.counts is None
        assert outcome.refusal is not None
        assert re.search(case.says, outcome.refusal), outcome.refusal
        return
    assert outcome.counts is not None
    for name, expected in case.counts.items():
        found = getattr(outcome.counts, name)
        assert (len(found) if isinstance(found, tuple) else found) == expected, name
    for name in undisturbed.ledger:
        assert outcome.rows[name] == undisturbed.rows[name]
        assert {c: outcome.ledger[name][c] for c in COUNTED} == {c: undisturbed.ledger[name][c] for c in COUNTED}
    bad = {name: row for name, row in outcome.ledger.items() if name.startswith("bad")}
    if case.status == "not done":
        assert outcome.refusal is not None
        assert re.search(case.says, outcome.refusal), outcome.refusal
        assert not bad
        return
    assert outcome.refusal is None
    assert bad
    for name, row in bad.items():
        check_bad(case, row, outcome.rows.get(name, []))
    for name in outcome.ledger.keys() - undisturbed.ledger.keys() - bad.keys():
        check_beside(case, outcome.ledger[name], outcome.rows[name])


def check_bad(case: Case, row: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    assert row["status"] == case.status, row
    if case.stage or case.status in ("ok", "no_face"):
        assert row["stage"] == case.stage
    said = f"{row['error'] or ''}{row['alignment'] or ''}"
    assert re.search(case.says, said), said
    assert {name: row[name] for name in case.row} == dict(case.row)
    assert len(rows) == (row["faces"] if case.faces else row["frames_decoded"] if case.status == "ok" else 0)
    if case.size:
        assert {(r["frame_width"], r["frame_height"]) for r in rows} == {case.size}


def check_beside(case: Case, row: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """A good fake, whose original is bad: whole, and where that gave nothing to go by, by itself."""
    assert row["status"] == "ok", row
    assert len(rows) == row["frames_decoded"] == row["frames_wanted"] > 0
    if case.status in ("error", "poison", "missing"):
        assert row["frames_wanted"] == FRAMES_WANTED
        assert row["box_source"] == ("self" if case.faces else None)
