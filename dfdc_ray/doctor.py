"""Is this machine ready? One line for each check: ok, warn (something will not work, or not well), or FAIL (nothing will).

dfdc-ray doctor --out s3://bucket/faces
"""

import importlib
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from rich.markup import escape

from dfdc_ray import storage
from dfdc_ray.config import DoctorConfig
from dfdc_ray.console import console
from dfdc_ray.errors import StorageError, UserError

Level = Literal["ok", "warn", "FAIL"]
_COLOURS: dict[Level, str] = {"ok": "green", "warn": "yellow", "FAIL": "bold red"}

# Distribution, module that shows whether it works (none: another check does), needed for preprocessing too.
_PACKAGES: tuple[tuple[str, str | None, bool], ...] = (
    ("ray", None, True),
    ("pyarrow", "pyarrow", True),
    ("av", "av", True),
    ("opencv-contrib-python-headless", "cv2", True),
    ("deepface", "deepface", True),
    ("torch", "torch", False),
    ("torchvision", "torchvision", False),
)
_DISK_LOW = 20 * 2**30  # at about 1 MB of faces a video, room for twenty thousand videos
_DISK_FULL = 2**30


@dataclass(frozen=True)
class Check:
    """What one check found."""

    name: str
    level: Level
    detail: str


def doctor(config: DoctorConfig) -> None:
    """Print every check. Raises SystemExit(1) if one failed, UserError if `out` is no place at all."""
    failed = False
    for check in _checks(storage.absolute(config.out)):
        failed |= check.level == "FAIL"
        line = f"[{_COLOURS[check.level]}]{check.level:<4}[/]  {check.name:<30}  {escape(check.detail)}"
        console.print(line, highlight=False, soft_wrap=True)
    if failed:
        raise SystemExit(1)


def _checks(out: str) -> Iterator[Check]:
    """One after the other, so that each line appears as soon as it is known."""
    yield check_python(sys.version_info[:3])
    for distribution, module, required in _PACKAGES:
        yield check_package(distribution, module, required=required)
    yield check_opencv(sys.path)
    yield from check_weights()
    yield check_ray()
    yield check_storage(out)
    yield check_disk(out)
    yield check_gpu()


def check_python(version: Sequence[int]) -> Check:
    """The versions that pyproject.toml allows."""
    supported = (3, 11) <= tuple(version[:2]) <= (3, 12)
    text = ".".join(map(str, version))
    return Check("python", "ok", text) if supported else Check("python", "FAIL", f"{text}: Python 3.11 or 3.12 is needed")


def check_package(distribution: str, module: str | None, *, required: bool) -> Check:
    """Is it installed, in a version that this package allows, and can it be imported?"""
    missing: Level = "FAIL" if required else "warn"
    try:
        version = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        purpose = "" if required else " (enough for preprocessing; train, evaluate and predict need it)"
        return Check(distribution, missing, f"not installed{purpose}")
    if (wanted := _requirement(distribution)) and not wanted.specifier.contains(version, prereleases=True):
        return Check(distribution, missing, f"{version} is installed, {wanted.specifier} is needed: install from requirements/*.lock")
    if module:
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever it is, it is the finding: ImportError, OSError of a library, torch's RuntimeError
            return Check(distribution, missing, f"{version} is installed but cannot be imported: {error}")
    return Check(distribution, "ok", version)


def _requirement(distribution: str) -> Requirement | None:
    """What this package asks of a distribution; None where only its code is there, as on the nodes of a cluster."""
    try:
        lines = metadata.requires("dfdc-ray") or []
    except metadata.PackageNotFoundError:
        return None
    return next((r for r in map(Requirement, lines) if r.name == distribution), None)


