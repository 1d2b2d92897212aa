"""From bucket to bucket: index and preprocess from s3:// to s3://, as on a local disk, and nothing says what the keys are. Training:
test_jobs.py.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fault_proxy import FaultProxy
from helpers import upload
from s3_server import S3, assert_no_secret

from dfdc_ray import storage

pytestmark = [pytest.mark.s3, pytest.mark.ray, pytest.mark.timeout(420)]


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Where Ray keeps its sockets and logs; short, since the paths of sockets are limited."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def dfdc_ray(*arguments: str, environment: dict[str, str], expect: int = 0) -> str:
    """Run the command; return all that it said."""
    environment = {k: v for k, v in environment.items() if k != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "dfdc_ray.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def read_table(uri: str) -> pa.Table:
    return pq.read_table(pa.BufferReader(storage.read_bytes(uri)))


def shards(out: str) -> dict[str, bytes]:
    manifest = json.loads(storage.read_bytes(storage.join(out, "manifest.json")))
    return {file["path"]: storage.read_bytes(storage.join(out, file["path"])) for file in manifest["files"]}


def test_from_zips_in_a_bucket_to_shards_in_it(s3: S3, small_corpus: Path, undisturbed: Path, ray_folder: Path) -> None:
    corpus, faces = storage.join(s3.uri, "drawn"), storage.join(s3.uri, "faces")
    upload(small_corpus, corpus)
    with FaultProxy(s3.endpoint, rate=0, seed=0) as proxy:
        environment = s3.server.environment(AWS_ENDPOINT_URL=proxy.endpoint, RAY_TMPDIR=str(ray_folder))
        said = dfdc_ray("preprocess", "--corpus", corpus, "--out", faces, "--frames", "2", "--workers", "2", environment=environment)
        requests, sent = proxy.requests["GET"], proxy.sent

    # The same as from a local disk to a local disk.
    assert read_table(storage.join(faces, "ledger.parquet")).equals(read_table(str(undisturbed / "ledger.parquet")))
    assert shards(faces) == shards(str(undisturbed))

    # Few requests, and the videos' own bytes.
    index = read_table(storage.join(faces, "index.parquet"))
    size = sum(index["size_bytes"].to_pylist())
    line = re.search(r"S3: (\d+) requests, ([\d.]+) MB read for (\d+) videos of ([\d.]+) MB, ([\d.]+) requests a video", said)
    assert line, said
    assert int(line[3]) == len(index)
    assert float(line[4]) == pytest.approx(size / 1e6, abs=0.1)
    per_video = [
        video
        for entry in storage.list_dir(storage.join(faces, "stats"))
        for video in json.loads(storage.read_bytes(entry.uri))["s3"].values()
    ]
    assert len(per_video) == len(index)
    assert sum(video["requests"] for video in per_video) == int(line[1]) <= requests
    assert sum(video["bytes"] for video in per_video) <= sent
    directories = 2 * 2 * 2  # each of two processes reads the directory of each of two zips, in at most two requests
    assert int(line[1]) <= len(index) + directories
    assert sum(video["bytes"] for video in per_video) <= size + 4096 * len(index) + directories * storage.S3_TAIL

    assert_no_secret(s3.server, said, s3.uri, ray_folder)


@pytest.mark.parametrize("trouble", ["key id", "secret", "bucket", "session", "none"])
def test_trouble_is_one_clear_line(s3: S3, small_corpus: Path, tmp_path: Path, trouble: str) -> None:
    """With reading as with writing, before any work is done."""
    storage.write_bytes(storage.join(s3.uri, "x.mp4"), b"x")
    corpus, out, changes = s3.uri, storage.join(s3.uri, "faces"), {}
    if trouble == "key id":
        message, changes = "it does not know this access key id", {"AWS_ACCESS_KEY_ID": "AKIANOTTHEKEY1234567"}
    elif trouble == "secret":
        message, changes = "secret access key is wrong", {"AWS_SECRET_ACCESS_KEY": "not/the+secret"}
    elif trouble == "bucket":
        message, corpus, out = "there is no such bucket", "s3://no-such-bucket-here/x", "s3://no-such-bucket-here/faces"
    elif trouble == "session":
        session = s3.server.session(seconds=1)
        if session is None:
            pytest.skip("moto takes session tokens for ever")
        time.sleep(2)
        message, changes = "has expired", session
    else:
        message, changes = "no usable AWS credentials", dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "")
    environment = {k: v for k, v in (s3.environment | changes).items() if v}
    reading = ("index", "--corpus", corpus, "--out", str(tmp_path / "index.parquet"))
    writing = ("preprocess", "--corpus", str(small_corpus), "--out", out)
    for command in (reading, writing) if trouble in ("secret", "bucket") else (reading,):
        said = dfdc_ray(*command, environment=environment, expect=1)
        errors = [line for line in said.splitlines() if "s3://" in line]
        assert len(errors) == 1, said
        assert re.fullmatch(rf"Error: s3://\S+: .*{message}.*", errors[0])
        assert "Traceback" not in said
        for secret in (s3.server.access_key, s3.server.secret_key, *changes.values()):
            assert not secret or secret not in said
