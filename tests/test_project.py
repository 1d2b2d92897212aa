"""The rules that hold the project together: locks, which way imports point, where Ray and torch may appear, jobs, the make targets."""

import ast
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "dfdc_ray"
LOCKS = ("all", "preprocess")
JOBS = ("preprocess", "pack", "train", "evaluate", "predict")
# Below every package, so that any may import them; they import only each other.
BASE = {"storage", "s3", "ranged", "config", "errors", "console", "cluster", ""}
# The schema of shards, how their bytes are written and where: preprocess and everything after it share them.
LEAVES = {"shards.format", "shards.schema", "shards.write", "shards.output"}
# Above every package.
TOP = {"cli", "doctor"}


def locked(name: str) -> dict[str, str]:
    text = (ROOT / "requirements" / f"{name}.lock").read_text()
    return {canonicalize_name(n): v for n, v in re.findall(r"^([A-Za-z0-9._-]+)==(\S+) \\$", text, re.M)}


def modules() -> dict[str, Path]:
    """Modules by their name within the package: `faces.crop`, and "" for the package itself."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> Iterator[str]:
    """Every dotted name that a file imports, wherever in it: `from a.b import c` gives `a.b` and `a.b.c`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(path: Path, known: dict[str, Path]) -> set[str]:
    names = {name.removeprefix("dfdc_ray").lstrip(".") for name in imports(path) if name.split(".")[0] == "dfdc_ray"}
    return names & set(known)


def order() -> list[str]:
    """The packages in the order of docs/architecture.md, uppermost last to be imported."""
    listed = re.findall(r"^  (\w+)/ ", (ROOT / "docs" / "architecture.md").read_text(), re.M)
    return [name for name in listed if name not in BASE]


