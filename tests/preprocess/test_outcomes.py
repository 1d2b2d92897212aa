"""What a run says and does about bad videos, finished work, retries and parts that arrive later."""

import inspect
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.data._internal.execution import streaming_executor_state
from small_disk import small_disk

from dfdc_ray.config import PreprocessConfig
from dfdc_ray.corpus.index import build_index
from dfdc_ray.errors import UserError
from dfdc_ray.preprocess import patience, run, summary
from dfdc_ray.preprocess.plan import Unit, Video, units
from dfdc_ray.preprocess.receipts import LEDGER, open_output
from dfdc_ray.preprocess.run import preprocess
from dfdc_ray.preprocess.settings import settings_of
from dfdc_ray.preprocess.supervise import Worker
from dfdc_ray.preprocess.unit import process_unit, process_video

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[None]:
    """A Ray of three CPUs on this machine, in a folder with a short name (its sockets' paths are limited)."""
    import ray

    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.delenv("RAY_ADDRESS", raising=False)
        ray.init(address="local", num_cpus=3, include_dashboard=False, _temp_dir=folder, object_store_memory=150e6)
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def a_video(small_corpus) -> bytes:
    return next((small_corpus / "test_videos").glob("*.mp4")).read_bytes()


@pytest.fixture
def config(tmp_path, a_video) -> PreprocessConfig:
    """Three sound videos and one that is not, of the same size."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name in ("a", "b", "c"):
        (corpus / f"{name}.mp4").write_bytes(a_video)
    (corpus / "bad.mp4").write_bytes(bytes(len(a_video)))
    return PreprocessConfig(corpus=(str(corpus),), out=str(tmp_path / "out"), crop="frame", frames=2)


def ledger(config: PreprocessConfig) -> dict[str, tuple[str, int]]:
    """Status and generation by video."""
    rows = pq.read_table(Path(config.out) / "ledger.parquet").to_pylist()
    return {row["video_id"].split("/")[1]: (row["status"], row["generation"]) for row in rows}


def test_too_many_bad_videos_fail_the_run_after_the_rest_is_done(config, capsys):
    with pytest.raises(UserError) as raised:
        preprocess(config)
    said = str(raised.value)
    assert "1 of 4 videos (25.00%) ended as error or poison, more than --max-error-share 0.01 allows" in said
    assert "1 x error: probe" in said
    assert "--retry error poison" in said
    assert ledger(config) == {"a.mp4": ("ok", 0), "b.mp4": ("ok", 0), "c.mp4": ("ok", 0), "bad.mp4": ("error", 0)}
    assert len(json.loads((Path(config.out) / "manifest.json").read_text())["files"]) == 3

    with pytest.raises(UserError, match="1 of 4"):  # finished, and no better
        preprocess(config)
    capsys.readouterr()
    preprocess(replace(config, max_error_share=0.25))  # accepted
    assert "Nothing to do" in capsys.readouterr().out


def test_retry_does_only_what_it_names(config, a_video, capsys):
    accepted = replace(config, max_error_share=0.25)
    preprocess(accepted)
    (Path(config.corpus[0]) / "bad.mp4").write_bytes(a_video)
    preprocess(replace(accepted, retry=("poison",)))
    assert ledger(config)["bad.mp4"] == ("error", 0)
    capsys.readouterr()
    preprocess(replace(config, retry=("error", "poison")))
    assert "3 done before, 1 to do" in capsys.readouterr().out
    assert ledger(config) == {"a.mp4": ("ok", 0), "b.mp4": ("ok", 0), "c.mp4": ("ok", 0), "bad.mp4": ("ok", 1)}


def test_a_retry_never_loses_what_is_there(a_video, tmp_path):
    corpus = tmp_path / "family"
    corpus.mkdir()
    (corpus / "metadata.json").write_text(json.dumps({"a.mp4": {"label": "REAL"}, "f.mp4": {"label": "FAKE", "original": "a.mp4"}}))
    (corpus / "a.mp4").write_bytes(a_video)
    (corpus / "f.mp4").write_bytes(bytes(len(a_video)))
    config = PreprocessConfig(corpus=(str(corpus),), out=str(tmp_path / "out"), crop="frame", frames=1, max_error_share=1)
    preprocess(config)
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    (corpus / "f.mp4").write_bytes(a_video)
    (corpus / "a.mp4").unlink()
    with pytest.raises(UserError, match=r"family/a\.mp4 was read before and now ends as missing"):
        preprocess(replace(config, retry=("error",)))
    assert ledger(config) == {"a.mp4": ("ok", 0), "f.mp4": ("error", 0)}
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before
    (corpus / "a.mp4").write_bytes(a_video)
    preprocess(replace(config, retry=("error",)))
    assert ledger(config) == {"a.mp4": ("ok", 1), "f.mp4": ("ok", 1)}


def test_a_run_with_fewer_videos_of_a_family_comes_first(a_video, tmp_path, monkeypatch, capsys):
    """It has planned before the fake came, and commits while this run, which knows the fake, is at work."""
    corpus = tmp_path / "family"
    corpus.mkdir()
    (corpus / "metadata.json").write_text(json.dumps({"a.mp4": {"label": "REAL"}, "f.mp4": {"label": "FAKE", "original": "a.mp4"}}))
    for name in ("a.mp4", "f.mp4"):
        (corpus / name).write_bytes(a_video)
    config = PreprocessConfig(corpus=(str(corpus),), out=str(tmp_path / "out"), crop="frame", frames=1)
    settings, really_run = settings_of(config), run._run
    (unit,) = units(build_index(config.corpus)[0])
    runs = []

    def other_comes_first(*arguments: Any, **more: Any) -> dict[str, str]:
        runs.append(arguments[3])
        if len(runs) == 1:
            earlier = Unit(unit.unit_id, unit.family_id, unit.videos[:1])
            open_output(config.out, settings).commit(process_unit(earlier, lambda v, g: process_video(v, settings, None, g)), generation=0)
        return really_run(*arguments, **more)

    monkeypatch.setattr(run, "_run", other_comes_first)
    preprocess(config)
    assert [work[0][1] for work in runs] == [0, 1]
    assert "Another run has changed 1 of these families" in capsys.readouterr().out
    assert ledger(config) == {"a.mp4": ("ok", 1), "f.mp4": ("ok", 1)}


@pytest.mark.parametrize(
    ("places", "ends"),
    [
        ([f"part_{i // 10}" for i in range(40)], 11),  # more than one place fails
        (["part_0"] * 20 + [""] * 20, 40),  # one does, and the others are sound
        (["out"] * 40, 8),
        (["part_0"] * 7 + [None] + ["part_1"] * 7 + [None] * 25, 40),
        ([*[None] * 10, *["part_1"] * 10, *["part_2"] * 20], 21),
        ([None] * 30 + ["part_3"] * 10, 38),  # the only one left
    ],
)
def test_a_run_stops_where_each_further_unit_would_wait_for_nothing(places, ends, monkeypatch):
    """place: of the storage that kept a unit from being done; "": something else did; None: done."""

    def reports(*_: Any, **__: Any) -> Iterator[dict[str, Any]]:
        for i, place in enumerate(places):
            seen.append(i)
            failure = "" if place is None else "no"
            yield {"unit_id": f"u{i:02d}", "videos": 1, "faces": 0, "bad": 0, "failure": failure, "place": place or "", "requests": 0}

    seen: list[int] = []
    monkeypatch.setattr(run, "stream", reports)
    monkeypatch.setattr(run, "_actors", lambda *_: 1)
    settings = settings_of(PreprocessConfig(corpus=("x",), out="out", crop="frame"))
    video = Video("c", "c/v", None, "REAL", None, None, "c/v", "c/g", None)
    work = [(Unit(f"u{i:02d}", "c/v", (replace(video, uri=f"part_{i // 10}/v.mp4"),)), 0) for i in range(40)]
    failures = run._run(PreprocessConfig(corpus=("x",), out="out"), settings, "out", work, sizes={})
    assert len(seen) == ends
    assert len(failures) == 40 - ends + sum(place is not None for place in places[:ends])


def test_ray_data_elsewhere_in_the_process_keeps_its_settings(config):
    """Such as that an error is raised, which a training that reads through Ray Data relies on."""
    from ray.data import DataContext

    before = vars(DataContext.get_current().copy())
    preprocess(replace(config, max_error_share=0.25))
    assert vars(DataContext.get_current()) == before


def test_how_often_ray_data_looks_around_can_still_be_set():
    assert "timeout=WAIT_FOR_TASK_COMPLETION_TIMEOUT_S" in inspect.getsource(streaming_executor_state)


def test_parts_that_arrive_later_are_added(small_corpus, tmp_path, capsys):
    corpus = tmp_path / "drawn"
    corpus.mkdir()
    first, second = sorted(small_corpus.glob("dfdc_train_part_*.zip"))
    config = PreprocessConfig(corpus=(str(corpus),), out=str(tmp_path / "out"), crop="frame", frames=1)
    shutil.copy(first, corpus)
    preprocess(config)
    before = {p: p.stat().st_mtime_ns for folder in ("faces", "receipts") for p in (tmp_path / "out" / folder).iterdir()}
    shutil.copy(second, corpus)
    capsys.readouterr()
    preprocess(config)
    assert "20 videos; 10 done before, 10 to do" in capsys.readouterr().out
    assert len(ledger(config)) == 20
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert len(json.loads((tmp_path / "out" / "manifest.json").read_text())["files"]) == 4


def test_a_full_disk_is_nobodys_fault(config, tmp_path, monkeypatch):
    """The unit is reported with the reason and has no receipt; with space again, it is done."""
    monkeypatch.setattr(patience, "_PAUSES_S", (0.01, 0.01))
    settings = settings_of(config)
    unit = units(build_index(config.corpus)[0])[0]
    batch = {"unit": np.array([unit.to_json()]), "generation": np.array([0])}
    with small_disk(tmp_path / "disk", size=8 * 2**20) as disk, Worker(settings, timeout_s=60, memory_bytes=4 * 2**30) as worker:
        output = open_output(f"{disk.path}/out", settings)
        actor = run.ProcessUnit(settings=settings, out=output.out, worker=worker)
        disk.fill()
        reported = actor(batch)
        assert "No space left on device" in reported["failure"][0]
        assert reported["place"] == [output.out]
        assert output.read() == {}
        disk.free()
        assert [p for p in disk.path.rglob("*") if p.is_file()] == [disk.path / "out" / "config.json"]  # no half-written files
        assert actor(batch)["failure"] == [""]
        assert [row["status"] for row in output.read()[unit.unit_id].videos] == ["ok"]


def some_ledger(*statuses: str) -> pa.Table:
    rows = [
        {"video_id": str(i), "status": status, "stage": "decode", "error": f"frame {i} of 300 is damaged"}
        for i, status in enumerate(statuses)
    ]
    return pa.Table.from_pylist(rows, schema=LEDGER)


@pytest.mark.parametrize(
    ("statuses", "most", "fails"),
    [
        (["ok"] * 99 + ["error"], 0.01, False),  # not more than allowed
        (["ok"] * 98 + ["error"], 0.01, True),
        (["ok"] * 98 + ["poison", "error"], 0.01, True),
        (["ok", "no_face", "missing"], 0.0, False),  # neither is trouble of the run
        (["ok"] * 50 + ["missing"] * 50 + ["error"], 0.015, True),  # and what is missing does not dilute it
        (["missing"], 0.0, False),
        ([], 0.0, False),
    ],
)
def test_the_share_of_errors(statuses, most, fails):
    assert bool(summary.too_many_errors(some_ledger(*statuses), {str(i) for i in range(len(statuses))}, most)) == fails


def test_only_videos_of_this_run_count():
    assert not summary.too_many_errors(some_ledger("ok", "error"), {"0"}, 0.0)


def test_the_same_cause_in_several_videos_is_one_line():
    (said,) = summary.too_many_errors(some_ledger("error", "error", "poison"), {"0", "1", "2"}, 0.1)
    assert "  2 x error: decode frame # of # is damaged\n  1 x poison: decode frame # of # is damaged\n" in said
