"""A file that cannot be read: whether that is its own trouble or the storage's."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dfdc_ray import storage
from dfdc_ray.config import PreprocessConfig
from dfdc_ray.corpus.index import build_index
from dfdc_ray.errors import StorageError
from dfdc_ray.preprocess import patience
from dfdc_ray.preprocess.patience import process_patiently
from dfdc_ray.preprocess.plan import Video, units
from dfdc_ray.preprocess.settings import settings_of
from dfdc_ray.preprocess.supervise import Unreadable, Worker
from dfdc_ray.preprocess.unit import Guide, VideoResult, ledger_row

SETTINGS = settings_of(PreprocessConfig(corpus=("x",), out="y", frames=2, crop="frame"))


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_PAUSES_S", (0.01, 0.01))


@pytest.fixture(scope="module")
def video(small_corpus: Path) -> Video:
    return next(v for unit in units(build_index([str(small_corpus)])[0]) for v in unit.videos if "test_videos" in (v.uri or ""))


class Failing(Worker):
    """Its first tries fail."""

    def __init__(self, tries: int, error: type[StorageError] = Unreadable) -> None:
        super().__init__(SETTINGS, timeout_s=60, memory_bytes=1 << 30)
        self.tries, self.error = tries, error

    def process(self, video: Video, guide: Guide | None) -> VideoResult:
        self.tries -= 1
        if self.tries >= 0:
            raise self.error("Input/output error")
        return VideoResult(ledger_row(video, status="ok"))


def status(worker: Worker, video: Video) -> str:
    return str(process_patiently(worker, video, None).ledger["status"])


def test_what_passes_is_forgiven(video):
    assert status(Failing(2), video) == "ok"
    assert status(Failing(3), video) == "ok"  # after a look at its neighbours


def test_a_file_that_alone_cannot_be_read_is_an_error(video):
    result = process_patiently(Failing(4), video, None)
    assert (result.ledger["status"], result.ledger["stage"]) == ("error", "open")
    assert result.ledger["error"] == "Input/output error (what is beside it can be read)"


def test_a_machine_that_starts_no_process_condemns_no_video(video):
    with pytest.raises(StorageError, match="Input/output"):
        status(Failing(9, StorageError), video)


@pytest.mark.parametrize("beside", [[], ["folder/b.mp4"], ["empty"]], ids=["nothing", "only a folder", "an empty file"])
def test_a_file_with_nothing_readable_beside_it_is_not_done(video, tmp_path, beside):
    for name in ("a.mp4", *beside):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"" if name == "empty" else b"x")
    with pytest.raises(Unreadable):
        status(Failing(9), replace(video, uri=str(tmp_path / "a.mp4")))


@pytest.mark.s3
@pytest.mark.parametrize(("denied", "ends"), [("a.mp4", "error"), ("*", "not done")])
def test_access_denied_to_one_object_or_to_all(s3, video, denied, ends):
    if s3.server.is_moto:
        pytest.skip("moto denies by no bucket policy")
    bucket, _, prefix = s3.uri.removeprefix("s3://").partition("/")
    data = storage.read_bytes(video.uri)
    for name in ("a.mp4", "b.mp4"):
        storage.write_bytes(storage.join(s3.uri, name), data)
    rule = {"Effect": "Deny", "Principal": "*", "Action": ["s3:GetObject"], "Resource": f"arn:aws:s3:::{bucket}/{prefix}/{denied}"}
    s3.server.client().put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [rule]}))
    try:
        with Worker(SETTINGS, timeout_s=60, memory_bytes=1 << 30) as worker:
            a, b = (replace(video, uri=storage.join(s3.uri, name)) for name in ("a.mp4", "b.mp4"))
            if ends == "error":
                result = process_patiently(worker, a, None)
                assert result.ledger["status"] == "error"
                assert "S3 denies access (AccessDenied)" in result.ledger["error"]
                assert status(worker, b) == "ok"
            else:
                with pytest.raises(Unreadable, match="denies access"):
                    status(worker, a)
            assert worker.traffic.requests >= 3  # of the failed tries too
    finally:
        s3.server.client().delete_bucket_policy(Bucket=bucket)
