"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real videos that cannot be committed: $DFDC_RAY_SHARED, or `shared` beside the checkout."""
    path = Path(os.environ.get("DFDC_RAY_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (path / "data").is_dir():
        pytest.skip(f"no real videos: {path} does not exist (set DFDC_RAY_SHARED)")
    return path
