"""What a measurement depends on, written beside every result."""

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    packages = ("opencv-contrib-python-headless", "deepface", "av", "numpy")
    versions = {"python": platform.python_version()} | {name: metadata.version(name) for name in packages}
    return {"cpu": cpu, "arch": platform.machine(), "cores": os.cpu_count(), "versions": versions}