def check_opencv(path: Sequence[str]) -> Check:
    """Several OpenCV distributions share the folder cv2: the last one installed wins, file by file."""
    found = sorted({d.name.lower() for d in metadata.distributions(path=list(path)) if d.name.lower().startswith("opencv-")})
    if len(found) > 1:
        how = f"python -m pip uninstall {' '.join(found)}, then install from requirements/*.lock"
        return Check("opencv conflict", "FAIL", f"{' and '.join(found)} overwrite each other's files: {how}")
    return Check("opencv conflict", "ok", "none")


def check_weights() -> list[Check]:
    """Are the detectors' weights where DeepFace looks for them, byte for byte? A line for each that is not."""
    try:
        from dfdc_ray.faces import weights

        found = weights.check_weights()
    except ImportError as error:
        return [Check("weights", "FAIL", f"cannot be looked for: {error}")]
    absent = [
        Check("weights", "warn", f"{w.path} is absent: the first command that detects faces puts it there")
        for w in found
        if w.problem == "absent"
    ]
    bad = [Check("weights", "FAIL", f"{w.path}: {w.problem}") for w in found if w.problem not in ("", "absent")]
    return absent + bad or [Check("weights", "ok", f"{len(found)} files, as expected, in {found[0].path.parent} and OpenCV's data")]


def check_ray() -> Check:
    """Does the cluster answer that RAY_ADDRESS names, with the version of Ray that is installed here?"""
    if not os.environ.get("RAY_ADDRESS"):
        return Check("ray cluster", "ok", "none running: a local one will be started (RAY_ADDRESS names none)")
    try:
        from dfdc_ray.cluster.run import status
    except ImportError as error:
        return Check("ray cluster", "FAIL", f"Ray cannot be imported: {error}")
    found = status()
    if not found.reachable:
        return Check("ray cluster", "FAIL", found.detail)
    here = metadata.version("ray")
    if found.version != here:
        return Check("ray cluster", "FAIL", f"it runs Ray {found.version}, here is {here}: install the same ({found.detail})")
    return Check("ray cluster", "ok", found.detail)


def check_storage(out: str) -> Check:
    """Write, read and delete one small file, and see that it cannot be created twice, as receipts need."""
    probe = storage.join(out, f".doctor-{uuid.uuid4().hex}")
    data = probe.encode()
    try:
        storage.write_bytes(probe, data)
        same = storage.read_bytes(probe) == data
        twice = storage.create_once(probe, b"again")
        storage.delete(probe)
        created = storage.create_once(probe, data)
        storage.delete(probe)
    except (UserError, StorageError, OSError) as error:
        return Check("storage", "FAIL", f"{out} is not writable: {error}")
    if not same:
        return Check("storage", "FAIL", f"{out} gave back other bytes than were written")
    if twice or not created:
        return Check("storage", "FAIL", f"{out} lets a file be created twice (on S3: If-None-Match is ignored), so receipts would not hold")
    return Check("storage", "ok", f"{out} is writable")


def check_disk(out: str) -> Check:
    """Free space where the output goes, or, if that is S3, where temporary files go."""
    folder = Path(tempfile.gettempdir() if storage.is_s3(out) else out)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    level: Level = "ok" if free >= _DISK_LOW else "warn" if free >= _DISK_FULL else "FAIL"
    return Check("disk", level, f"{free / 2**30:.0f} GiB free at {folder}")


def check_gpu() -> Check:
    """What torch can use; a GPU that it cannot use is worth a warning."""
    present = shutil.which("nvidia-smi") is not None
    try:
        import torch
    except Exception:  # check_package says what is wrong with torch
        return Check("gpu", "warn" if present else "ok", "nvidia-smi is here, torch is not" if present else "none")
    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        return Check("gpu", "ok", ", ".join(f"{d.name}, {d.total_memory / 2**30:.0f} GiB" for d in devices))
    if present:
        return Check("gpu", "warn", f"nvidia-smi is here, but torch {torch.__version__} finds no GPU: is the driver too old?")
    return Check("gpu", "ok", "none: training runs on the CPU")
