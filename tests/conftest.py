"""Fixtures shared by all tests."""

import os
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from s3_server import BUCKET, NOT_OURS, S3, Server, forget_connections, installed, running


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


@pytest.fixture(scope="session")
def undisturbed(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `helpers.preprocess_command` over `small_corpus` makes of it when nothing happens, without Ray. Do not change it."""
    from helpers import preprocess_here

    from dfdc_ray.config import PreprocessConfig

    out = tmp_path_factory.mktemp("undisturbed")
    preprocess_here(PreprocessConfig(corpus=(str(small_corpus),), out=str(out), frames=2))
    return out


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Server]:
    """One S3 server for the session, started by the first test that needs it, with a bucket. `s3` is what tests use."""
    with running() as server:
        server.client().create_bucket(Bucket=BUCKET)
        yield server


@pytest.fixture
def s3(s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """An empty prefix on an S3 server; this process's AWS environment leads there while the test runs. Mark the test `s3`."""
    for name in NOT_OURS:
        monkeypatch.delenv(name, raising=False)
    for name, value in s3_server.variables.items():
        monkeypatch.setenv(name, value)
    forget_connections()
    yield S3(f"s3://{BUCKET}/{uuid.uuid4().hex}", s3_server)
    forget_connections()


def pytest_configure() -> None:
    """One thread for each process, those that tests start included: two processes of two threads on two cores wait for each other."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Also after a test that started a server in this process, which takes all cores."""
    yield
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


def pytest_report_header() -> str:
    return f"S3 server of these tests: {installed()}"
