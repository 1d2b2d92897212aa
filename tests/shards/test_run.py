"""`dfdc-ray pack` on a real Ray: killed and run again, it ends with the same bytes; and what it refuses."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import pack_shards, write_face_shards

from dfdc_ray.config import PackConfig
from dfdc_ray.errors import UserError
from dfdc_ray.shards.manifest import read_manifest
from dfdc_ray.shards.pack import plan
from dfdc_ray.shards.run import pack


def written(out: Path) -> dict[str, bytes]:
    """All files of an output but the manifest, which says what wrote it."""
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != "manifest.json"}


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Ray of two CPUs on this machine, in a folder with a short name (its sockets' paths are limited)."""
    import ray

    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        ray.init(address="local", num_cpus=2, include_dashboard=False, _temp_dir=folder, object_store_memory=100e6)
        yield
        ray.shutdown()


@pytest.mark.ray
@pytest.mark.timeout(120)
@pytest.mark.usefixtures("session")
def test_goes_on_where_another_run_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faces, out = write_face_shards(tmp_path / "faces", families=4), tmp_path / "out"
    undisturbed = Path(pack_shards(faces, tmp_path / "undisturbed", shard_mb=0.04))
    shutil.copytree(undisturbed, out)
    (out / "manifest.json").unlink()
    (out / "shards" / "00001.json").unlink()
    (out / "shards" / "00002.json").unlink()
    next((out / "shards").glob("00002.*.parquet")).unlink()
    config = PackConfig(faces=str(faces), out=str(out), shard_mb=0.04, row_group_mb=0.02, workers=1)
    shard = next((faces / "faces").iterdir())
    data = shard.read_bytes()
    shard.write_bytes(data.replace(b"\xff\xd8\xff\xe0", b"\0\0\0\0", 1))
    number = next(s.number for s in plan(read_manifest(str(faces)), seed=0, shard_bytes=4e4) if s.pieces[0].file.uri == str(shard))
    (out / "shards" / f"{number:05d}.json").unlink(missing_ok=True)
    with pytest.raises(
        UserError, match=rf"1 shards were not made:\n  shard {number}: {shard}.* is damaged.*\n.*run the same command again"
    ):
        pack(config)
    assert not (out / "manifest.json").exists()

    shard.write_bytes(data)
    pack(config)
    assert written(out) == written(undisturbed)
    assert "4 shards; 3 done before, 1 to do" in capsys.readouterr().out


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_half_way_and_run_again(tmp_path: Path) -> None:
    faces, out = write_face_shards(tmp_path / "faces", families=30), tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "dfdc_ray.cli",
        "pack",
        "--faces",
        str(faces),
        "--out",
        str(out),
        "--workers",
        "1",
        "--shard-mb",
        "0.015",
    ]
    command += ["--row-group-mb", "0.005"]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    with subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL) as driver:
        while not (out / "shards").is_dir() or len(list((out / "shards").glob("*.json"))) < 2:
            assert driver.poll() is None, "it ended before it could be killed"
            time.sleep(0.005)
        os.killpg(driver.pid, signal.SIGKILL)
    first = {path.name: path.stat().st_mtime_ns for path in (out / "shards").glob("*.json")}
    assert not (out / "manifest.json").exists()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 done before" not in done.stdout
    assert " 0 to do" not in done.stdout
    now = {path.name: path.stat().st_mtime_ns for path in (out / "shards").glob("*.json")}
    assert first.items() < now.items()
    pack_shards(faces, tmp_path / "undisturbed", shard_mb=0.015, row_group_mb=0.005)
    assert written(out) == written(tmp_path / "undisturbed")


def test_what_it_refuses(tmp_path: Path) -> None:
    faces = str(write_face_shards(tmp_path / "faces", families=2))
    out = str(tmp_path / "out")
    with pytest.raises(UserError, match="is where --faces are"):
        pack(PackConfig(faces=faces, out=faces + "/"))
    for options, message in (
        ({"shard_mb": 0}, "--shard-mb 0: must be above 0"),
        ({"shard_mb": 4000}, "at most 1000"),
        ({"row_group_mb": 300}, "--row-group-mb 300: must be above 0 and at most --shard-mb"),
        ({"seed": -1}, "--seed -1"),
        ({"workers": 0}, "--workers 0"),
    ):
        with pytest.raises(UserError, match=message):
            pack(PackConfig(faces=faces, out=out, **options))  # type: ignore[arg-type]
    assert not Path(out).exists()
    packed = pack_shards(Path(faces), tmp_path / "packed")
    with pytest.raises(UserError, match="is packed already"):
        pack(PackConfig(faces=packed, out=out))


def test_nothing_to_do_needs_no_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    faces = write_face_shards(tmp_path / "faces", families=2)
    out = pack_shards(faces, tmp_path / "out")
    monkeypatch.setattr("dfdc_ray.cluster.run.connect", lambda: pytest.fail("Ray was started"))
    pack(PackConfig(faces=str(faces), out=out, shard_mb=0.12, row_group_mb=0.02))
    assert " 0 to do" in capsys.readouterr().out
