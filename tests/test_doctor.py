"""Each check of `dfdc-ray doctor`, once in order and once broken."""

import shutil
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from dfdc_ray import doctor, storage
from dfdc_ray.cli import main
from dfdc_ray.cluster import run as cluster
from dfdc_ray.faces.weights import stage_weights


def distribution(folder: Path, name: str, version: str) -> None:
    """What pip leaves behind for an installed distribution, as far as importlib.metadata looks."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_python() -> None:
    assert doctor.check_python((3, 11, 2)).level == "ok"
    assert doctor.check_python((3, 12, 0)).level == "ok"
    assert doctor.check_python((3, 13, 0)).level == "FAIL"
    assert doctor.check_python((3, 10, 12)).level == "FAIL"


def test_package_in_order() -> None:
    check = doctor.check_package("av", "av", required=True)
    assert (check.level, check.detail) == ("ok", metadata.version("av"))


def test_absent_package_fails_only_if_required() -> None:
    assert doctor.check_package("no-such-package", "x", required=True).level == "FAIL"
    optional = doctor.check_package("no-such-package", "x", required=False)
    assert optional.level == "warn"
    assert "preprocessing" in optional.detail


def test_package_of_another_version_than_the_project_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(tmp_path, "opencv-contrib-python-headless", "5.0.0")
    monkeypatch.syspath_prepend(tmp_path)
    check = doctor.check_package("opencv-contrib-python-headless", "cv2", required=True)
    assert check.level == "FAIL"
    assert "5.0.0" in check.detail
    assert "<5" in check.detail


def test_package_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(tmp_path, "broken-package", "1.0")
    (tmp_path / "broken_package.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.syspath_prepend(tmp_path)
    check = doctor.check_package("broken-package", "broken_package", required=True)
    assert check.level == "FAIL"
    assert "nms does not exist" in check.detail


def test_two_opencvs(tmp_path: Path) -> None:
    distribution(tmp_path, "opencv-python-headless", "4.10")
    assert doctor.check_opencv([str(tmp_path)]).level == "ok"
    distribution(tmp_path, "opencv-python", "4.13")
    check = doctor.check_opencv([str(tmp_path)])
    assert check.level == "FAIL"
    assert "pip uninstall opencv-python opencv-python-headless" in check.detail


def test_weights_absent_right_and_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPFACE_HOME", str(tmp_path))
    assert {c.level for c in doctor.check_weights()} == {"warn"}
    paths = stage_weights()
    assert [c.level for c in doctor.check_weights()] == ["ok"]
    victim = paths["centerface.onnx"]
    victim.write_bytes(victim.read_bytes()[:-1])
    (check,) = doctor.check_weights()
    assert check.level == "FAIL"
    assert str(victim) in check.detail


def test_no_cluster_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    check = doctor.check_ray()
    assert check.level == "ok"
    assert "a local one will be started" in check.detail


@pytest.mark.parametrize(
    ("status", "level", "words"),
    [
        (cluster.RayStatus(reachable=True, detail="3 nodes", version=metadata.version("ray")), "ok", "3 nodes"),
        (cluster.RayStatus(reachable=True, detail="3 nodes", version="2.0.0"), "FAIL", "2.0.0"),
        (cluster.RayStatus(reachable=False, detail="nobody answers", version=None), "FAIL", "nobody answers"),
    ],
)
def test_cluster_that_is_named(status: cluster.RayStatus, level: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(cluster, "status", lambda: status)
    check = doctor.check_ray()
    assert check.level == level
    assert words in check.detail


def test_storage_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    assert doctor.check_storage(str(tmp_path / "new" / "folder")).level == "ok"
    assert list((tmp_path / "new" / "folder").iterdir()) == []


def test_storage_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert doctor.check_storage(str(tmp_path / "file" / "below")).level == "FAIL"


def test_storage_that_gives_back_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "read_bytes", lambda uri: b"")
    assert doctor.check_storage(str(tmp_path)).level == "FAIL"


def test_storage_that_cannot_refuse_a_second_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "create_once", lambda uri, data: storage.write_bytes(uri, data) or True)
    assert "created twice" in doctor.check_storage(str(tmp_path)).detail


@pytest.mark.parametrize(("free", "level"), [(100 * 2**30, "ok"), (5 * 2**30, "warn"), (2**20, "FAIL")])
def test_disk(free: int, level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def usage(folder: Path) -> SimpleNamespace:
        asked.append(folder)
        return SimpleNamespace(free=free)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert doctor.check_disk(str(tmp_path / "not" / "yet")).level == level
    assert asked == [tmp_path]


def test_gpu_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert doctor.check_gpu().level == "ok"
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert doctor.check_gpu().level == "warn"


def test_gpu_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = SimpleNamespace(__version__="2.15.0", cuda=SimpleNamespace(is_available=lambda: False))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    check = doctor.check_gpu()
    assert check.level == "warn"
    assert "driver" in check.detail


def test_command_prints_a_line_for_each_check_and_exits_1_on_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("DEEPFACE_HOME", str(tmp_path))
    stage_weights()
    (tmp_path / "file").write_text("")
    assert main(["doctor", "--out", str(tmp_path / "file" / "below")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("FAIL")] == ["storage"]
    assert {"python", "ray", "torch", "weights", "disk", "gpu"} <= {line.split()[1] for line in lines}