@pytest.mark.parametrize("name", LOCKS)
def test_lock_has_hashes_and_no_addresses(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.lock").read_text()
    assert "://" not in text
    assert "--index" not in text
    assert "--find-links" not in text
    pins = text.count("==")
    assert pins == len(locked(name))
    assert len(re.findall(r"^\S+==\S+ \\\n    --hash=sha256:[0-9a-f]{64}", text, re.M)) == pins


def test_locks_hold_every_dependency_in_an_allowed_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    everything, preprocess = locked("all"), locked("preprocess")
    extras = [r for group in project["optional-dependencies"].values() for r in group]
    for lock, wanted in ((everything, project["dependencies"] + extras), (preprocess, project["dependencies"])):
        for requirement in map(Requirement, wanted):
            version = lock.get(canonicalize_name(requirement.name))
            assert version, f"{requirement.name} is not locked: make lock"
            assert requirement.specifier.contains(version), f"{requirement} is locked at {version}: make lock"
    assert preprocess.items() <= everything.items()


def test_what_the_make_targets_install_can_build_the_package() -> None:
    (build,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert Requirement(build).specifier.contains(locked("all")["setuptools"])


def test_preprocessing_needs_no_torch() -> None:
    heavy = [n for n in locked("preprocess") if n.startswith(("torch", "nvidia", "cuda", "triton", "tensorflow"))]
    assert heavy == []


def test_only_one_opencv_is_locked() -> None:
    for name in LOCKS:
        assert [n for n in locked(name) if n.startswith("opencv")] == ["opencv-contrib-python-headless"]


def test_preprocessing_imports_no_torch() -> None:
    names = [f"dfdc_ray.{m}" for m in modules() if m.split(".")[0] in {"preprocess", "faces", "video", "corpus"}]
    code = f"import importlib, sys\nfor m in {names}: importlib.import_module(m)\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "False"


def test_the_decoding_process_imports_no_pyarrow() -> None:
    """Nor anything else of some 30 MB: there is one for every core."""
    large = ["boto3", "pandas", "pyarrow", "ray", "scipy", "torch"]
    code = f"import sys, dfdc_ray.preprocess.child\nprint([m for m in {large} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split("\n")[-2] == "[]"


def test_ray_is_imported_only_where_it_may_be() -> None:
    users = {m for m, path in modules().items() if any(n.split(".")[0] == "ray" for n in imports(path))}
    assert {m for m in users if not m.endswith(".run") and not m.startswith("serve")} == set()
    assert "cluster.run" in users


def test_imports_point_one_way() -> None:
    known, rank = modules(), {name: i for i, name in enumerate(order())}
    wrong = []
    for module, path in known.items():
        package = module.split(".")[0]
        assert package in BASE | TOP | set(rank), f"{package} is not in the list of docs/architecture.md"
        for target in own_imports(path, known) - LEAVES:
            to = target.split(".")[0]
            allowed = to in BASE or (package in TOP and to not in TOP) or (package in rank and rank.get(to, len(rank)) <= rank[package])
            if not allowed or (module in LEAVES and to not in BASE):
                wrong.append(f"{module} imports {target}")
    assert wrong == []


@pytest.mark.parametrize("name", JOBS)
def test_job_is_short_and_does_nothing_when_imported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ROOT / "jobs" / f"{name}.py"
    assert len(path.read_text().splitlines()) < 60
    assert f"ray job submit --working-dir . -- python jobs/{name}.py" in path.read_text()
    monkeypatch.setattr(sys, "argv", [str(path), "--no-such-option"])
    runpy.run_path(str(path), run_name="imported")  # as an actor would, to unpickle something of it


@pytest.mark.parametrize("name", JOBS)
def test_job_calls_the_command_of_its_name_and_passes_on_its_exit_code(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def command(argv: list[str]) -> int:
        called.append(argv)
        return 7

    monkeypatch.setattr("dfdc_ray.cli.main", command)
    monkeypatch.setattr(sys, "argv", ["job", "--out", "x"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "jobs" / f"{name}.py"), run_name="__main__")
    assert end.value.code == 7
    assert called == [[name, "--out", "x"]]


def test_job_refuses_wrong_options_with_an_exit_code() -> None:
    command = [sys.executable, str(ROOT / "jobs" / "preprocess.py"), "--no-such-option"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 2
    assert "--no-such-option" in done.stdout + done.stderr


def test_no_large_file_is_tracked() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, timeout=60, check=True).stdout.decode().split("\0")
    large = [name for name in listed if name and (ROOT / name).is_file() and (ROOT / name).stat().st_size > 2**20]
    assert large == []


@pytest.mark.slow  # makes real virtual environments, needs the package index
def test_setup_is_done_once_and_begins_afresh_after_an_interruption(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements").mkdir()
    lock = tmp_path / "requirements" / "all.lock"
    setuptools = re.search(r"^setuptools==.*?(?=^\S)", (ROOT / "requirements" / "all.lock").read_text(), re.M | re.S)
    assert setuptools
    lock.write_text(setuptools[0])
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "dfdc-ray"\nversion = "0"\n[tool.setuptools]\npackages = ["dfdc_ray"]\n')
    faces = tmp_path / "dfdc_ray" / "faces"
    faces.mkdir(parents=True)
    (tmp_path / "dfdc_ray" / "__init__.py").write_text("")
    (faces / "weights.py").write_text("def stage_weights(): print('weights staged')\n")
    venv = tmp_path / ".venv"

    def setup(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["make", "setup", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)

    python = f"PYTHON={sys.executable}"
    assert "is not Python 3.11 or 3.12" in setup("PYTHON=/no/such/python").stderr
    bare = tmp_path / "python-without-venv"  # Debian's, where python3-venv is not installed
    bare.write_text(f'#!/bin/sh\ncase "$2" in *ensurepip*) exit 1;; esac\nexec {sys.executable} "$@"\n')
    bare.chmod(0o755)
    assert "apt install python3-venv" in setup(f"PYTHON={bare}").stderr
    assert not venv.exists()

    first = setup(python)
    assert first.returncode == 0, first.stderr
    assert first.stdout.count(" -m pip ") == 2
    again = setup(python)
    assert again.stdout.strip() == "weights staged"

    # A failing installation, here for want of a hash, is not taken as done ...
    time.sleep(1.1)  # make compares times, on some file systems by the second
    lock.write_text("dfdc-ray-no-such-package==1\n")
    assert setup(python).returncode != 0
    assert not (venv / ".locked").exists()
    # ... and the next one starts from nothing.
    (venv / "left over").touch()
    lock.write_text(setuptools[0])
    assert "made afresh" in setup(python).stdout
    assert not (venv / "left over").exists()
    assert (venv / ".installed").exists()
