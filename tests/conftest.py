"""Fixtures shared by all tests."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real videos that cannot be committed: $DFDC_RAY_SHARED, or `shared` beside the checkout."""
    path = Path(os.environ.get("DFDC_RAY_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (path / "data").is_dir():
        pytest.skip(f"no real videos: {path} does not exist (set DFDC_RAY_SHARED)")
    return path


@pytest.fixture
def index_row() -> Callable[..., dict[str, Any]]:
    """A function that makes one row of an index: index_row("a.mp4", original="z.mp4", part=0, uri="x.mp4")."""

    def make(name: str, *, original: str | None = None, part: int | None = 0, uri: str | None = "x.mp4") -> dict[str, Any]:
        return {
            "corpus": "c",
            "video_id": f"c/{name}",
            "uri": uri,
            "label": "FAKE" if original else "REAL",
            "method": None,
            "original": f"c/{original}" if original else None,
            "family_id": f"c/{original or name}",
            "group_id": "c/part:0",
            "part": part,
            "size_bytes": 1,
        }

    return make


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated corpus in DFDC's form: 4 families (20 videos of a second) in 2 zips, and test_videos/."""
    from dfdc_ray.demo.corpus import write_corpus

    out = tmp_path_factory.mktemp("corpus") / "drawn"
    write_corpus(out, families=4, seed=1, seconds=1.0, test_families=2)
    return out
