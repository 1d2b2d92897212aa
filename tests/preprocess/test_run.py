"""Preprocessing on a real Ray: complete, resumable after a kill, and the same as without the kill."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import preprocess_command

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]


def run(*arguments: str, expect: int = 0) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=200, check=False, env=ENVIRONMENT)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}


def rows(out: Path) -> pa.Table:
    """All face rows that the manifest names, in one order."""
    files = json.loads((out / "manifest.json").read_text())["files"]
    return pa.concat_tables([pq.read_table(out / f["path"]) for f in files]).sort_by(
        [("video_id", "ascending"), ("track_id", "ascending"), ("frame", "ascending")]
    )


@pytest.fixture(scope="module")
def finished(small_corpus, tmp_path_factory) -> Path:
    """An output of the command, killed half way and given again. Do not change it."""
    out = tmp_path_factory.mktemp("finished")
    receipts = out / "receipts"
    with subprocess.Popen(
        preprocess_command(small_corpus, out, "--workers", "1"), env=ENVIRONMENT, start_new_session=True, stdout=subprocess.DEVNULL
    ) as driver:
        while not (receipts.is_dir() and len(list(receipts.glob("*.json"))) >= 2):
            assert driver.poll() is None, "it ended before it could be killed"
            time.sleep(0.02)
        os.killpg(driver.pid, signal.SIGKILL)
    first = len(list(receipts.glob("*.json")))
    assert not (out / "manifest.json").exists()
    output = run(*preprocess_command(small_corpus, out))
    assert " 0 done before" not in output
    assert " 0 to do" not in output
    assert first < len(list(receipts.glob("*.json")))
    return out


def test_killed_half_way_and_run_again_it_is_what_it_is_without_ray(finished, undisturbed):
    assert rows(finished).equals(rows(undisturbed))
    assert pq.read_table(finished / "ledger.parquet").equals(pq.read_table(undisturbed / "ledger.parquet"))
    names = [{p.name for p in (out / "faces").iterdir()} for out in (finished, undisturbed)]
    assert names[0] >= names[1]  # the same bytes under the same names; a killed run may leave a file that no receipt names


def test_every_video_is_in_the_ledger(finished):
    ledger = pq.read_table(finished / "ledger.parquet").to_pylist()
    assert len(ledger) == 4 * 5 + 2 * 2
    assert {row["status"] for row in ledger} == {"ok"}
    assert len({row["video_id"] for row in ledger}) == len(ledger)
    assert sum(row["faces"] for row in ledger) == rows(finished).num_rows


def test_finished_work_is_not_done_again(small_corpus, finished):
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in finished.rglob("*")}
    output = run(*preprocess_command(small_corpus, finished))
    assert " 0 to do" in output
    assert "Nothing to do" in output
    assert {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in finished.rglob("*")} == before


def test_another_configuration_is_refused_without_a_traceback(small_corpus, finished):
    output = run(*preprocess_command(small_corpus, finished, "--margin", "0.5"), expect=1)
    assert "margin" in output
    assert "Traceback" not in output
